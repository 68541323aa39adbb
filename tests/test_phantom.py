"""The synthetic exams: valid DICOM, the same bytes every time, and classes that need order or seconds."""

import csv
import hashlib
import io
import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict

from scripts.sequences import phantom
from scripts.sequences.phantom import CLASSES, KINDS, quantise, write_exams
from scripts.sequences.phantom_ffa import FFA_CLASSES, ffa_sequence, log_progress, spot_course
from scripts.sequences.phantom_xa import FILLING_S, XA_CLASSES, schedule, xa_sequence

SEQUENCES = {"ffa_leak": ffa_sequence, "xa_flow": xa_sequence}
PROBE_SEQUENCES = {"ffa_leak": 300, "xa_flow": 240}  # an equal number of each class
POSITIONS = np.linspace(0, 1, 7)  # at which the probe looks at a sequence
NUM_PATIENTS = 12
CHOSEN_FRAMES = 16  # of an X-ray run, as the workflows choose


@pytest.fixture(scope="module", params=KINDS)
def exams(request, tmp_path_factory):
    """Kind, folder and rows of labels.csv of a small set with every transfer syntax."""
    folder = tmp_path_factory.mktemp(request.param)
    with write_exams(folder, request.param, num_patients=NUM_PATIENTS, seed=1, rows=64, progress=False).open() as file:
        return request.param, folder, list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def files_of(folder: Path, image: str) -> list[Path]:
    path = folder / image
    return [path] if path.is_file() else sorted(path.iterdir())


# --- the set ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_write_the_same_bytes(kind, tmp_path):
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        write_exams(tmp_path / name, kind, num_patients=4, seed=seed, rows=64, progress=False)
    first, other = digests(tmp_path / "first"), digests(tmp_path / "other")
    assert first == digests(tmp_path / "second")
    assert not set(first.values()) & set(other.values())
    write_exams(tmp_path / "first", kind, num_patients=4, seed=3, rows=64, progress=False)
    assert first == digests(tmp_path / "first")  # written again in place: nothing added, nothing changed


def test_the_global_random_state_is_left_alone(tmp_path):
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state that must not move
    write_exams(tmp_path, num_patients=1, rows=64, progress=False)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_classes_are_balanced_and_patients_have_one_to_three_runs(exams):
    kind, _, rows = exams
    counts = [sum(row["label"] == name for row in rows) for name in CLASSES[kind]]
    assert sum(counts) == len(rows) and max(counts) - min(counts) <= 1
    runs = [len(list(group)) for _, group in itertools.groupby(rows, lambda row: row["image"].split("/")[1])]
    assert len(runs) == NUM_PATIENTS and set(runs) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"kind": "mri"}, "kind"), ({"num_patients": 0}, "num_patients"), ({"rows": 63}, "rows"), ({"seed": -1}, "seed")],
)
def test_an_argument_out_of_range_is_refused_by_name(arguments, field, tmp_path):
    with pytest.raises(ValueError, match=f"phantom: {field} is "):
        write_exams(tmp_path / "out", progress=False, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_exams_is_refused_and_left_as_it_was(tmp_path):
    write_exams(tmp_path, num_patients=1, rows=64, progress=False)
    before = digests(tmp_path)
    with pytest.raises(ValueError, match="Name another folder"):
        write_exams(tmp_path, num_patients=2, rows=64, progress=False)
    assert digests(tmp_path) == before
    (tmp_path / "own" / "exams").mkdir(parents=True)
    with pytest.raises(ValueError, match="Name another folder"):
        write_exams(tmp_path / "own", num_patients=1, rows=64, progress=False)


# --- the files ---


def test_files_are_valid_dicom_with_unique_uids_and_a_synthetic_patient(exams):
    kind, folder, rows = exams
    instances = []
    for row in rows:
        for path in files_of(folder, row["image"]):
            data = pydicom.dcmread(path)  # without force: needs the preamble and the file meta group
            instances.append(data.SOPInstanceUID)
            assert all(uid.is_valid for uid in (data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID))
            assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
            assert data.Modality == {"ffa_leak": "OP", "xa_flow": "XA"}[kind]
            assert (data.HighBit, data.SamplesPerPixel) == (data.BitsStored - 1, 1)
            assert data.BitsAllocated == (8 if data.BitsStored == 8 else 16)
            assert data.PatientID == f"PHANTOM-{row['image'].split('/')[1][1:]}"
            assert "Synthetic" in data.InstitutionName and str(data.PatientName).startswith("Phantom")
    assert len(instances) == len(set(instances)) >= len(rows)


def test_a_set_mixes_syntaxes_photometric_interpretations_and_bit_depths(exams):
    kind, folder, rows = exams
    headers = [pydicom.dcmread(files_of(folder, row["image"])[0], stop_before_pixels=True) for row in rows]
    syntaxes = {header.file_meta.TransferSyntaxUID.keyword for header in headers}
    assert syntaxes == {"ExplicitVRLittleEndian", "RLELossless", "JPEGBaseline8Bit"}
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    depths = {header.BitsStored for header in headers}
    assert depths == {8, 12} if kind == "ffa_leak" else depths <= set(range(8, 13)) and len(depths) > 2
    layouts = {(folder / row["image"]).is_file() for row in rows}
    assert layouts == ({True, False} if kind == "ffa_leak" else {True})
    for header in headers:
        lossy = header.file_meta.TransferSyntaxUID.keyword == "JPEGBaseline8Bit"
        assert ("LossyImageCompression" in header) == lossy
        assert header.BitsStored == 8 or not lossy


def test_decoded_frames_are_the_quantised_frames(exams, monkeypatch, tmp_path):
    kind, folder, rows = exams
    drawn, draw = [], SEQUENCES[kind]

    def recording(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(phantom, draw.__name__, recording)
    write_exams(tmp_path, kind, num_patients=NUM_PATIENTS, seed=1, rows=64, progress=False)
    exact = close = 0
    for row, (frames, times_ms) in zip(rows, drawn, strict=True):
        files = [pydicom.dcmread(path) for path in files_of(folder, row["image"])]
        files.sort(key=lambda data: data.AcquisitionDateTime)
        first = files[0]
        found = np.concatenate([data.pixel_array.reshape(-1, 64, 64) for data in files])
        stored = quantise(frames, first.BitsStored, first.PhotometricInterpretation)
        if first.file_meta.TransferSyntaxUID.keyword == "JPEGBaseline8Bit":
            assert np.abs(found.astype(int) - stored).mean() < 5
            close += 1
        else:
            np.testing.assert_array_equal(found, stored)
            exact += 1
        assert len(found) == len(times_ms)
    assert exact >= 5 and close >= 3


def test_monochrome1_is_stored_inverted():
    frames = np.array([[[0.0, 0.25, 1.0, 1.5]]])
    for bits, dtype in ((8, np.uint8), (10, np.uint16)):
        as2, as1 = (quantise(frames, bits, f"MONOCHROME{n}") for n in (2, 1))
        assert as2.dtype == as1.dtype == dtype
        assert as2[0, 0].tolist() == [0, round(0.25 * (2**bits - 1)), 2**bits - 1, 2**bits - 1]
        np.testing.assert_array_equal(as1, 2**bits - 1 - as2)


def test_jpeg_frames_open_outside_pydicom(exams):
    _, folder, rows = exams
    opened = 0
    for row in rows:
        data = pydicom.dcmread(files_of(folder, row["image"])[0])
        if data.file_meta.TransferSyntaxUID.keyword == "JPEGBaseline8Bit":
            frame = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=data.get("NumberOfFrames", 1)))
            with Image.open(io.BytesIO(frame)) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "L", (64, 64))
            opened += 1
    assert opened >= 3


def test_single_frame_files_are_ordered_by_their_clock_alone(tmp_path):
    labels = write_exams(tmp_path, num_patients=14, seed=2, rows=64, progress=False)
    with labels.open() as file:
        runs = [path for row in csv.DictReader(file) if (path := tmp_path / row["image"]).is_dir()]
    all_one = 0
    for run in runs:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(run.iterdir())]
        clocks = [header.AcquisitionDateTime for header in headers]
        assert len(set(clocks)) == len(clocks) and clocks != sorted(clocks)  # names are in another order
        all_one += {header.InstanceNumber for header in headers} == {1}
        assert not any("AcquisitionTime" in header or "ContentTime" in header for header in headers)
    assert len(runs) >= 5 and 0 < all_one < len(runs)


# --- times ---


def test_retinal_times_are_irregular_within_ten_seconds_to_twenty_minutes():
    counts = set()
    for seed in range(40):
        frames, times_ms = ffa_sequence(np.random.default_rng(seed), seed % 5, 64)
        gaps = np.diff(times_ms)
        assert frames.shape == (len(times_ms), 64, 64) and times_ms.dtype == np.float64
        assert frames.min() >= 0 and frames.max() <= 1
        assert times_ms[0] >= 10_000 and times_ms[-1] <= 1_200_000
        assert gaps.min() > 0 and gaps.max() > 2 * gaps.min()
        counts.add(len(times_ms))
    assert min(counts) >= 6 and max(counts) <= 16 and len(counts) > 5


def test_frame_time_vector_holds_increments_that_begin_with_zero(exams):
    kind, folder, rows = exams
    multi = [pydicom.dcmread(path) for row in rows if (path := folder / row["image"]).is_file()]
    assert len(multi) >= 5
    for data in multi:
        if kind == "ffa_leak":
            assert data.FrameIncrementPointer == pydicom.tag.Tag("FrameTimeVector")
            assert len(data.FrameTimeVector) == data.NumberOfFrames
            assert data.FrameTimeVector[0] == 0 and min(data.FrameTimeVector[1:]) > 0
        else:
            assert data.FrameIncrementPointer == pydicom.tag.Tag("FrameTime")
            assert 1000 / 30 - 1e-3 <= data.FrameTime <= 1000 / 7.5 + 1e-3


def test_xray_runs_have_10_to_90_frames_at_7_5_to_30_a_second():
    for grade in XA_CLASSES:
        runs = [schedule(np.random.default_rng(seed), grade) for seed in range(300)]
        counts, rates = [len(progress) for progress, _ in runs], [rate for _, rate in runs]
        assert 10 <= min(counts) < 20 and 50 < max(counts) <= 90
        assert 7.5 <= min(rates) < 10 and 20 < max(rates) <= 30


def test_seconds_of_filling_part_grade_2_from_3_and_frame_counts_and_rates_do_not():
    facts = {grade: [] for grade in FILLING_S}
    for grade, seed in itertools.product(FILLING_S, range(1000)):
        progress, rate = schedule(np.random.default_rng(seed), grade)
        filling_frames = 1 / (progress[1] - progress[0])
        share, duration_s = filling_frames / (len(progress) - 1), len(progress) / rate
        facts[grade].append((filling_frames / rate, duration_s, filling_frames, len(progress), rate, share))
    slow, quick = (np.array(facts[grade]).T for grade in ("timi_2", "timi_3"))
    assert slow[0].min() > 1.5 * quick[0].max()
    best = []
    for a, b in zip(slow[1:], quick[1:], strict=True):
        borders = np.quantile(np.concatenate([a, b]), np.linspace(0, 1, 200))
        best.append(max(abs((a > border).mean() - (b > border).mean()) for border in borders) / 2 + 0.5)
    duration, filling, frames, rate, share = best
    assert duration < 0.95  # the shortcut of a model that reads times and no pixels, in these two grades
    assert filling < 0.85 and frames < 0.80 and rate < 0.80 and share < 0.65


# --- what can be told from what ---


def test_a_spot_played_backwards_is_its_partner():
    """Over many sequences, reversed leakage or pooling has normal's sizes and brightness, staining window defect's."""
    progress = np.linspace(0, 1, 9)

    def mean_course(*names):
        return np.mean(
            [spot_course(np.random.default_rng([9, i]), name, progress)[:2] for name in names for i in range(600)], 0
        )

    for partner, names in (("normal", ("leakage", "pooling")), ("window_defect", ("staining",))):
        np.testing.assert_allclose(mean_course(partner), mean_course(*names)[:, ::-1], atol=0.03)
        assert np.abs(mean_course(partner) - mean_course(*names)).max() > 0.1  # forwards it is not


def test_progress_runs_from_first_to_last_frame():
    np.testing.assert_allclose(log_progress(np.array([10.0, 100.0, 1000.0])), [0, 0.5, 1])


def at(statistics: list[np.ndarray], position: float) -> np.ndarray:
    """One frame's statistics of each sequence, (N, F)."""
    return np.stack([s[round(position * (len(s) - 1))] for s in statistics])


def everywhere(statistics: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([at(statistics, position) for position in POSITIONS], axis=1)


def probe(features: np.ndarray, labels: np.ndarray, trees: int = 100) -> float:
    """Cross-validated balanced accuracy of a random forest."""
    forest = RandomForestClassifier(trees, min_samples_leaf=2, random_state=0)
    return balanced_accuracy_score(labels, cross_val_predict(forest, features, labels, cv=4))


def spot_statistics(frames: np.ndarray) -> np.ndarray:
    """Levels of brightness in each frame, by themselves and against the frame's median, (T, 11).

    How large and how bright a spot is stands in the upper ones.
    """
    low, high = np.percentile(frames, [0.5, 99.5])
    smooth = ndimage.gaussian_filter((frames - low) / (high - low), (0, 2, 2)).reshape(len(frames), -1)
    levels = np.quantile(smooth, [0.5, 0.75, 0.85, 0.92, 0.97, 0.995], axis=1).T
    return np.concatenate([levels, levels[:, 1:] / levels[:, :1] - 1], axis=1)


def contrast_statistics(frames: np.ndarray) -> np.ndarray:
    """Share of the picture that contrast darkens, at three depths, and the mean darkening, (T, 4)."""
    smooth = ndimage.gaussian_filter(frames, (0, 1, 1))
    empty = np.quantile(smooth[1:], 0.9, axis=0)
    darkening = np.clip(empty - smooth, 0, 1) / empty.max()
    areas = [(darkening > depth).mean((1, 2)) for depth in (0.06, 0.12, 0.2)]
    return np.stack([*areas, darkening.mean((1, 2))], axis=1)


def bolus_statistics(statistics: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rise, arrival, stay and duration of the bolus in the unit of `times`, and how much is left, (7,)."""
    area = statistics[:, 0]
    low, high = np.quantile(area[1:], 0.1), area[1:].max()
    curve = (area - low) / (high - low + 1e-9)
    curve[0] = 0  # the noisy first frame
    arrival, full = np.argmax(curve > 0.15), np.argmax(curve > 0.85)
    stay = (curve > 0.3).mean() * times[-1]
    return np.array([times[full] - times[arrival], times[arrival], stay, times[-1], low, high, curve[-1]])


@pytest.fixture(scope="module")
def retinal():
    """Statistics of the frames of many retinal runs, and their labels."""
    count = PROBE_SEQUENCES["ffa_leak"]
    labels = np.arange(count) % len(FFA_CLASSES)
    runs = [ffa_sequence(np.random.default_rng([3, i]), int(labels[i]), 64)[0] for i in range(count)]
    return [spot_statistics(frames) for frames in runs], labels


@pytest.fixture(scope="module")
def xray():
    """Statistics of the chosen frames of many X-ray runs, their times in seconds, and their labels."""
    count = PROBE_SEQUENCES["xa_flow"]
    labels = np.arange(count) % len(XA_CLASSES)
    statistics, times_s = [], []
    for i in range(count):
        frames, times_ms = xa_sequence(np.random.default_rng([5, i]), int(labels[i]), 64)
        keep = np.unique(np.linspace(0, len(frames) - 1, CHOSEN_FRAMES).round().astype(int))
        statistics.append(contrast_statistics(frames[keep]))
        times_s.append(times_ms[keep] / 1000)
    return statistics, times_s, labels


def test_order_tells_retinal_classes_that_neither_one_frame_nor_shuffled_frames_tell(retinal):
    statistics, labels = retinal
    rng = np.random.default_rng(0)
    shuffled = [s[rng.permutation(len(s))] for s in statistics]
    ordered = probe(everywhere(statistics), labels)
    single = max(probe(at(statistics, position), labels) for position in (0, 0.5, 1))
    assert ordered > 0.80
    assert single < ordered - 0.20
    assert probe(everywhere(shuffled), labels) < ordered - 0.35


def test_seconds_tell_xray_grades_that_neither_one_frame_nor_frames_without_times_tell(xray):
    statistics, times_s, labels = xray
    looks = everywhere(statistics)
    pairs = list(zip(statistics, times_s, strict=True))
    known = np.concatenate([looks, [bolus_statistics(s, t) for s, t in pairs]], axis=1)
    unknown = np.concatenate([looks, [bolus_statistics(s, t / t[-1]) for s, t in pairs]], axis=1)
    with_seconds = probe(known, labels)
    single = max(probe(at(statistics, position), labels) for position in (0, 0.5, 0.75, 1))
    assert with_seconds > 0.80
    assert single < with_seconds - 0.25
    assert probe(unknown, labels) < with_seconds - 0.15
    late = labels >= 2  # without times, delayed filling is hardly told from normal filling
    assert probe(unknown[late], labels[late]) < 0.70 < 0.85 < probe(known[late], labels[late])


def test_times_of_xray_frames_alone_hardly_tell_the_grade(xray):
    _, times_s, labels = xray
    assert probe(np.array([(t[-1], t[1]) for t in times_s]), labels) < 0.50


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_of_unknown_moment_is_ambiguous_for_half_of_the_class_pairs(kind, retinal, xray):
    statistics, labels = retinal if kind == "ffa_leak" else (xray[0], xray[2])
    rng = np.random.default_rng(0)
    frame = np.stack([s[rng.integers(len(s))] for s in statistics])
    middle = at(statistics, 0.5)
    pairs = list(itertools.combinations(range(len(CLASSES[kind])), 2))
    for shown in (frame, middle):
        scores = [
            probe(shown[chosen], labels[chosen], trees=40) for pair in pairs for chosen in [np.isin(labels, pair)]
        ]
        assert len(scores) == len(pairs) > 5
        assert sum(score < 0.75 for score in scores) >= len(pairs) / 2

"""A check of a datalist finds every mistake planted in a clean list, names its place, and finds nothing else."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid

from scripts.datalists import check as check_module
from scripts.datalists.check import Checked, check_datalist, decoded_bytes, pixel_digest
from scripts.datalists.datalist import read_datalist
from scripts.datalists.findings import PROBLEMS, SUSPICIOUS, Exam
from scripts.dicom.header import SequenceHeader
from scripts.errors import SequenceError
from scripts.keys import CLASSES, FRAME_TIMES, IMAGE, LABEL, MODALITY, PATIENT, SEQUENCE, SPLITS, TASK, TYPE
from tests.conftest import PERSON, SC, assert_no_person, ramp, save_dicom
from tests.exams import SIDE, write_exam

FRAME_COUNT, FRAME_BYTES = 4, SIDE * SIDE
TWO_CLASSES = {TYPE: "binary", CLASSES: ["slow", "fast"]}


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def content(root) -> dict[str, Any]:
    """A list with nothing wrong in it: in each split two patients with one sequence of each class."""
    splits: dict[str, Any] = {TASK: TWO_CLASSES}
    for split in SPLITS:
        splits[split] = []
        for i in range(4):
            name = f"{split}/{i}.dcm"
            write_exam(root / name, FRAME_COUNT, seed=10 * SPLITS.index(split) + i)
            entry = {IMAGE: name, LABEL: i % 2, PATIENT: f"{split} {i // 2}", SEQUENCE: name}
            splits[split].append(entry)
    return splits


@pytest.fixture
def check(tmp_path, root):
    def run(content: dict[str, Any], **settings: Any) -> Checked:
        path = tmp_path / "list.json"
        path.write_text(json.dumps(content))
        return check_datalist(path, root, progress=False, **settings)

    return run


def read_of(checked: Checked) -> dict[str, Any]:
    """What was read of each entry, by its place."""
    return {exam.where: exam.reading for exam in checked.exams}


def as_found(checked: Checked) -> list[tuple[str, str]]:
    return sorted((finding.kind, finding.where) for finding in checked.findings)


def test_clean_list_gives_no_findings_and_what_every_header_says(check, content):
    checked = check(content)
    assert checked.findings == []
    assert [exam.where for exam in checked.exams] == [f"{split}[{i}]" for split in SPLITS for i in range(4)]
    read = read_of(checked)
    for reading in read.values():
        assert (reading.container, reading.modality, reading.photometric) == ("dicom", "XA", "MONOCHROME2")
        assert (reading.num_frames, reading.rows, reading.columns, reading.bits_stored) == (FRAME_COUNT, SIDE, SIDE, 8)
        assert (reading.unknown_times, reading.duration_s, reading.gap_ms) == (0, 0.3, 100.0)
        assert reading.transfer_syntaxes == (uid.ExplicitVRLittleEndian,)
    assert len({reading.digest for reading in read.values()}) == len(read) == 12


def set_entry(split: str, position: int, **values: Any):
    """A change of one entry; None takes the key away."""

    def change(content: dict[str, Any], root: Path) -> None:
        entry = content[split][position]
        entry.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del entry[key]

    return change


def replace_file(write):
    """A change of the file of training[1]."""
    return lambda content, root: write(root / "training/1.dcm")


def without_all(key: str, *splits: str):
    def change(content: dict[str, Any], root: Path) -> None:
        for split in splits or SPLITS:
            for entry in content[split]:
                del entry[key]

    return change


def set_task(task: Any):
    return lambda content, root: content.update({TASK: task})


def link_outside(content: dict[str, Any], root: Path) -> None:
    write_exam(root.parent / "outside.dcm", seed=99)
    (root / "link.dcm").symlink_to(root.parent / "outside.dcm")
    content["test"][0][IMAGE] = "link.dcm"


def copy_of_training_0(split: str):
    def change(content: dict[str, Any], root: Path) -> None:
        shutil.copy(root / "training/0.dcm", root / split / "copy.dcm")
        content[split][3][IMAGE] = f"{split}/copy.dcm"

    return change


def empty_split(content: dict[str, Any], root: Path) -> None:
    content["validation"] = []


def one_patient(content: dict[str, Any], root: Path) -> None:
    for entry in content["validation"]:
        entry[PATIENT] = "the same"


def loop_of_links(content: dict[str, Any], root: Path) -> None:
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    content["test"][0][IMAGE] = "a/run.dcm"


def noise(num_frames: int = FRAME_COUNT) -> np.ndarray:
    return np.random.default_rng(77).integers(0, 256, (num_frames, SIDE, SIDE), dtype=np.uint8)


def empty_middle() -> np.ndarray:
    frames = noise()
    frames[FRAME_COUNT // 2] = 5
    return frames


TIMED = {"FrameIncrementPointer": 0x00181063, "FrameTime": 100.0}

# change of the clean list -> every finding it must give: kind, place, parts of its text
PLANTED: dict[str, tuple[Any, list[tuple[str, str, list[str]]]]] = {
    "label out of range": (
        set_entry("training", 0, label=7),
        [("contract", "training[0]", ["label is 7", "0 slow, 1 fast"])],
    ),
    "path above dataset_dir": (
        set_entry("test", 0, image="../x.dcm"),
        [("contract", "test[0]", ["../x.dcm", "inside dataset_dir"])],
    ),
    "absolute path": (
        set_entry("test", 0, image="/etc/hostname"),
        [("contract", "test[0]", ["inside dataset_dir"])],
    ),
    "link out of dataset_dir": (link_outside, [("contract", "test[0]", ["link.dcm", "inside dataset_dir"])]),
    "links in a circle": (loop_of_links, [("contract", "test[0]", [])]),
    "entry without image": (set_entry("test", 0, image=None), [("contract", "test[0]", ["image is absent"])]),
    "entry that is no object": (
        lambda content, root: content["test"].__setitem__(0, 5),
        [("contract", "test[0]", ["image is absent"])],
    ),
    "split that is no list": (
        lambda content, root: content.update(test={"a": 1}),
        [("contract", "test", ["needs a list"]), ("classes", "test", ["no sequences"])],
    ),
    "task of another type": (
        set_task({TYPE: "regression", CLASSES: ["slow", "fast"]}),
        [("contract", "task", ["task.type is regression"]), *[("label", s, ["none of its 4"]) for s in SPLITS[:2]]],
    ),
    "sequence name twice": (
        set_entry("test", 2, sequence="training/0.dcm"),
        [("contract", "test[2]", ["sequence", "training[0]", "each sequence once"])],
    ),
    "file twice": (
        set_entry("training", 2, image="training/0.dcm"),
        [("contract", "training[2]", ["image", "training[0]"]), ("duplicate", "training[2]", ["training[0]"])],
    ),
    "patient in two splits": (
        set_entry("test", 1, patient="training 0"),
        [("leak", "test[1]", ["training[0] (training/0.dcm)"])],
    ),
    "copy in another split": (
        copy_of_training_0("test"),
        [("leak", "test[3]", ["same pixels as training[0] (training/0.dcm)"])],
    ),
    "copy in the same split": (
        copy_of_training_0("training"),
        [("duplicate", "training[3]", ["same pixels as training[0] (training/0.dcm)"])],
    ),
    "one label missing": (set_entry("training", 1, label=None), [("label", "training[1]", ["no label"])]),
    "label missing in test": (set_entry("test", 1, label=None), []),
    "no labels at all": (
        without_all(LABEL, "training", "validation"),
        [("label", "training", ["none of its 4"]), ("label", "validation", ["none of its 4"])],
    ),
    "class absent": (
        lambda content, root: [entry.update(label=0) for entry in content["test"]],
        [("classes", "test", ["no sequence of class fast"])],
    ),
    "empty validation": (empty_split, [("classes", "validation", ["no sequences"])]),
    "one patient": (one_patient, [("patients", "validation", ["one patient"])]),
    "patient missing once": (set_entry("test", 0, patient=None), [("patients", "test[0]", ["cannot be seen"])]),
    "patients missing": (without_all(PATIENT), [("patients", "list", ["no entry has", "cannot be seen"])]),
    "frames outside": (
        set_entry("training", 0, frames=[0, 4]),
        [("frames", "training[0]", ["[0, 4]", "below 4"])],
    ),
    "frames out of order": (set_entry("training", 0, frames=[2, 1]), [("contract", "training[0]", ["ascending"])]),
    "frames that are no numbers": (set_entry("training", 0, frames="all"), [("contract", "training[0]", ["frames"])]),
    "times of another length": (
        set_entry("training", 0, frame_times_ms=[0, 1, 2]),
        [("frames", "training[0]", [FRAME_TIMES, "3 values"])],
    ),
    "times that decrease": (
        set_entry("training", 0, frame_times_ms=[0, 5, 4, 6]),
        [("frames", "training[0]", [FRAME_TIMES])],
    ),
    "times unknown in the list": (
        set_entry("training", 0, frame_times_ms=[0, None, None, None]),
        [("times", "training[0]", ["unknown"])],
    ),
    "times partly unknown": (
        set_entry("training", 0, frame_times_ms=[0, 10, None, 20]),
        [("times", "training[0]", ["unknown for 1 of 4 frames"])],
    ),
    "times all the same": (
        set_entry("training", 0, frame_times_ms=[3, 3, 3, 3]),
        [("times", "training[0]", ["all 4 known times are the same"])],
    ),
    "zero gap": (
        set_entry("training", 0, frame_times_ms=[0, 10, 10, 20]),
        [("times", "training[0]", ["1 of 3 gaps are 0 ms"])],
    ),
    "one frame used": (set_entry("training", 0, frames=[2]), [("single_frame", "training[0]", ["one frame"])]),
    "another modality in the list": (
        set_entry("training", 0, modality="OP"),
        [("header", "training[0]", [f"{MODALITY} is OP in the list, XA in the exam"])],
    ),
    "file absent": (
        lambda content, root: (root / "training/1.dcm").unlink(),
        [("unreadable", "training[1]", ["absent"])],
    ),
    "text file": (
        replace_file(lambda path: path.write_text("nothing of an exam " * 20)),
        [("unreadable", "training[1]", ["not DICOM"])],
    ),
    "file cut off": (
        replace_file(lambda path: os.truncate(path, path.stat().st_size - 100)),
        [("unreadable", "training[1]", ["cut off"])],
    ),
    "single frame": (
        replace_file(lambda path: write_exam(path, 1, seed=50)),
        [("single_frame", "training[1]", ["one frame"])],
    ),
    "times unknown in the exam": (
        replace_file(lambda path: save_dicom(path, noise())),
        [("times", "training[1]", ["unknown"])],
    ),
    "disagreeing tags": (
        replace_file(lambda path: save_dicom(path, noise(), **TIMED, CineRate=30)),
        [("header", "training[1]", ["FrameTime gives 100 ms", "CineRate 30 frames/s"])],
    ),
    "middle frame of one value": (
        replace_file(lambda path: save_dicom(path, empty_middle(), **TIMED)),
        [("constant", "training[1]", ["middle frame"])],
    ),
    "image of one value": (
        replace_file(lambda path: save_dicom(path, np.full((1, SIDE, SIDE), 9, np.uint8))),
        [("unreadable", "training[1]", ["all alike"])],
    ),
    "burned-in annotation": (
        replace_file(lambda path: save_dicom(path, noise(), **TIMED, BurnedInAnnotation="YES")),
        [("header", "training[1]", ["BurnedInAnnotation", "YES"])],
    ),
    "secondary capture": (
        replace_file(lambda path: save_dicom(path, noise(), **TIMED, SOPClassUID=SC, BurnedInAnnotation="NO")),
        [("header", "training[1]", ["secondary capture"])],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_mistake_is_found_at_its_place_and_nothing_else(check, content, root, name):
    change, expected = PLANTED[name]
    change(content, root)
    checked = check(content)
    assert as_found(checked) == sorted((kind, where) for kind, where, _ in expected)
    for kind, where, parts in expected:
        finding = next(f for f in checked.findings if (f.kind, f.where) == (kind, where))
        assert all(part in finding.text for part in parts), finding.text
        assert finding.fails == (kind in PROBLEMS) and str(root) not in finding.text and "\n" not in str(finding)
    broken = {where for kind, where, _ in expected if kind in ("contract", "unreadable", "frames") and "[" in where}
    kept = {where for where, reading in read_of(checked).items() if reading is not None}
    assert kept >= {exam.where for exam in checked.exams} - broken  # all the others were read to the end


@pytest.mark.parametrize("name", PLANTED)
def test_list_is_refused_in_training_where_it_breaks_the_contract_and_nowhere_else(check, content, root, name):
    change, _ = PLANTED[name]
    change(content, root)
    checked = check(content)
    shared_patient = [finding for finding in checked.findings if "its patient is also" in finding.text]
    breaks = bool(shared_patient) or any(finding.kind == "contract" for finding in checked.findings)
    try:
        read_datalist(root.parent / "list.json", root)
    except (ValueError, RuntimeError):  # the latter of links in a circle
        assert breaks
    else:
        assert not breaks


def test_planted_mistakes_cover_every_kind_of_finding():
    planted = {kind for _, expected in PLANTED.values() for kind, _, _ in expected}
    assert planted | {"size"} == set(PROBLEMS) | set(SUSPICIOUS)  # size: the test below


def test_all_mistakes_of_a_list_are_found_in_one_run(check, content, root):
    set_entry("training", 0, label=7)(content, root)
    set_entry("validation", 1, image="../x.dcm")(content, root)
    set_entry("test", 1, patient="training 1")(content, root)
    set_entry("test", 2, frame_times_ms=[0, 10, 10, 20])(content, root)
    (root / "test/3.dcm").unlink()
    assert as_found(check(content)) == [
        ("contract", "training[0]"),
        ("contract", "validation[1]"),
        ("leak", "test[1]"),
        ("times", "test[2]"),
        ("unreadable", "test[3]"),
    ]


@pytest.mark.parametrize("share", [0.6, 0.4])
def test_size_is_suspicious_from_half_of_the_limit_on(check, content, root, share):
    write_exam(root / "test/0.dcm", 40, seed=60)
    limit = int(40 * FRAME_BYTES / share)
    checked = check(content, max_sequence_bytes=limit)
    assert as_found(checked) == [("size", "test[0]")] * (share > 0.5)
    assert all(f"{40 * FRAME_BYTES} bytes, 60%" in finding.text for finding in checked.findings)


def test_exam_above_the_limit_is_unreadable_and_costs_no_other(check, content, root):
    write_exam(root / "test/0.dcm", 40, seed=60)
    checked = check(content, max_sequence_bytes=40 * FRAME_BYTES - 1)
    assert as_found(checked) == [("unreadable", "test[0]")]
    assert "max_sequence_bytes" in checked.findings[0].text
    assert sum(reading is not None for reading in read_of(checked).values()) == 11


def test_frames_of_the_list_decide_frames_duration_and_gaps(check, content):
    content["training"][0] |= {"frames": [0, 2], FRAME_TIMES: [0, 10, 40, 90]}
    reading = read_of(check(content))["training[0]"]
    assert (reading.num_frames, reading.duration_s, reading.gap_ms) == (2, 0.04, 40.0)


# --- the digest of pixels ---


def digest_of(check, image: Any) -> str:
    (exam,) = check({"test": [{IMAGE: image}]}).exams
    assert exam.reading is not None and exam.reading.digest is not None
    return exam.reading.digest


FRAMES_12_BIT = ramp(6, 14, 11, bits=12)


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless]
)
def test_digest_is_that_of_the_pixels_in_every_encoding_and_name(check, root, syntax):
    save_dicom(root / "first.dcm", FRAMES_12_BIT, bits=12)
    save_dicom(root / "other/name.dcm", FRAMES_12_BIT, bits=12, syntax=syntax, SeriesInstanceUID="1.2.3", **TIMED)
    assert dcmread(root / "first.dcm").SOPInstanceUID != dcmread(root / "other/name.dcm").SOPInstanceUID
    assert digest_of(check, "first.dcm") == digest_of(check, "other/name.dcm")


def test_digest_of_single_frame_files_is_that_of_the_multi_frame_file(check, root):
    save_dicom(root / "run.dcm", FRAMES_12_BIT, bits=12)
    for t, frame in enumerate(FRAMES_12_BIT):
        save_dicom(root / f"series/{9 - t}.dcm", frame[None], bits=12, NumberOfFrames=None, InstanceNumber=t + 1)
    assert digest_of(check, "run.dcm") == digest_of(check, "series")


def test_digest_tells_other_pixels_shapes_and_frame_numbers_apart():
    frame = np.arange(24, dtype=np.uint8).reshape(4, 6)
    changed = frame.copy()
    changed[3, 5] += 1
    colour = np.stack([frame] * 3, axis=-1)
    digests = [
        pixel_digest(frame, 5),
        pixel_digest(changed, 5),
        pixel_digest(frame.reshape(6, 4), 5),
        pixel_digest(frame, 6),
        pixel_digest(colour, 5),
    ]
    assert None not in digests and len(set(digests)) == 5
    assert pixel_digest(frame.astype(">i2"), 5) == pixel_digest(frame, 5)


def test_digest_of_a_frame_without_content_is_none_so_that_strangers_are_not_alike():
    red = np.broadcast_to(np.array([200, 10, 10], np.uint8), (4, 6, 3))
    assert pixel_digest(np.full((4, 6), 7, np.uint8), 5) is None
    assert pixel_digest(red, 5) is None


def test_decoded_bytes_count_samples_and_whole_bytes():
    header = SequenceHeader("dicom", (), 10, 4, 6, np.zeros(10), bits_stored=12)
    colour = SequenceHeader("dicom", (), 10, 4, 6, np.zeros(10), photometric="RGB", bits_stored=8)
    assert (decoded_bytes(header), decoded_bytes(colour)) == (10 * 24 * 2, 10 * 24 * 3)


# --- other containers ---


def save_pictures(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{t}.png")
    rows = [f"{t}.png,{0.5 * t}" for t in range(len(frames))]
    (folder / "times.csv").write_text("\n".join(["file,elapsed_seconds", *rows]))


def test_images_and_nifti_are_checked_as_dicom_is_with_the_modality_of_the_list(check, root):
    frames = noise()
    save_pictures(root / "pictures", frames)
    image = nibabel.Nifti1Image(np.transpose(frames, (2, 1, 0))[:, :, None], np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.25
    nibabel.save(image, root / "run.nii.gz")
    entries = [{IMAGE: name, PATIENT: name, MODALITY: "OP"} for name in ("pictures", "run.nii.gz")]
    checked = check({"test": entries})
    pictures, nifti = read_of(checked).values()
    assert (pictures.container, pictures.modality, pictures.num_frames, pictures.gap_ms) == ("images", "OP", 4, 500.0)
    assert (nifti.container, nifti.modality, nifti.num_frames, nifti.gap_ms) == ("nifti", "OP", 4, 250.0)
    assert not any(finding.fails for finding in checked.findings)


def test_pictures_are_a_copy_of_the_exam_they_were_exported_from(check, content, root):
    save_dicom(root / "training/0.dcm", noise(), **TIMED)
    save_pictures(root / "pictures", noise())
    content["test"][3][IMAGE] = "pictures"
    leaks = [(finding.kind, finding.where, finding.text) for finding in check(content).findings if finding.fails]
    assert leaks == [("leak", "test[3]", "same pixels as training[0] (training/0.dcm)")]


def test_video_without_its_package_says_what_to_install(check, content, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (root / "run.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    content["test"][3][IMAGE] = "run.mp4"
    (finding,) = check(content).findings
    assert str(finding) == "test[3] run.mp4: Reading a video needs the package av (PyAV): pip install av"
    assert finding.fails


# --- many, bad, and private exams ---


def test_thousand_sequences_are_decoded_one_frame_each(check, root, monkeypatch):
    root.mkdir()
    headers, decoded = [], []

    def read_header(source: Path, max_sequence_bytes: int) -> SequenceHeader:
        headers.append(source)
        return SequenceHeader("dicom", (source,), 9, 8, 8, np.arange(9.0))

    def read_frames(header: SequenceHeader, indices: list[int]) -> np.ndarray:
        decoded.append((header.files[0], *indices))
        return np.random.default_rng(int(header.files[0].stem)).integers(0, 256, (len(indices), 8, 8), dtype=np.uint8)

    monkeypatch.setattr(check_module, "read_header", read_header)
    monkeypatch.setattr(check_module, "read_frames", read_frames)
    checked = check({"test": [{IMAGE: f"{i}.dcm", PATIENT: i} for i in range(1000)]})
    assert checked.findings == []
    assert sorted(decoded) == sorted((root / f"{i}.dcm", 4) for i in range(1000))
    assert len(headers) == 1000


@pytest.mark.parametrize("limit, side_by_side", [(0, False), (2**26, True)])
def test_large_frames_are_held_one_at_a_time_and_small_ones_side_by_side(
    check, content, monkeypatch, limit, side_by_side
):
    held, most = [], []
    read_frames = check_module.read_frames

    def slowly(header, indices):
        held.append(header)
        most.append(len(held))
        time.sleep(0.01)
        frames = read_frames(header, indices)
        held.remove(header)
        return frames

    monkeypatch.setattr(check_module, "read_frames", slowly)
    monkeypatch.setattr(check_module, "LARGE_FRAME_BYTES", limit)
    assert check(content).findings == []
    assert len(most) == 12 and (max(most) > 1) == side_by_side


def test_error_of_another_kind_costs_one_exam_and_tells_its_type_alone(check, content, monkeypatch):
    read_header = check_module.read_header

    def fail_once(source: Path, max_sequence_bytes: int) -> SequenceHeader:
        if source.name == "2.dcm" and source.parent.name == "test":
            raise KeyError(PERSON["PatientName"])
        return read_header(source, max_sequence_bytes)

    monkeypatch.setattr(check_module, "read_header", fail_once)
    checked = check(content)
    assert [str(finding) for finding in checked.findings] == ["test[2] test/2.dcm: unreadable (KeyError)"]
    assert sum(reading is not None for reading in read_of(checked).values()) == 11


def test_malformed_files_are_problems_by_path_while_the_others_are_checked(tmp_path, shared_data):
    bad = [entry["file"] for entry in json.loads((shared_data / "malformed/INDEX.json").read_text())["files"]]
    good = [f"xa_nema_wg04_XA1_{code}.dcm" for code in ("UNC", "RLE", "JPLL", "JLSL", "J2KR")]  # one run, five codings
    names = [f"malformed/{name}" for name in bad] + [f"real_xa/{name}" for name in good]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"test": [{IMAGE: name, PATIENT: name} for name in names]}))
    checked = check_datalist(path, shared_data, progress=False)
    problems = [(f.kind, f.where, f.source) for f in checked.findings if f.fails]
    assert problems == [("unreadable", f"test[{i}]", name) for i, name in enumerate(names[: len(bad)])]
    copies = [f.source for f in checked.findings if f.kind == "duplicate"]
    assert copies == names[len(bad) + 1 :] and len(bad) >= 16 and len(copies) == 4


def test_nothing_of_a_person_is_in_what_was_found(check, content, root, caplog, capsys):
    save_dicom(root / "training/0.dcm", noise(), **TIMED, CineRate=30, **PERSON)
    save_dicom(root / "test/0.dcm", noise(3), Rows=7, **PERSON)
    save_dicom(root / "test/1.dcm", noise(), PhotometricInterpretation=PERSON["PatientName"][:16], **PERSON)
    save_dicom(root / "test/2.dcm", noise(5), **PERSON, BurnedInAnnotation="QZL", Modality="QZL")
    checked = check(content)
    assert {("unreadable", "test[0]"), ("unreadable", "test[1]"), ("header", "test[2]")} <= set(as_found(checked))
    assert_no_person(checked, checked.findings, caplog.text, *capsys.readouterr())


def test_patient_of_the_list_is_in_no_text(check, content, root):
    set_entry("test", 1, patient="training 0")(content, root)
    texts = [finding.text for finding in check(content).findings]
    assert len(texts) == 1 and "training 0" not in texts[0]


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"train": []}'])
def test_what_is_no_datalist_is_refused(tmp_path, root, text):
    root.mkdir()
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError) as error:
        check_datalist(tmp_path / "list.json", root, progress=False)
    assert not isinstance(error.value, SequenceError)


def test_absent_list_or_folder_is_refused(tmp_path, root):
    with pytest.raises(FileNotFoundError):
        check_datalist(tmp_path / "list.json", tmp_path, progress=False)
    (tmp_path / "list.json").write_text('{"test": []}')
    with pytest.raises(FileNotFoundError):
        check_datalist(tmp_path / "list.json", root, progress=False)


def test_names_nobody_can_print_stand_as_question_marks(check, content):
    content["test"][0][IMAGE] = "test/\x1b[31m\nred\udcff.dcm"
    (finding,) = check(content).findings
    assert finding.source == "test/?[31m?red?.dcm" and finding.text.isprintable()
    assert Exam("test", 0, {}).source == ""

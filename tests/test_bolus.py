"""The bolus curve: phantom runs of known contrast in each frame, synthetic dye in an eye, two real X-ray runs."""

import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.dicom.header import SequenceHeader
from scripts.dicom.sequence import read_frames, read_header
from scripts.sequences import phantom_xa
from scripts.sequences.bolus import (
    CHUNK_FRAMES,
    CURVE_FRAMES,
    THUMBNAIL_PIXELS,
    bolus_curve,
    expand,
    is_dark,
    peak,
    pre_contrast,
    read_curve,
    thumbnail,
)
from scripts.sequences.phantom_ffa import draw_fundus, smooth_noise
from scripts.sequences.phantom_xa import XA_CLASSES, xa_sequence

CASES = [(label, seed) for label in range(len(XA_CLASSES)) for seed in range(4)]


def header_of(stored: np.ndarray, **fields) -> SequenceHeader:
    times = np.arange(len(stored)) * 66.7
    fields = {"container": "dicom", "facts": {"Modality": "XA"}, **fields}
    return SequenceHeader(
        files=(Path("run.dcm"),),
        num_frames=len(stored),
        rows=stored.shape[1],
        columns=stored.shape[2],
        frame_times_ms=times,
        **fields,
    )


def reader_of(stored: np.ndarray, calls: list[list[int]] | None = None):
    def read(header: SequenceHeader, indices: list[int]) -> np.ndarray:
        if calls is not None:
            calls.append(list(indices))
        return stored[list(indices)]

    return read


@cache
def phantom_run(label: int, seed: int, rows: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W) of a run and the mean contrast in its vessels, (T,), taken where the phantom computes it."""
    truth = []
    original = phantom_xa.contrast
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phantom_xa, "contrast", lambda *given: truth.append(original(*given)) or truth[-1])
        frames, _ = xa_sequence(np.random.default_rng([seed, label, rows]), label, rows)
    assert len(truth) == len(frames)
    return frames, np.array([values.mean() for values in truth])


def curve_of(frames: np.ndarray, **fields) -> np.ndarray:
    return read_curve(header_of(frames, **fields), reader_of(frames))


def dye_run(num_frames: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An eye in which dye arrives, peaks in the vessels at frame 8 and leaves; frames (T, 160, 160), dye (T,)."""
    rng = np.random.default_rng(seed)
    background, vessels, disc = draw_fundus(rng, 160)
    moments = np.arange(num_frames, dtype=np.float64)
    dye = np.where(moments < 4, 0.0, np.exp(-((moments - 8) ** 2) / np.where(moments < 8, 8, 90)))
    flush = np.clip((moments - 4) / 8, 0, 1)  # the tissue keeps its dye
    frames = [dye[t] * vessels + flush[t] * (background + disc) + 0.04 for t in range(num_frames)]
    noise = rng.normal(0, 0.015, (num_frames, 160, 160))
    return np.clip(np.stack(frames) * rng.uniform(0.9, 1.0, (num_frames, 1, 1)) + noise, 0, 1), dye


# --- X-ray: dark contrast ---


@pytest.mark.parametrize(("label", "seed"), CASES)
def test_curve_of_a_phantom_run_follows_its_contrast(label, seed):
    frames, truth = phantom_run(label, seed)
    curve = curve_of(frames)
    assert curve.shape == (len(frames),) and curve.dtype == np.float64
    assert np.corrcoef(curve, truth)[0, 1] > 0.85
    assert truth[peak(curve)] > 0.85 * truth.max()


@pytest.mark.parametrize(("label", "seed"), CASES)
def test_pre_contrast_frames_of_a_phantom_run_hold_little_contrast(label, seed):
    frames, truth = phantom_run(label, seed)
    before = pre_contrast(curve_of(frames))
    assert len(before) >= 1 and (np.diff(before) == 1).all()
    assert truth[before].mean() < 0.2 * truth.max()
    assert before[-1] < truth.argmax()


def test_pre_contrast_frames_are_free_of_contrast_where_the_run_has_enough_of_them():
    checked = 0
    for case in CASES:
        frames, truth = phantom_run(*case)
        if (truth < 0.01 * truth.max())[: truth.argmax()].sum() >= 8:
            before = pre_contrast(curve_of(frames))
            assert truth[before].max() < 0.05 * truth.max()
            assert 0 not in before  # the first frame is bright and noisy
            checked += 1
    assert checked >= 4


def test_curve_of_a_panning_table_still_peaks_with_the_contrast():
    frames, truth = phantom_run(3, 1)
    pan = np.linspace(0, 24, len(frames)).round().astype(int)
    ramp = np.linspace(0.6, 1.3, 128 + 24)  # the far side of the chest is twice as bright
    panned = np.stack(
        [
            np.pad(f, ((0, 0), (0, 24)), mode="reflect")[:, s:][:, :128] * ramp[s : s + 128]
            for f, s in zip(frames, pan, strict=True)
        ]
    )
    means = panned.mean(axis=(1, 2))
    assert truth[means.argmin()] < 0.5 * truth.max()  # what mean darkness would say
    assert truth[peak(curve_of(panned))] > 0.9 * truth.max()


def test_curve_does_not_depend_on_the_exposure_of_a_frame():
    frames, _ = phantom_run(2, 0)
    flicker = np.random.default_rng(0).uniform(0.8, 1.2, (len(frames), 1, 1))
    small = thumbnail(frames)
    np.testing.assert_allclose(bolus_curve(small * flicker, True), bolus_curve(small, True), rtol=1e-4)


@pytest.mark.parametrize(("gain", "offset"), [(4095.0, 0.0), (4095.0, 300.0), (0.01, -2.0)])
@pytest.mark.parametrize("dark", [True, False])
def test_curve_does_not_depend_on_stored_units(gain, offset, dark):
    small = thumbnail(phantom_run(2, 0)[0])
    np.testing.assert_allclose(bolus_curve(small * gain + offset, dark), bolus_curve(small, dark), rtol=2e-3)


def test_a_noisy_bright_first_frame_is_no_peak():
    rng = np.random.default_rng(0)
    still = np.clip(0.5 + 0.1 * smooth_noise(rng, 128, 0.1), 0.2, 1.0)
    frames = np.stack([rng.poisson(still * 600) / 600 for _ in range(12)])
    frames[0] = 1.1 * rng.poisson(still * 150) / 150
    line = np.zeros((128, 128))
    line[30:100, 60:64] = 0.3
    frames[8] *= np.exp(-ndimage.gaussian_filter(line, 1))
    assert peak(bolus_curve(frames, True)) == 8


def test_a_blanked_frame_is_no_peak():
    frames, truth = phantom_run(3, 0)
    frames = frames.copy()
    frames[2] = np.random.default_rng(0).random(frames[2].shape) * 0.004
    assert truth[peak(bolus_curve(thumbnail(frames), True))] > 0.9 * truth.max()


# --- retina: bright contrast ---


@pytest.mark.parametrize("seed", range(6))
def test_curve_of_dye_in_an_eye_peaks_when_the_vessels_are_brightest(seed):
    frames, dye = dye_run(seed=seed)
    curve = curve_of(frames, facts={"Modality": "OP"})
    assert dye[peak(curve)] > 0.9
    assert pre_contrast(curve).max() <= 4
    assert np.corrcoef(curve, dye)[0, 1] > 0.9


def test_a_bright_frame_without_dye_before_the_run_is_no_peak():
    frames, dye = dye_run()
    background, vessels, _ = draw_fundus(np.random.default_rng(0), 160)
    red_free = np.clip(0.9 - 0.5 * vessels + background, 0, 1)  # vessels are dark in it, and all else is bright
    frames = np.concatenate([red_free[None], frames])
    assert frames.mean(axis=(1, 2)).argmax() == 0
    assert dye[peak(curve_of(frames, facts={"Modality": "OP"})) - 1] > 0.9


# --- what is read, and how it is shown ---


@pytest.mark.parametrize("num_frames", [1, 2, 31, 32, 33, 96, 200])
def test_read_curve_decodes_few_frames_in_small_chunks(num_frames):
    stored = np.random.default_rng(0).integers(0, 255, (num_frames, 20, 24)).astype(np.uint8)
    calls: list[list[int]] = []
    curve = read_curve(header_of(stored), reader_of(stored, calls))
    read = [index for call in calls for index in call]
    assert curve.shape == (num_frames,)
    assert len(read) == min(num_frames, CURVE_FRAMES)
    assert read == sorted(set(read)) and read[0] == 0 and read[-1] == num_frames - 1
    assert max(len(call) for call in calls) <= CHUNK_FRAMES
    np.testing.assert_allclose(curve[read], bolus_curve(thumbnail(stored[read]), True), rtol=1e-5)


def test_curve_of_monochrome1_is_that_of_the_same_picture_in_monochrome2():
    frames, _ = phantom_run(3, 0)
    stored = (frames * 1023).astype(np.uint16)
    np.testing.assert_allclose(
        curve_of(1023 - stored, photometric="MONOCHROME1", bits_stored=10), curve_of(stored, bits_stored=10), rtol=1e-4
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_counts_as_the_darkest_pixel(photometric):
    frames, _ = phantom_run(3, 0)
    stored = (np.clip(frames, 0.05, 1) * 1000).astype(np.int16)
    stored = 1050 - stored if photometric == "MONOCHROME1" else stored
    padded, darkest = stored.copy(), stored.copy()
    padded[:, :, :20] = -2000
    darkest[:, :, :20] = stored[:, :, 20:].max() if photometric == "MONOCHROME1" else stored[:, :, 20:].min()
    np.testing.assert_allclose(
        curve_of(padded, photometric=photometric, padding=(-2000, -2000)),
        curve_of(darkest, photometric=photometric),
        rtol=0.02,  # the darkest of a chunk stands for that of the run
    )


def test_curve_of_grey_pictures_stored_in_colour_is_that_of_grey():
    frames, dye = dye_run()
    stored = (frames * 255).astype(np.uint8)
    colour = np.repeat(stored[..., None], 3, axis=-1)
    curve = curve_of(colour, photometric="RGB", facts={}, container="images")
    np.testing.assert_allclose(curve, curve_of(stored, facts={"Modality": "OP"}), rtol=1e-4)
    assert dye[peak(curve)] > 0.9


@pytest.mark.parametrize(
    ("modality", "photometric", "dark"),
    [
        ("XA", "MONOCHROME2", True),
        ("RF", "MONOCHROME1", True),
        ("", "MONOCHROME2", True),
        ("XA", "RGB", True),
        ("OT", "RGB", True),
        ("", "RGB", False),
        ("OP", "MONOCHROME2", False),
        ("OPT", "MONOCHROME2", False),
        ("OP", "YBR_FULL_422", False),
    ],
)
def test_contrast_is_bright_in_retinal_images_and_colour_of_unknown_origin(modality, photometric, dark):
    header = header_of(np.zeros((1, 4, 4)), photometric=photometric, facts={"Modality": modality} if modality else {})
    assert is_dark(header) is dark


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(512, 512, (128, 128)), (1024, 768, (128, 96)), (300, 300, (100, 100)), (96, 64, (96, 64)), (1, 5000, (1, 5000))],
)
def test_thumbnail_is_the_mean_of_square_blocks(rows, columns, expected):
    frames = np.random.default_rng(0).integers(0, 4096, (2, rows, columns)).astype(np.uint16)
    small = thumbnail(frames)
    assert small.shape == (2, *expected) and small.dtype == np.float32
    side = rows // expected[0]
    np.testing.assert_allclose(small[1, 0, 3], frames[1, :side, 3 * side : 4 * side].mean(), rtol=1e-6)
    assert max(expected) <= THUMBNAIL_PIXELS or rows == 1


# --- peak, start, expansion ---


def test_expand_keeps_the_known_frames_and_joins_them_by_lines():
    np.testing.assert_allclose(expand(np.array([1.0, 3.0, 0.0]), np.array([0, 2, 5]), 6), [1, 2, 3, 2, 1, 0])
    np.testing.assert_array_equal(expand(np.array([7.0]), np.array([0]), 1), [7.0])


def test_peak_is_the_first_of_equals():
    assert peak(np.array([0.0, 2.0, 1.0, 2.0])) == 1
    assert peak(np.array([5.0])) == 0


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([1, 1, 1, 1, 1, 1, 9, 10, 9], [2, 3]),  # six frames before: the middle third
        ([1, 1, 1, 9], [1]),
        ([1, 1, 9], [0, 1]),
        ([1, 9], [0]),
        ([9], [0]),
        ([4, 4, 4], [0]),  # no contrast at all
        ([9, 5, 2, 3], [2]),  # already there: the frame with the least
        ([1, 1, 1, 1, 1, 1, 1.5, 3, 6, 9, 10], [2, 3, 4]),  # a slow rise: 1.5 is within a tenth
        ([1, 1, 1, 1, 1, 1, 5, 10, 5, 1, 1, 1], [2, 3]),  # what follows the peak does not count
    ],
)
def test_pre_contrast_is_the_middle_third_of_the_frames_before_the_rise(curve, expected):
    assert pre_contrast(np.array(curve, dtype=np.float64)).tolist() == expected


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 50, 200])
def test_pre_contrast_of_any_curve_is_inside_the_run_and_the_same_each_time(num_frames):
    for seed in range(30):
        curve = np.random.default_rng(seed).random(num_frames)
        before = pre_contrast(curve)
        assert len(before) >= 1 and before[0] >= 0 and before[-1] < num_frames
        np.testing.assert_array_equal(pre_contrast(curve.copy()), before)


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("dark", [True, False])
def test_curve_of_empty_pictures_is_zero(value, dark):
    np.testing.assert_array_equal(bolus_curve(np.full((3, 16, 16), value), dark), np.zeros(3))


def test_curves_leave_frames_and_global_random_state_alone():
    frames, _ = dye_run()
    before = frames.copy()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    pre_contrast(curve_of(frames))
    np.testing.assert_array_equal(frames, before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


# --- real runs: what a person sees in the frames ---


@pytest.mark.parametrize(
    ("name", "arrival", "filled"),
    [
        ("xa_philips_cath_75f_jpegbaseline.dcm", 17, (24, 60)),  # the table pans from frame 18 to 40
        ("xa_siemens_rubo0002_96f_jpegbaseline.dcm", 18, (44, 95)),  # filled to the end of the run
    ],
)
def test_curve_of_a_real_run_peaks_when_vessels_are_filled(shared_data, name, arrival, filled):
    header = read_header(shared_data / "real_xa" / name)
    curve = read_curve(header, read_frames)
    assert filled[0] <= peak(curve) <= filled[1]
    before = pre_contrast(curve)
    assert len(before) >= 4
    assert before[0] > 5 and before[-1] < arrival

"""Stored values to brightness: PS3.3's formulas worked out apart from the code, and what no window may change."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.dicom.header import LINEAR, LINEAR_EXACT, SIGMOID, SequenceHeader, Voi
from scripts.errors import SequenceError
from scripts.sequences.intensity import (
    MAX_PERCENTILE_PIXELS,
    WINDOWS,
    check_window,
    to_values,
    window_sequence,
    window_used,
)
from tests.conftest import assert_message

FUNCTIONS = (LINEAR, LINEAR_EXACT, SIGMOID)


def header_of(shape: tuple[int, ...] = (2, 3, 4), **known) -> SequenceHeader:
    return SequenceHeader(
        "dicom", (Path("run.dcm"),), shape[0], shape[1], shape[2], np.arange(shape[0]) * 66.0, **known
    )


def shown(values: list[float], window: str = "voi", **known) -> list[float]:
    """These values, as one frame of one row, through a window."""
    row = torch.tensor([[values]], dtype=torch.float32)
    return window_sequence(row, header_of((1, 1, len(values)), **known), window, 0.0, 100.0)[0, 0].tolist()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1000 + 50).round()


def standard(x: float, voi: Voi) -> float:
    """The pseudo-code of PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, line by line, for y from 0 to 1."""
    c, w = voi.center, voi.width
    if voi.function == SIGMOID:
        return 1 / (1 + math.exp(-4 * (x - c) / w))
    if voi.function == LINEAR_EXACT:
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


@given(
    values=st.lists(st.integers(-32768, 65535), min_size=1, max_size=20),
    center=st.integers(-4000, 70000),
    width=st.integers(1, 70000),
    half=st.booleans(),
    function=st.sampled_from(FUNCTIONS),
)
@settings(max_examples=300, deadline=None)
def test_voi_window_is_the_standards_pseudo_code(values, center, width, half, function):
    voi = Voi(center + half / 2, width, function)
    if function == SIGMOID:
        values = [value for value in values if abs(value - center) < 100 * width] or [center]
    expected = [standard(value, voi) for value in values]
    np.testing.assert_allclose(shown(values, voi=voi), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("voi", "values", "expected"),
    [  # worked out by hand; the first row is the note in C.11.2.1.2.1: c = 2048, w = 4096 takes 0..4095 to 0..1
        (Voi(2048, 4096, LINEAR), [0, 2047.5, 4095, 4096, -1], [0, 0.5, 1, 1, 0]),
        (Voi(2048, 1, LINEAR), [2047, 2048], [0, 1]),
        (Voi(0, 100, LINEAR), [-50, 49], [0, 1]),
        (Voi(0, 1, LINEAR), [-1, 0], [0, 1]),
        (Voi(10, 0.5, LINEAR), [9.7, 9.8], [0, 1]),  # not allowed, but met: the pseudo-code still has an answer
        (Voi(2048, 4096, LINEAR_EXACT), [0, 2048, 4096, 1024], [0, 0.5, 1, 0.25]),
        (Voi(10, 0.5, LINEAR_EXACT), [9.75, 10, 10.25], [0, 0.5, 1]),
        (Voi(100, 40, SIGMOID), [100, 110, 90], [0.5, 1 / (1 + math.e**-1), 1 / (1 + math.e)]),
    ],
)
def test_voi_window_of_known_values(voi, values, expected):
    assert shown(values, voi=voi) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [0.0, -3.0, math.nan])
def test_voi_window_without_width_is_refused(function, width):
    with pytest.raises(SequenceError) as refused:
        shown([1.0, 2.0], voi=Voi(1.0, width, function))
    assert_message(refused.value, "run.dcm", "WindowWidth", width, "more than 0")


@pytest.mark.parametrize(
    ("lut", "first", "bits", "values", "entries", "full"),
    [
        ([0, 128, 255], 5, 8, [5, 6, 7], [0, 128, 255], 255),
        ([3, 128, 250], 5, 8, [-9, 4, 8, 999], [3, 3, 250, 250], 255),  # outside: the first and the last entry
        ([0, 50, 255], -1, 8, [-2, -1, 0, 1], [0, 0, 50, 255], 255),
        ([255, 128, 0], 0, 8, [0, 1, 2], [255, 128, 0], 255),  # may fall (PS3.4 N.2.1.3)
        ([77], 3, 8, [0, 3, 9], [77, 77, 77], 255),
        ([0, 1023], 0, 10, [0, 1], [0, 1023], 1023),
        ([0, 255], 0, 16, [0, 1], [0, 255], 65535),
        ([0, 2000, 4095], 0, 8, [1, 2], [2000, 4095], 4095),  # twelve bits where the descriptor says eight
        ([0, 128, 255], 0, 8, [0.4, 0.6, 1.7], [0, 128, 255], 255),  # luminance is no whole number
    ],
)
def test_voi_lut_of_known_values(lut, first, bits, values, entries, full):
    voi = Voi(1, 3, SIGMOID, np.array(lut, dtype=np.uint16), first, bits)  # a table goes before a window
    assert shown(values, voi=voi) == pytest.approx([entry / full for entry in entries], abs=1e-6)


def test_voi_lut_of_65536_entries_reaches_each_of_them():
    lut = np.random.default_rng(0).permutation(65536).astype(np.uint16)
    values = torch.arange(65536, dtype=torch.float32).reshape(1, 256, 256)
    for first, signed in ((0, False), (-32768, True)):
        header = header_of((1, 256, 256), bits_stored=16, signed=signed, voi=Voi(lut=lut, lut_first=first))
        result = window_sequence(values + first, header, "voi", 0.0, 100.0)
        np.testing.assert_array_equal((result.numpy().ravel() * 65535).round(), lut)


def test_voi_without_one_in_the_exam_is_percentile():
    values = noise(3, 8, 9)
    header = header_of((3, 8, 9))
    assert window_used(header, "voi") == "percentile"
    torch.testing.assert_close(
        window_sequence(values, header, "voi", 2.0, 98.0), window_sequence(values, header, "percentile", 2.0, 98.0)
    )


def test_voi_of_a_subtracted_sequence_is_percentile():
    header = header_of((3, 8, 9), voi=Voi(500, 300))
    after = replace(header, subtracted=True)
    difference = noise(3, 8, 9) - noise(3, 8, 9, seed=1)
    assert window_used(header, "voi") == "voi"
    assert window_used(after, "voi") == "percentile"
    torch.testing.assert_close(
        window_sequence(difference, after, "voi", 1.0, 99.0),
        window_sequence(difference, after, "percentile", 1.0, 99.0),
    )


@pytest.mark.parametrize("window", ["percentile", "stored"])
@pytest.mark.parametrize("voi", [None, Voi(500, 300)])
def test_window_used_is_the_one_asked_for(window, voi):
    assert window_used(header_of(voi=voi), window) == window


@pytest.mark.parametrize(
    ("bits", "signed", "values", "expected"),
    [
        (8, False, [0, 51, 255], [0, 0.2, 1]),
        (10, False, [0, 504, 1023], [0, 504 / 1023, 1]),
        (16, False, [0, 255, 65535], [0, 255 / 65535, 1]),
        (12, True, [-2048, 0, 2047], [0, 2048 / 4095, 1]),
        (16, True, [-32768, 32767], [0, 1]),
    ],
)
def test_stored_window_spans_what_the_bits_can_hold(bits, signed, values, expected):
    assert shown(values, "stored", bits_stored=bits, signed=signed) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("known", "values", "expected"),
    [
        ({"bits_stored": 8}, [-255, 0, 255, 51], [0, 0.5, 1, 0.6]),
        ({"bits_stored": 12, "signed": True}, [-4095, 0, 4095, 2047], [0, 0.5, 1, 6142 / 8190]),
        (
            {"bits_stored": 8, "facts": {"PixelIntensityRelationship": "LIN"}},
            [-math.log(256), 0, math.log(256), math.log(16)],
            [0, 0.5, 1, 0.75],
        ),
    ],
)
def test_stored_window_of_differences_has_no_change_in_the_middle(known, values, expected):
    assert shown(values, "stored", subtracted=True, **known) == pytest.approx(expected)


def test_stored_window_of_floats_is_their_own_range():
    assert shown([-3.5, 0.25, 4.0], "stored", bits_stored=32, signed=True) == [0.0, 0.5, 1.0]


def test_stored_window_keeps_exams_of_one_device_comparable():
    dim, bright = noise(2, 6, 6) / 4, noise(2, 6, 6)
    header = header_of((2, 6, 6), bits_stored=12)
    shown_dim, shown_bright = (window_sequence(values, header, "stored", 0.5, 99.5) for values in (dim, bright))
    torch.testing.assert_close(shown_dim * 4, shown_bright)


def test_percentile_window_has_one_scale_so_ratios_of_frame_means_survive():
    frames = noise(1, 20, 20) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    scaled = window_sequence(frames, header_of((3, 20, 20)), "percentile", 0.0, 100.0)
    assert scaled.min() == 0 and scaled.max() == 1
    means = scaled.mean(dim=(1, 2)) * (frames.max() - frames.min()) + frames.min()
    torch.testing.assert_close(means / means[0], torch.tensor([1.0, 0.5, 0.25]))


def test_percentile_window_is_one_line_clipped():
    frames = noise(4, 9, 11)
    low, high = np.percentile(frames.numpy(), (5.0, 95.0))
    scaled = window_sequence(frames, header_of((4, 9, 11)), "percentile", 5.0, 95.0)
    np.testing.assert_allclose(scaled, ((frames.numpy() - low) / (high - low)).clip(0, 1), atol=1e-6)


@given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
@settings(max_examples=50, deadline=None)
def test_percentile_window_does_not_depend_on_stored_units(gain, offset):
    frames, header = noise(2, 8, 8), header_of((2, 8, 8))
    torch.testing.assert_close(
        window_sequence(frames * gain + offset, header, "percentile", 0.5, 99.5),
        window_sequence(frames, header, "percentile", 0.5, 99.5),
        atol=5e-4,
        rtol=0,
    )


@pytest.mark.parametrize("size", [32, 800])
def test_percentile_window_of_one_bright_pixel_still_tells_it_apart(size):
    frames = torch.zeros(2, size, size)
    frames[1, 5, 7] = 3.0
    scaled = window_sequence(frames, header_of((2, size, size)), "percentile", 0.5, 99.5)
    assert scaled.sum() == 1 and scaled[1, 5, 7] == 1


@pytest.mark.parametrize("value", [0.0, 7.5])
@pytest.mark.parametrize("window", ["percentile", "voi"])
def test_percentile_window_of_equal_pixels_is_refused(value, window):
    with pytest.raises(SequenceError) as refused:
        window_sequence(torch.full((3, 4, 4), value), header_of((3, 4, 4)), window, 0.5, 99.5)
    assert_message(refused.value, "run.dcm", "pixel values", f"all {value:g}", "at least two different values")


def test_percentile_window_of_values_that_are_no_numbers_is_refused():
    with pytest.raises(SequenceError):
        window_sequence(torch.tensor([[[1.0, math.nan, 3.0]]]), header_of((1, 1, 3)), "percentile", 0.5, 99.5)


def run_of(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """Twelve-bit synthetic run: smooth anatomy, a black rim, noise, and ribs that repeat every eight columns."""
    rows, columns = shape[1:]
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    anatomy = 1800 + 900 * np.sin(3 * x) * np.cos(2 * y) + 150 * (np.arange(columns) % 8 < 4)
    values = anatomy + rng.normal(0, 40, shape)
    values[:, x**2 + y**2 > 1.95] = 0
    return torch.from_numpy(values.clip(0, 4095).round().astype(np.float32))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", [(6, 1024, 1024), (9, 512, 512), (2, 800, 1333)])
def test_percentiles_of_a_big_sequence_are_close_though_taken_on_fewer_pixels(shape, seed, monkeypatch):
    values = run_of(shape, seed)
    assert values.numel() > 2 * MAX_PERCENTILE_PIXELS
    taken = []
    percentile = np.percentile
    monkeypatch.setattr(np, "percentile", lambda pixels, at: taken.append(pixels.size) or percentile(pixels, at))
    quick = window_sequence(values, header_of(shape), "percentile", 0.5, 99.5)
    again = window_sequence(values, header_of(shape), "percentile", 0.5, 99.5)
    torch.testing.assert_close(quick, again, rtol=0, atol=0)
    low, high = percentile(values.numpy(), (0.5, 99.5))
    exact = ((values - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(quick, exact, rtol=0, atol=0.003)
    assert len(taken) == 2 and max(taken) <= 1.01 * MAX_PERCENTILE_PIXELS  # a ceiling on each side


def test_percentiles_0_and_100_of_a_big_sequence_are_its_exact_ends():
    values = run_of((2, 1024, 1024), 0)
    values[0, 1, 1], values[1, 3, 5] = -7, 9000  # not on the rows and columns that are looked at
    scaled = window_sequence(values, header_of((2, 1024, 1024)), "percentile", 0.0, 100.0)
    torch.testing.assert_close(scaled, (values + 7) / 9007)


@given(
    values=st.lists(st.integers(0, 1023), min_size=2, max_size=30, unique=True),
    window=st.sampled_from(WINDOWS),
    center=st.floats(-100, 1200),
    width=st.floats(1, 2000),
    function=st.sampled_from(FUNCTIONS),
    lower=st.floats(0, 40),
    upper=st.floats(60, 100),
)
@settings(max_examples=200, deadline=None)
def test_windows_stay_in_range_and_keep_the_order_of_values(values, window, center, width, function, lower, upper):
    values = sorted(values)
    row = torch.tensor([[values]], dtype=torch.float32)
    known = {"bits_stored": 10, "voi": Voi(center, width, function)}
    bright = window_sequence(row, header_of((1, 1, len(values)), **known), window, lower, upper)
    assert bright.dtype == torch.float32 and bright.shape == row.shape
    assert bright.min() >= 0 and bright.max() <= 1
    assert (bright.diff() >= 0).all()
    inverse = header_of((1, 1, len(values)), photometric="MONOCHROME1", **known)
    torch.testing.assert_close(window_sequence(row, inverse, window, lower, upper), 1 - bright)
    assert row.tolist() == [[values]]  # the caller's values stay


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("window", ["percentile", "stored", "voi"])
def test_inverted_values_as_monochrome1_are_the_image_of_monochrome2(bits, window):
    rng = np.random.default_rng(bits)
    full = 2**bits - 1
    stored = rng.integers(0, full + 1, (3, 7, 8)).astype(np.uint16)
    voi = Voi(2 ** (bits - 1), full / 2, SIGMOID if bits == 12 else LINEAR_EXACT)
    mirrored = Voi(full - voi.center, voi.width, voi.function)
    one = header_of((3, 7, 8), photometric="MONOCHROME1", bits_stored=bits, voi=mirrored)
    two = header_of((3, 7, 8), bits_stored=bits, voi=voi)
    torch.testing.assert_close(
        window_sequence(to_values(full - stored, one), one, window, 1.0, 99.0),
        window_sequence(to_values(stored, two), two, window, 1.0, 99.0),
        atol=2e-6,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_to_values_are_the_stored_numbers_in_a_copy(dtype):
    ends = np.iinfo(dtype)
    stored = np.array([[[ends.min, 0, 1, ends.max]]], dtype=dtype)
    before = stored.copy()
    values = to_values(stored, header_of((1, 1, 4), photometric="MONOCHROME1"))
    assert values.dtype == torch.float32
    assert values.tolist() == stored.tolist()  # MONOCHROME1 is inverted by the window, not here
    values.add_(1)
    np.testing.assert_array_equal(stored, before)


def test_to_values_of_decimals_are_a_copy_too():
    stored = np.array([[[0.5, -1.25]]], dtype=np.float32)
    to_values(stored, header_of((1, 1, 2))).add_(1)
    assert stored.tolist() == [[[0.5, -1.25]]]


def test_to_values_of_colours_are_their_bt601_luminance():
    stored = np.array([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]]], dtype=np.uint8)
    values = to_values(stored, header_of((1, 2, 2), photometric="RGB"))
    expected = torch.tensor([[[76.245, 149.685], [29.07, 0.299 * 10 + 0.587 * 20 + 0.114 * 30]]])
    torch.testing.assert_close(values, expected)


def test_to_values_of_grey_colours_are_that_grey():
    grey = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
    values = to_values(np.repeat(grey[..., None], 3, axis=-1), header_of((2, 4, 6), photometric="RGB"))
    torch.testing.assert_close(values, torch.from_numpy(grey.astype(np.float32)))


@pytest.mark.parametrize(("photometric", "darkest"), [("MONOCHROME2", 40.0), ("MONOCHROME1", 300.0)])
@pytest.mark.parametrize("padding", [(-2000, -2000), (-2000, -1990)])
def test_padding_gets_the_darkest_of_the_other_values(photometric, darkest, padding):
    stored = np.full((2, 3, 4), 100, dtype=np.int16)
    stored[0, 0, 0], stored[1, 2, 3], stored[:, 1, 1] = 40, 300, padding[0]
    stored[1, 0, 3] = padding[1]
    header = header_of(photometric=photometric, bits_stored=12, signed=True, padding=padding)
    values = to_values(stored, header)
    is_padding = (stored >= padding[0]) & (stored <= padding[1])
    assert is_padding.sum() == 3
    assert set(values[torch.from_numpy(is_padding)].tolist()) == {darkest}
    np.testing.assert_array_equal(values.numpy()[~is_padding], stored[~is_padding])
    brightness = window_sequence(values, header, "percentile", 0.0, 100.0)
    assert (brightness[torch.from_numpy(is_padding)] == 0).all()
    assert stored[0, 1, 1] == padding[0]


def test_padding_everywhere_or_nowhere_changes_nothing():
    stored = np.full((2, 3, 4), 7, dtype=np.uint8)
    for padding in ((7, 7), (9, 12)):
        np.testing.assert_array_equal(to_values(stored, header_of(padding=padding)).numpy(), stored)


@pytest.mark.parametrize("window", ["VOI", "", "minmax", None, 3])
def test_an_unknown_window_is_refused(window):
    with pytest.raises(ValueError) as refused:
        check_window(window, 0.5, 99.5)
    assert not isinstance(refused.value, SequenceError)
    assert_message(refused.value, "configuration", "window", window or "", "percentile, voi, stored")


@pytest.mark.parametrize(
    "percentiles", [(5.0, 5.0), (-1.0, 50.0), (0.0, 101.0), (99.0, 1.0), ("1", 99.0), (True, 99.0), (0.0, math.nan)]
)
@pytest.mark.parametrize("window", WINDOWS)
def test_impossible_percentiles_are_refused(percentiles, window):
    with pytest.raises(ValueError) as refused:
        window_sequence(noise(2, 4, 4), header_of((2, 4, 4)), window, *percentiles)
    assert not isinstance(refused.value, SequenceError)
    assert_message(refused.value, "configuration", "percentiles", "lower_percentile < upper_percentile")


@pytest.mark.parametrize("window", WINDOWS)
def test_known_windows_are_accepted(window):
    check_window(window, 0, 100)

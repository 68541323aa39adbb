"""Digital subtraction against synthetic runs whose anatomy, contrast and movement are known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.dicom.header import AVG_SUB, TID, MaskStep, SequenceHeader
from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
from scripts.sequences.intensity import to_values, window_sequence
from scripts.sequences.subtraction import (
    MAX_BOLUS_MASK_FRAMES,
    SUBTRACTIONS,
    FrameMask,
    check_subtraction,
    is_logarithmic,
    mask_frames,
    needed_frames,
    needs_pre_contrast,
    subtract,
)
from tests.conftest import assert_message

T, H, W = 10, 40, 48
ARRIVES = 3  # frames 0 to 2 hold no contrast


def header_of(*steps: MaskStep, num_frames: int = T, relationship: str = "LOG", **known) -> SequenceHeader:
    facts = {"Modality": "XA"} | ({"PixelIntensityRelationship": relationship} if relationship else {})
    times = np.arange(num_frames) * 250.0
    known = {"bits_stored": 12, "facts": facts, "mask_steps": steps} | known
    return SequenceHeader("dicom", (Path("run.dcm"),), num_frames, H, W, times, **known)


def anatomy() -> Tensor:
    """Attenuation of what does not move, (H, W): a smooth body with a dense bone across it."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    return 0.6 + 0.4 * torch.cos(2 * x) * torch.cos(y) + 1.2 * torch.exp(-(((x + y) / 0.3) ** 2))


def contrast() -> Tensor:
    """Attenuation of the contrast medium, (T, H, W): a vessel that fills from the left, frame by frame."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    vessel = 0.3 * ((y - 0.3 * torch.sin(3 * x)).abs() < 0.15)
    front = torch.linspace(-1, 1, T - ARRIVES + 1)
    return torch.stack([vessel * (x < front[max(t - ARRIVES + 1, 0)]) * (t >= ARRIVES) for t in range(T)])


def subtracted(values: Tensor, header: SequenceHeader, indices=range(T), subtraction="header", pre_contrast=None):
    """What a reader does: mask, frames to decode, subtraction."""
    masks = mask_frames(header, indices, subtraction, pre_contrast)
    decoded = needed_frames(indices, masks)
    return subtract(values[decoded], decoded, indices, masks, header)


def frames_of(masks: list[FrameMask]) -> list[tuple[int, ...]]:
    return [mask.frames for mask in masks]


# Which frames are the mask


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (MaskStep(AVG_SUB, (1,)), [(1,)] * 6),
        (MaskStep(AVG_SUB, (0, 2)), [(0, 2)] * 6),
        (MaskStep(AVG_SUB, (1,), ((2, 4),)), [(0,), (1,), (1,), (1,), (1,), (5,)]),
        (MaskStep(AVG_SUB, (0,), ((1, 1), (4, 5))), [(0,), (0,), (2,), (3,), (0,), (0,)]),
        (MaskStep(TID), [(0,), (0,), (1,), (2,), (3,), (4,)]),
        (MaskStep(TID, tid_offset=2), [(0,), (1,), (0,), (1,), (2,), (3,)]),
        (MaskStep(TID, tid_offset=-1), [(1,), (2,), (3,), (4,), (5,), (5,)]),
        (MaskStep(TID, frame_ranges=((3, 4),)), [(0,), (1,), (2,), (2,), (3,), (5,)]),
        (MaskStep(TID, tid_offset=9, frame_ranges=((0, 5),)), []),
        (MaskStep(AVG_SUB, (1,), ((7, 9),)), []),
    ],
)
def test_header_masks_of_known_items(step, expected):
    assert frames_of(mask_frames(header_of(step, num_frames=6), range(6), "header")) == expected


def test_header_masks_of_several_items_are_those_of_the_first_that_applies():
    steps = (MaskStep(AVG_SUB, (0,), ((1, 3),), (0.5, 0.0)), MaskStep(TID), MaskStep(AVG_SUB, (2,)))
    assert mask_frames(header_of(*steps, num_frames=6), [0, 2, 4, 5], "header") == [
        FrameMask((2,)),  # before TID has a mask, the third item does
        FrameMask((0,), (0.5, 0.0)),
        FrameMask((3,)),
        FrameMask((4,)),
    ]


def test_header_masks_do_not_depend_on_which_frames_are_wanted():
    header = header_of(MaskStep(AVG_SUB, (1, 2), ((3, 8),)), MaskStep(TID, frame_ranges=((9, 9),)))
    every = mask_frames(header, range(T), "header")
    assert mask_frames(header, [2, 5, 9], "header") == [every[2], every[5], every[9]]


def test_a_sequence_without_items_stays_as_it_is():
    values = torch.rand(T, H, W)
    for header, subtraction in ((header_of(), "header"), (header_of(), "none"), (header_of(MaskStep(TID)), "none")):
        assert mask_frames(header, range(T), subtraction) == []
        torch.testing.assert_close(subtracted(values, header, subtraction=subtraction), values, rtol=0, atol=0)
        torch.testing.assert_close(subtracted(values, header, [1, 4, 4, 9], subtraction), values[[1, 4, 4, 9]])


def test_bolus_mask_is_the_pre_contrast_frames_where_the_header_asks_for_nothing():
    plain, asked = header_of(), header_of(MaskStep(AVG_SUB, (0,)))
    assert needs_pre_contrast(plain, "bolus") and not needs_pre_contrast(plain, "header")
    assert not needs_pre_contrast(asked, "bolus")
    assert frames_of(mask_frames(plain, [4, 7], "bolus", np.arange(3))) == [(0, 1, 2)] * 2
    assert frames_of(mask_frames(asked, [4, 7], "bolus")) == [(0,)] * 2


@pytest.mark.parametrize("num_frames", [1, 15, 16, 17, 40, 300])
def test_bolus_mask_is_spread_over_many_pre_contrast_frames(num_frames):
    (mask,) = mask_frames(header_of(num_frames=400), [399], "bolus", range(num_frames))
    assert len(mask.frames) == min(num_frames, MAX_BOLUS_MASK_FRAMES) == len(set(mask.frames))
    assert mask.frames[0] == 0 and mask.frames[-1] == num_frames - 1
    assert list(mask.frames) == sorted(mask.frames)


@pytest.mark.parametrize("pre_contrast", [None, [], np.array([], int)])
def test_bolus_mask_without_pre_contrast_frames_is_refused(pre_contrast):
    with pytest.raises(SequenceError) as refused:
        mask_frames(header_of(), range(T), "bolus", pre_contrast)
    assert_message(refused.value, "run.dcm", "pre-contrast phase", "at least one frame", "header or none")


@pytest.mark.parametrize("frames", [(10,), (0, 99), (-1,), ()])
def test_mask_frames_that_do_not_exist_are_refused(frames):
    with pytest.raises(SequenceError) as refused:
        mask_frames(header_of(MaskStep(AVG_SUB, frames)), [0], "header")
    bad = [frame + 1 for frame in frames if not 0 <= frame < T]
    assert_message(refused.value, "run.dcm", "MaskFrameNumbers", bad[0] if bad else "empty", "from 1 to 10")


@pytest.mark.parametrize("shift", [(math.nan, 0.0), (0.0, math.inf)])
def test_a_shift_that_is_no_number_is_refused(shift):
    with pytest.raises(SequenceError) as refused:
        mask_frames(header_of(MaskStep(AVG_SUB, (0,), shift=shift)), [0], "header")
    assert_message(refused.value, "run.dcm", "MaskSubPixelShift", "finite")


@pytest.mark.parametrize("subtraction", ["dsa", "", None, True])
def test_an_unknown_subtraction_is_refused(subtraction):
    for refuse in (lambda: check_subtraction(subtraction), lambda: mask_frames(header_of(), [0], subtraction)):
        with pytest.raises(ValueError) as refused:
            refuse()
        assert not isinstance(refused.value, SequenceError)
        assert_message(refused.value, "configuration", "subtraction", "none, header, bolus")


def test_known_subtractions_are_accepted():
    for subtraction in SUBTRACTIONS:
        check_subtraction(subtraction)


def test_needed_frames_are_each_read_once_in_order():
    masks = [FrameMask((1, 0)), FrameMask((1, 0)), FrameMask((7,))]
    assert needed_frames(np.array([80, 4, 7]), masks) == [0, 1, 4, 7, 80]
    assert needed_frames(iter([3, 1, 3]), []) == [1, 3]


# Contrast minus mask


@pytest.mark.parametrize("relationship", ["LOG", "DISP", ""])
def test_avg_sub_of_logarithmic_values_is_the_contrast_alone(relationship):
    values = ((5 - anatomy() - contrast()) * 500).round()  # a vessel is dark
    result = subtracted(values, header_of(MaskStep(AVG_SUB, (0, 2)), relationship=relationship))
    assert result.dtype == torch.float32 and result.shape == (T, H, W)
    torch.testing.assert_close(result, -500 * contrast(), atol=1.0, rtol=0)  # whole numbers were stored
    assert (result[:ARRIVES] == 0).all()
    assert (result[:, contrast()[-1] == 0] == 0).all()  # unchanged tissue
    assert result.min() < -100 and result.max() <= 1


@pytest.mark.parametrize("subtraction", ["header", "bolus"])
def test_linear_values_are_subtracted_as_logarithms_so_bone_does_not_dim_the_vessel(subtraction):
    values = (4000 * torch.exp(-anatomy() - contrast())).round()  # Beer-Lambert
    steps = (MaskStep(AVG_SUB, (0, 1, 2)),) if subtraction == "header" else ()
    header = header_of(*steps, relationship="LIN")
    assert is_logarithmic(header)
    result = subtracted(values, header, subtraction=subtraction, pre_contrast=[0, 1, 2])
    torch.testing.assert_close(result, -contrast(), atol=0.005, rtol=0)
    plain = subtracted(values, header_of(*steps, relationship="DISP"), subtraction=subtraction, pre_contrast=[0, 1, 2])
    vessel = contrast()[-1] > 0
    assert result[-1][vessel].std() < 0.005 < 50 < plain[-1][vessel].std()  # the same vessel, in front of bone or not
    assert (plain[-1][vessel] < 0).all() and (result[-1][vessel] < 0).all()


def test_logarithm_of_a_known_value():
    values = torch.tensor([0.0, 255.0, 3.0, -5.0]).reshape(4, 1, 1).expand(4, H, W)
    result = subtracted(values, header_of(MaskStep(AVG_SUB, (0,)), num_frames=4, relationship="LIN"), range(4))
    assert result[:, 0, 0].tolist() == pytest.approx([0, math.log(256), math.log(4), 0])


def test_tid_is_the_change_since_an_earlier_frame():
    values = (5 - anatomy() - contrast()) * 500
    result = subtracted(values, header_of(MaskStep(TID, tid_offset=2)))
    torch.testing.assert_close(result[2:], values[2:] - values[:-2])
    assert (result[:2] == 0).all()


def test_tid_mask_is_shifted_too():
    values = torch.rand(T, H, W)
    result = subtracted(values, header_of(MaskStep(TID, shift=(0.0, 3.0))))
    torch.testing.assert_close(result[1:, :, :-3], values[1:, :, :-3] - values[:-1, :, 3:])


def test_frames_outside_the_applicable_range_show_no_change():
    values = torch.rand(T, H, W) * 1000
    result = subtracted(values, header_of(MaskStep(AVG_SUB, (1,), ((4, 7),), shift=(0.0, 0.0))))
    torch.testing.assert_close(result[4:8], values[4:8] - values[1])
    assert (result[:4] == 0).all() and (result[8:] == 0).all()


@pytest.mark.parametrize("relationship", ["LOG", "LIN"])
def test_chosen_frames_are_those_of_the_whole_sequence(relationship):
    values = torch.rand(T, H, W) * 1000
    header = header_of(MaskStep(AVG_SUB, (0, 1), ((2, 5),), (0.25, -1.5)), MaskStep(TID), relationship=relationship)
    every = subtracted(values, header)
    for chosen in ([7], [2, 5, 9], [0, 1], [3, 3, 6]):
        torch.testing.assert_close(subtracted(values, header, chosen), every[chosen], rtol=0, atol=0)


def test_subtraction_leaves_the_decoded_values_alone():
    values = torch.rand(T, H, W) * 100
    before = values.clone()
    for relationship in ("LOG", "LIN"):
        result = subtracted(values, header_of(MaskStep(AVG_SUB, (0,), shift=(1.0, 0.5)), relationship=relationship))
        result.add_(1)
    torch.testing.assert_close(values, before, rtol=0, atol=0)


@given(level=st.integers(0, 65535), count=st.integers(1, T), relationship=st.sampled_from(["LIN", "LOG"]))
@settings(max_examples=60, deadline=None)
def test_unchanged_pixels_become_exactly_0(level, count, relationship):
    values = torch.full((T, 2, 3), float(level))
    values[:, 0] = torch.rand(3).mul(65535).round()
    step = MaskStep(AVG_SUB, tuple(range(count)), shift=(0.0, 0.0))
    assert (subtracted(values, header_of(step, relationship=relationship)) == 0).all()


def test_noise_of_a_mean_mask_is_lower_than_that_of_one_frame():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 100, 100, generator=generator) * 10 + 500
    for count in (1, 4, 16):
        header = header_of(MaskStep(AVG_SUB, tuple(range(count))), num_frames=20)
        noise = subtracted(values, header, [18, 19]).std()
        assert noise == pytest.approx(10 * math.sqrt(1 + 1 / count), rel=0.02)


def test_padding_is_no_change():
    stored = np.random.default_rng(0).integers(100, 900, (T, H, W)).astype(np.uint16)
    stored[:, :5] = 0
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        header = header_of(MaskStep(AVG_SUB, (0,)), padding=(0, 0), photometric=photometric)
        assert (subtracted(to_values(stored, header), header)[:, :5] == 0).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_subtracted_vessel_is_dark_on_grey(photometric):
    values = (5 - anatomy() - contrast()) * 500
    values = 4095 - values if photometric == "MONOCHROME1" else values
    header = header_of(MaskStep(AVG_SUB, (0,)), photometric=photometric)
    brightness = window_sequence(subtracted(values, header), replace(header, subtracted=True), "stored", 0.0, 100.0)
    vessel = contrast()[-1] > 0
    assert brightness[-1][~vessel].mean() == pytest.approx(0.5, abs=1e-3)
    assert (brightness[-1][vessel] < 0.49).all()


# MaskSubPixelShift


def test_a_positive_shift_moves_the_mask_down_and_to_the_left():
    values = torch.zeros(2, 6, 7)
    values[0, 2, 4] = 8.0
    result = subtracted(values, header_of(MaskStep(AVG_SUB, (0,), ((1, 1),), (1.0, 2.0)), num_frames=2), [1])
    expected = torch.zeros(6, 7)
    expected[3, 2] = -8.0
    torch.testing.assert_close(result[0], expected)


def test_a_part_of_a_pixel_is_shared_between_neighbours():
    values = torch.zeros(2, 6, 7)
    values[0, 2, 4] = 8.0
    result = subtracted(values, header_of(MaskStep(AVG_SUB, (0,), ((1, 1),), (0.25, 0.5)), num_frames=2), [1])
    expected = torch.zeros(6, 7)
    expected[2, 4], expected[2, 3], expected[3, 4], expected[3, 3] = -3.0, -3.0, -1.0, -1.0
    torch.testing.assert_close(result[0], expected)


@given(rows=st.floats(-60, 60), columns=st.floats(-60, 60))
@settings(max_examples=100, deadline=None)
def test_a_shifted_mask_repeats_its_edges(rows, columns):
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    values = torch.stack([10 * y + x, torch.zeros(9, 11)])
    header = header_of(MaskStep(AVG_SUB, (0,), ((1, 1),), (rows, columns)), num_frames=2)
    expected = -(10 * (y - rows).clamp(0, 8) + (x + columns).clamp(0, 10))  # a ramp is what linear steps keep
    torch.testing.assert_close(subtracted(values, header, [1])[0], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.7), (-1.3, 2.6), (3.0, -2.0)])
def test_a_patient_who_moved_after_the_mask_is_recovered_by_the_shift(shift):
    """The mask sees the anatomy where it was; it has to move down and to the left by `shift` to lie on the other."""

    def moved(down: float, left: float) -> Tensor:
        y, x = torch.meshgrid(torch.arange(float(H)), torch.arange(float(W)), indexing="ij")
        y, x = (y - down) / H, (x + left) / W
        return 0.6 + 0.4 * torch.cos(4 * x) * torch.cos(3 * y) + 1.2 * torch.exp(-(((x - y) / 0.2) ** 2))

    values = (5 - torch.stack([moved(0, 0)] + [moved(*shift)] * (T - 1)) - contrast()) * 500
    inside = (slice(None), slice(4, -4), slice(4, -4))
    corrected = subtracted(values, header_of(MaskStep(AVG_SUB, (0,), ((1, T - 1),), shift)))[1:]
    truth = -500 * contrast()[1:]
    error = (corrected - truth)[inside].abs().max()
    assert error < 4  # what linear interpolation leaves, of a vessel of 150
    if shift != (0.0, 0.0):
        naive = subtracted(values, header_of(MaskStep(AVG_SUB, (0,), ((1, T - 1),))))[1:]
        assert (naive - truth)[inside].abs().max() > 5 * error


# Real files


def test_a_real_run_with_mask_operation_none_is_not_subtracted(shared_data):
    header = read_header(shared_data / "real_xa" / "xa_siemens_rubo0002_96f_jpegbaseline.dcm")
    indices = [0, 40, 80]
    assert header.mask_steps == ()
    assert mask_frames(header, indices, "header") == []
    assert needed_frames(indices, []) == indices
    values = to_values(read_frames(header, indices), header)
    torch.testing.assert_close(subtract(values, indices, indices, [], header), values, rtol=0, atol=0)
    assert is_logarithmic(header)
    masks = mask_frames(header, indices, "bolus", [0, 1, 2])
    decoded = needed_frames(indices, masks)
    difference = subtract(to_values(read_frames(header, decoded), header), decoded, indices, masks, header)
    assert difference.shape == values.shape and difference.isfinite().all()
    assert values[:, :8, :8].max() <= 2  # a corner outside the image intensifier never changes
    assert difference[:, :8, :8].abs().max() < 1.2


def test_a_single_frame_has_nothing_before_its_bolus_and_stays_as_it_is():
    header = SequenceHeader("dicom", (Path("one.dcm"),), 1, 4, 4, np.zeros(1))
    assert not needs_pre_contrast(header, "bolus")
    assert mask_frames(header, [0], "bolus") == []

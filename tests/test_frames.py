"""Frame arithmetic: what is chosen, one scale for a whole sequence, shapes that hold for any size."""

import random

import numpy as np
import pytest
import torch

from scripts.errors import SequenceError
from scripts.sequences.frames import (
    check_indices,
    check_times,
    resize_frames,
    to_encoder_input,
)
from tests.conftest import assert_message


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1000 + 50


@pytest.mark.parametrize("frames", [[0], [6], [0, 3, 6], list(range(7))])
def test_check_indices_inside_the_sequence_are_returned(frames):
    indices = check_indices("run", frames, 7)
    assert indices.dtype == np.int64
    assert indices.tolist() == frames


@pytest.mark.parametrize("frames", [[], [7], [-1], [3, 2], [1, 1], [0.5], ["0"], [True], [None], "012", {"0": 1}])
def test_check_indices_outside_or_unordered_are_refused(frames):
    with pytest.raises(SequenceError) as refused:
        check_indices("exam/run.dcm", frames, 7)
    assert_message(refused.value, "exam/run.dcm", "frames", "ascending", "below 7")


@pytest.mark.parametrize("frames", [5, [0, [1]]])
def test_check_indices_that_are_no_flat_list_are_refused(frames):
    with pytest.raises(SequenceError) as refused:
        check_indices("exam/run.dcm", frames, 7)
    assert_message(refused.value, "exam/run.dcm", "frames", "ascending")


def test_check_times_that_are_no_list_are_refused():
    with pytest.raises(SequenceError) as refused:
        check_times("exam/run.dcm", 33.3, 7)
    assert_message(refused.value, "exam/run.dcm", "frame_times_ms", "7 numbers")


def test_check_times_that_are_infinite_are_refused():
    with pytest.raises(SequenceError):
        check_times("exam/run.dcm", [0, 1, float("inf")], 3)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 10, 30], [0, 10, 30]),
        ([1000.5, 1010.5, 1010.5], [0, 10, 10]),
        ([5], [0]),
        ([0, None, 30], [0, np.nan, 30]),
        ([None, None, None], [np.nan] * 3),
    ],
)
def test_check_times_start_at_zero_and_null_is_nan(times, expected):
    np.testing.assert_array_equal(check_times("run", times, len(expected)), expected)


@pytest.mark.parametrize("times", [[0, 1], [0, 1, 2, 3], [0, 2, 1], [5, None, 4], [0, "1", 2], [0, [1], 2], "012", []])
def test_check_times_that_do_not_fit_the_frames_are_refused(times):
    with pytest.raises(SequenceError) as refused:
        check_times("exam/run.dcm", times, 3)
    assert_message(refused.value, "exam/run.dcm", "frame_times_ms", "3 numbers")


@pytest.mark.parametrize("num_frames", [1, 2, 20, 200])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 97), (1, 50), (301, 3)])
@pytest.mark.parametrize("image_size", [14, 31])
def test_resize_frames_of_any_size_gives_the_square(num_frames, size, image_size):
    frames = noise(num_frames, *size)
    resized = resize_frames(frames, image_size)
    assert resized.shape == (num_frames, image_size, image_size)
    assert resized.dtype == torch.float32
    assert resized.min() >= frames.min() - 1e-2
    assert resized.max() <= frames.max() + 1e-2


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (60, 20), (30, 30)])
def test_resize_frames_keeps_aspect_in_the_middle_of_the_darkest_value(height, width):
    frames = torch.full((2, height, width), 100.0)
    frames[1, 0, 0] = 7.0  # the darkest value of the sequence, in a corner of one frame
    resized = resize_frames(frames, 60)
    rows = (resized[0] > 99).any(dim=1).nonzero().flatten()
    columns = (resized[0] > 99).any(dim=0).nonzero().flatten()
    scale = 60 / max(height, width)
    assert len(rows) == height * scale
    assert len(columns) == width * scale
    for kept in (rows, columns):
        assert int(kept[0]) == 59 - int(kept[-1])  # equal margins
    outside = torch.ones(60, 60, dtype=torch.bool)
    outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    assert (resized[:, outside] == 7.0).all()


def test_resize_frames_of_the_wanted_size_changes_nothing():
    frames = noise(3, 24, 24)
    torch.testing.assert_close(resize_frames(frames, 24), frames)


def test_resize_frames_keeps_the_mean_of_each_frame():
    frames = torch.stack([noise(48, 48, seed=t) * (t + 1) for t in range(4)])
    torch.testing.assert_close(resize_frames(frames, 24).mean(dim=(1, 2)), frames.mean(dim=(1, 2)), rtol=5e-3, atol=0)


def test_resize_frames_treats_a_frame_alone_as_among_others():
    frames = noise(5, 33, 33)
    together = resize_frames(frames, 21)
    for t in range(5):
        torch.testing.assert_close(resize_frames(frames[t : t + 1], 21)[0], together[t])


@pytest.mark.parametrize("num_frames", [1, 5, 200])
def test_to_encoder_input_is_three_equal_channels_from_minus_one_to_one(num_frames):
    frames = torch.linspace(0, 1, num_frames * 6).reshape(num_frames, 2, 3)
    image = to_encoder_input(frames)
    assert image.shape == (num_frames, 3, 2, 3)
    assert image.dtype == torch.float32
    assert image.min() == -1 and image.max() == 1
    for channel in range(3):
        torch.testing.assert_close(image[:, channel] * 0.5 + 0.5, frames)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.0, (0.1, 0.2, 0.3)), ([0.1, 0.2, 0.3], 1)]
)
def test_to_encoder_input_takes_a_mean_and_deviation_for_each_channel(mean, std):
    frames = noise(4, 5, 6) / 1100
    image = to_encoder_input(frames, mean, std)
    assert image.shape == (4, 3, 5, 6)
    assert image.dtype == torch.float32
    for channel in range(3):
        shift, scale = (v if isinstance(v, (int, float)) else v[channel] for v in (mean, std))
        torch.testing.assert_close(image[:, channel], (frames - shift) / scale)


@pytest.mark.parametrize("value", [0.3, [0.3], (0.3, 0.3, 0.3)])
def test_to_encoder_input_of_equal_channels_holds_one_and_reads_like_three(value):
    frames = noise(4, 5, 6) / 1100
    image = to_encoder_input(frames, value, 0.25)
    repeated = ((frames - 0.3) / 0.25)[:, None].repeat(1, 3, 1, 1)
    torch.testing.assert_close(image, repeated, rtol=0, atol=0)
    assert image.untyped_storage().nbytes() == frames.nbytes  # a third of the memory while exams wait
    torch.testing.assert_close(torch.cat([image, image])[4:], repeated, rtol=0, atol=0)
    torch.testing.assert_close(torch.nn.functional.conv2d(image, repeated), torch.conv2d(repeated, repeated))


@pytest.mark.parametrize(
    "value", [None, True, "0.5", [], [0.5, 0.5], [0.5] * 4, [0.5, None, 0.5], float("nan"), [1e999]]
)
@pytest.mark.parametrize("knob", ["pixel_mean", "pixel_std"])
def test_to_encoder_input_refuses_what_is_neither_a_number_nor_three(knob, value):
    with pytest.raises(ValueError) as refused:
        to_encoder_input(noise(1, 2, 2), **{knob.removeprefix("pixel_"): value})
    assert_message(refused.value, "configuration", knob, "a number", "three")


@pytest.mark.parametrize("std", [0, -0.5, [0.2, 0.0, 0.2]])
def test_to_encoder_input_refuses_a_deviation_that_is_not_positive(std):
    with pytest.raises(ValueError) as refused:
        to_encoder_input(noise(1, 2, 2), std=std)
    assert_message(refused.value, "configuration", "pixel_std", std, "above 0")


def test_frame_arithmetic_leaves_inputs_and_global_random_state_alone():
    frames = noise(3, 20, 15)
    before = frames.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    to_encoder_input(resize_frames(frames, 14))
    torch.testing.assert_close(frames, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]

"""Augmentation moves and shades all frames of a sequence by one draw, mildly, and from its own seed alone."""

import pickle
import random

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from scripts.keys import FRAME_INDICES, FRAME_TIMES, HEADER, IMAGE, LABEL
from scripts.sequences.augmentation import make_augmentation, move_frames
from scripts.sequences.transforms import (
    RandLoadSequenced,
    ResizeFramesd,
    ShowRegiond,
    ToEncoderInputd,
    WindowSequenced,
)
from tests.conftest import assert_message

NONE = {"rotate_degrees": 0, "translate_fraction": 0, "zoom_fraction": 0, "contrast_fraction": 0}
KNOBS = {"rotate_degrees": 30, "translate_fraction": 0.1, "zoom_fraction": 0.2, "contrast_fraction": 0.5, "prob": 1}
SEEDS = range(5)


def augment(frames: Tensor, seed: int = 0, **knobs: float) -> Tensor:
    return make_augmentation(**knobs).set_random_state(seed)({IMAGE: frames})[IMAGE]


def noise(num_frames: int = 3, height: int = 20, width: int = 28) -> Tensor:
    """Frames (T, H, W) without structure, in [0, 1]."""
    return torch.rand(num_frames, height, width, generator=torch.Generator().manual_seed(num_frames))


def dots(centres: Tensor, height: int, width: int) -> Tensor:
    """A round dot in each frame (T, H, W), at `centres` (T, 2) as x, y."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squared = (x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2
    return torch.exp(-squared / (2 * 3.0**2))


def centres_of(frames: Tensor) -> Tensor:
    """Centres of gravity (T, 2) as x, y."""
    height, width = frames.shape[1:]
    mass = frames.sum(dim=(1, 2))
    x, y = (frames.sum(1) @ torch.arange(width).float()), (frames.sum(2) @ torch.arange(height).float())
    return torch.stack([x, y], dim=1) / mass[:, None]


def global_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()))  # noqa: NPY002


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_frames_stay_equal_and_do_change(seed):
    frame = noise(1)
    out = augment(frame.repeat(16, 1, 1), seed, **KNOBS)
    assert torch.equal(out, out[:1].expand(16, -1, -1))
    assert not torch.allclose(out[0], frame[0], atol=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_map_moves_a_dot_in_all_frames_and_keeps_its_aspect(seed):
    height, width = 96, 144
    path = torch.tensor([[0.0, 0.0], [6, -3], [-5, 4], [2, 6], [-6, -6]])  # (T, 2): the dot moves
    corners = torch.tensor([[50.0, 35.0], [95, 40], [70, 65]])
    names = ("a", "b", "c")  # one dot each; three dots fix the map of a frame
    images = {name: dots(corner + path, height, width) for name, corner in zip(names, corners, strict=True)}
    out = make_augmentation(keys=names, **KNOBS).set_random_state(seed)(images)

    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    before = torch.stack([corner + path for corner in corners], dim=1) - middle  # (T, 3, 2)
    after = torch.stack([centres_of(out[name]) for name in names], dim=1) - middle
    maps = torch.linalg.solve(torch.cat([before, torch.ones(5, 3, 1)], dim=2), after)  # (T, 3, 2): linear, shift
    torch.testing.assert_close(maps[1:, :2], maps[:1, :2].expand(4, -1, -1), rtol=0, atol=0.01)
    torch.testing.assert_close(maps[1:, 2], maps[:1, 2].expand(4, -1), rtol=0, atol=0.1)

    linear, shift = maps[:, :2].mean(0), maps[:, 2].mean(0)
    zoom = torch.linalg.det(linear).sqrt()
    torch.testing.assert_close(linear @ linear.T, zoom**2 * torch.eye(2), rtol=0, atol=0.01)
    assert 1 / 1.2 - 0.01 < zoom < 1.2 + 0.01
    assert torch.rad2deg(torch.atan2(linear[0, 1], linear[0, 0])).abs() < 30.5
    assert abs(shift[0]) < 0.1 * width + 0.1 and abs(shift[1]) < 0.1 * height + 0.1
    assert (linear - torch.eye(2)).abs().max() > 0.02 and shift.abs().max() > 0.3  # the geometry did change


@pytest.mark.parametrize("seed", SEEDS)
def test_one_gamma_shades_all_frames_and_keeps_black_and_white(seed):
    frames = noise()
    frames[0, 0, 0], frames[1, 0, 0] = 0, 1  # in different frames: each alone has another least and largest value
    out = augment(frames, seed, contrast_fraction=0.5, prob=0)
    torch.testing.assert_close(out[:2, 0, 0], torch.tensor([0.0, 1]))
    inside = (frames > 0.05) & (frames < 0.95)
    gammas = [torch.log(out[t][inside[t]]) / torch.log(frames[t][inside[t]]) for t in range(3)]
    gamma = float(torch.cat(gammas).mean())
    assert 1 / 1.5 <= gamma <= 1.5 and abs(gamma - 1) > 0.01  # the brightness did change
    for each in gammas:
        torch.testing.assert_close(each, torch.full_like(each, gamma), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 16, 200])
@pytest.mark.parametrize("knobs", [{}, KNOBS, {**KNOBS, "flip_prob": 1}])
def test_shape_range_and_type_are_kept_for_any_number_of_frames(num_frames, knobs):
    augmentation = make_augmentation(**knobs).set_random_state(1)
    frames = noise(num_frames)
    before = frames.clone()
    for _ in range(3):
        item = {IMAGE: frames, LABEL: 1, FRAME_TIMES: torch.arange(num_frames)}
        out = augmentation(item)
        assert set(out) == set(item) and out[LABEL] == 1
        image = out[IMAGE]
        assert type(image) is Tensor and image.dtype == torch.float32
        assert image.shape == frames.shape
        assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(frames, before)


def test_a_meta_tensor_comes_out_plain():
    assert type(augment(MetaTensor(noise()))) is Tensor


def test_frames_all_of_one_value_stay_as_they_are():
    for value in (0.0, 0.5, 1.0):
        frames = torch.full((2, 20, 28), value)
        torch.testing.assert_close(augment(frames, **KNOBS), frames)


def test_one_seed_gives_one_result_and_another_seed_another():
    first, again, other = (augment(noise(), seed, **KNOBS) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.01


def test_successive_draws_of_one_seed_differ_and_repeat_together():
    runs = []
    for _ in range(2):
        augmentation = make_augmentation(**KNOBS).set_random_state(3)
        runs.append([augmentation({IMAGE: noise()})[IMAGE] for _ in range(4)])
    for i in range(4):
        assert torch.equal(runs[0][i], runs[1][i])
        assert all(not torch.equal(runs[0][i], runs[0][j]) for j in range(i))


def test_global_random_states_neither_change_nor_matter():
    augmentation = make_augmentation(**KNOBS, flip_prob=0.5).set_random_state(0)
    before = global_states()
    outs = [augmentation({IMAGE: noise()})[IMAGE] for _ in range(5)]
    assert global_states() == before
    with torch.random.fork_rng():
        torch.manual_seed(99)
        augmentation.set_random_state(0)
        again = [augmentation({IMAGE: noise()})[IMAGE] for _ in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(outs, again, strict=True))


def test_prob_is_the_share_of_sequences_moved():
    augmentation = make_augmentation(contrast_fraction=0, prob=0.3).set_random_state(0)
    frames = noise()
    moved = [not torch.allclose(augmentation({IMAGE: frames})[IMAGE], frames, atol=1e-5) for _ in range(400)]
    assert 0.23 < sum(moved) / 400 < 0.37  # three standard deviations


def test_gamma_spreads_evenly_over_its_range_from_the_first_draws_on():
    gammas = []
    for seed in range(300):  # MONAI's own gate would shift the mean of the second draw by 0.15 of the range
        augmentation = make_augmentation(contrast_fraction=1, prob=0).set_random_state(seed)
        for _ in range(2):
            out = augmentation({IMAGE: torch.tensor([[[0.0, 0.5, 1.0]]])})[IMAGE]
        gammas.append(-float(torch.log2(out[0, 0, 1])))
    assert 0.5 <= min(gammas) < 0.55 and 1.95 < max(gammas) <= 2
    assert abs(np.mean(gammas) - 1.25) < 0.075  # three standard errors


def test_no_change_asked_for_gives_the_frames_back():
    frames = noise()
    torch.testing.assert_close(augment(frames, **NONE), frames, rtol=0, atol=1e-5)


def test_left_and_right_are_exchanged_only_when_asked_for():
    frames = noise()
    torch.testing.assert_close(augment(frames, **NONE, flip_prob=1), frames.flip(2), rtol=0, atol=1e-5)
    still = make_augmentation(**NONE).set_random_state(0)
    for _ in range(100):
        torch.testing.assert_close(still({IMAGE: frames})[IMAGE], frames, rtol=0, atol=1e-5)


def test_move_frames_turns_clockwise():
    frames = noise(height=24, width=24)
    torch.testing.assert_close(move_frames(frames, 90, 1, (0, 0)), frames.rot90(-1, (1, 2)), rtol=0, atol=1e-5)


def test_move_frames_shifts_right_and_down_and_fills_with_the_darkest_value():
    frames = 0.3 + 0.7 * noise(height=20, width=30)
    out = move_frames(frames, 0, 1, (0.1, 0.25))  # 3 columns, 5 rows
    torch.testing.assert_close(out[:, 5:, 3:], frames[:, :-5, :-3], rtol=0, atol=1e-5)
    for outside in (out[:, :5], out[:, :, :3]):
        torch.testing.assert_close(outside, frames.min().expand_as(outside), rtol=0, atol=1e-5)


def test_move_frames_enlarges_about_the_middle():
    x = torch.arange(30).float().expand(2, 20, 30)
    out = move_frames(x, 0, 2, (0, 0))
    torch.testing.assert_close(out, 14.5 + (x - 14.5) / 2, rtol=0, atol=1e-4)


def test_move_frames_turned_wide_frames_keep_right_angles():
    frames = dots(torch.tensor([[69.5, 29.5], [59.5, 39.5]]), 60, 120)  # 10 right of, then 10 below the middle
    torch.testing.assert_close(
        centres_of(move_frames(frames, 30, 1, (0, 0))),
        torch.tensor([[59.5 + 8.660, 29.5 + 5.0], [59.5 - 5.0, 29.5 + 8.660]]),
        rtol=0,
        atol=0.02,
    )


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("rotate_degrees", -1),
        ("rotate_degrees", 181),
        ("translate_fraction", 1.5),
        ("zoom_fraction", -0.1),
        ("zoom_fraction", float("nan")),
        ("contrast_fraction", "0.2"),
        ("contrast_fraction", None),
        ("flip_prob", True),
        ("prob", 2),
        ("prob", (0.0, 1.0)),
    ],
)
def test_a_wrong_knob_is_refused(knob, value):
    with pytest.raises(ValueError) as refused:
        make_augmentation(**{knob: value})
    assert_message(refused.value, "configuration", knob, value, "a number of 0 to")


def test_jitter_and_augmentation_follow_one_seed_and_keep_frames_with_their_times(save):
    gaps = [0, *range(10, 49)]  # no two alike: a time names its frame
    levels = np.arange(40, dtype=np.uint8) * 6
    path = save(frames=np.broadcast_to(levels[:, None, None], (40, 12, 10)).copy(), FrameTimeVector=gaps)
    image_steps = [ShowRegiond(), WindowSequenced(window="stored"), ResizeFramesd(image_size=16)]
    load, augmentation = RandLoadSequenced(max_frames=6), make_augmentation(**{**KNOBS, "translate_fraction": 0})
    pipeline = Compose([load, *image_steps, augmentation])

    def run(seed: int) -> dict:
        return pipeline.set_random_state(seed)({IMAGE: path})

    before = global_states()
    runs = [run(seed) for seed in SEEDS]
    assert global_states() == before
    for seed, out in zip(SEEDS, runs, strict=True):
        again = run(seed)
        for key in (IMAGE, FRAME_TIMES, FRAME_INDICES):
            assert torch.equal(out[key], again[key])
        indices = out[FRAME_INDICES].numpy()
        assert len(out[IMAGE]) == len(indices) == 6
        np.testing.assert_allclose(out[FRAME_TIMES], np.cumsum(gaps)[indices])
        stored = levels[indices] / 255
        shown = out[IMAGE][:, 8, 8].double().numpy()  # the middle, which no border reaches
        least, largest = out[IMAGE].min().item(), stored.max()
        scaled, curve = (stored - least) / (largest - least), (shown - least) / (largest - least)
        gammas = np.log(curve[1:-1]) / np.log(scaled[1:-1])
        np.testing.assert_allclose(gammas, gammas[0], rtol=1e-3)  # one curve through the frames that the times name
        assert curve[-1] == pytest.approx(1) and 1 / 1.5 <= gammas[0] <= 1.5
    assert len({tuple(out[FRAME_INDICES].tolist()) for out in runs}) > 1
    assert len({float(out[IMAGE][3, 8, 8]) for out in runs}) == len(SEEDS)


def test_augmented_frames_go_into_the_encoder_input(save):
    steps = [RandLoadSequenced(), ShowRegiond(), WindowSequenced(), ResizeFramesd(image_size=28)]
    out = Compose([*steps, make_augmentation(), ToEncoderInputd()]).set_random_state(0)({IMAGE: save()})
    assert type(out[IMAGE]) is Tensor and out[IMAGE].shape == (4, 3, 28, 28)
    assert out[IMAGE].abs().max() <= 1 and out[HEADER].num_frames == 4


def test_augmentation_survives_the_way_to_a_worker():
    copy = pickle.loads(pickle.dumps(make_augmentation(**KNOBS).set_random_state(5)))
    assert torch.equal(copy({IMAGE: noise()})[IMAGE], augment(noise(), 5, **KNOBS))

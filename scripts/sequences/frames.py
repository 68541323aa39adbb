"""Frames at the ends of their way: what a list says of them, and the encoder's input. Plain functions, no keys."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.errors import SequenceError, bad_value

PIXEL_MEAN = 0.5  # one mean and deviation for every channel, as RETFound-Green was trained (its README)
PIXEL_STD = 0.5


def are_indices(frames: object) -> bool:
    """True for a list of ascending whole numbers from 0, not empty."""
    if not isinstance(frames, list) or not frames:
        return False
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in frames)
    return whole and frames[0] >= 0 and all(one < two for one, two in pairwise(frames))


def are_times(frame_times_ms: object) -> bool:
    """True for a list of finite numbers or None, not empty."""
    if not isinstance(frame_times_ms, list) or not frame_times_ms:
        return False
    numbers = [time for time in frame_times_ms if time is not None]
    return all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers)


def check_indices(item: object, frames: Sequence[int], num_frames: int) -> np.ndarray:
    """The `frames` of a datalist item as indices (T,) int64.

    Raises:
        SequenceError: empty, not ascending, or outside the sequence.
    """
    if not are_indices(frames) or frames[-1] >= num_frames:
        raise SequenceError(
            bad_value(item, "frames", frames, f"ascending 0-based indices below {num_frames}, at least one")
        )
    return np.asarray(frames, dtype=np.int64)


def check_times(item: object, frame_times_ms: Sequence[float | None], num_frames: int) -> np.ndarray:
    """The `frame_times_ms` of a datalist item, (T,) float64 since its first frame, null becomes NaN.

    Raises:
        SequenceError: not one number for each frame, or decreasing.
    """
    known = are_times(frame_times_ms)
    times = np.array([np.nan if time is None else time for time in (frame_times_ms if known else [])], dtype=np.float64)
    if len(times) != num_frames or (np.diff(times[np.isfinite(times)]) < 0).any():
        found = f"{len(frame_times_ms)} values" if known else frame_times_ms
        raise SequenceError(
            bad_value(item, "frame_times_ms", found, f"{num_frames} numbers that never decrease, null = unknown")
        )
    return times - times[0] if np.isfinite(times[0]) else times


def resize_frames(frames: Tensor, image_size: int) -> Tensor:
    """Frames scaled to fit a square: aspect kept, in the middle, the rest filled with the darkest value.

    Bilinear with antialiasing.

    Args:
        frames: (T, H, W) float32.
        image_size: side of the square in pixels.

    Returns:
        (T, image_size, image_size) float32.
    """
    height, width = frames.shape[-2:]
    scale = image_size / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    scaled = F.interpolate(frames[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (image_size - size[0]) // 2, (image_size - size[1]) // 2
    margins = (left, image_size - size[1] - left, top, image_size - size[0] - top)
    return F.pad(scaled, margins, value=float(frames.min()))


def to_encoder_input(
    frames: Tensor, mean: float | Sequence[float] = PIXEL_MEAN, std: float | Sequence[float] = PIXEL_STD
) -> Tensor:
    """Brightness in [0, 1] to what the encoder takes: grey in three channels, minus the mean, over the deviation.

    Args:
        frames: (T, H, W) float32.
        mean: one number, or one a channel.
        std: likewise, above 0.

    Returns:
        (T, 3, H, W) float32. Equal channels share one memory: copy before you write into it.
    """
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=frames.device)[:, None, None]  # (1 or 3, 1, 1)
        for values in (channel_values("pixel_mean", mean), channel_values("pixel_std", std, positive=True))
    )
    return ((frames[:, None] - shift) / scale).expand(-1, 3, -1, -1)  # (T, 3, H, W)


def channel_values(knob: str, value: Any, positive: bool = False) -> tuple[float, ...]:
    """One number for all channels, or three that differ.

    Args:
        knob: for the message.
        value: a number, or a list of one or three.
        positive: refuse 0 and below.

    Raises:
        ValueError: anything else, or a number that is not finite.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not numbers or len(values) not in (1, 3) or (positive and min(values) <= 0):
        allowed = f"a number{' above 0' if positive else ''}, or a list of three, one a channel"
        raise ValueError(bad_value("configuration", knob, value, allowed))
    return tuple(float(v) for v in (values if len(set(values)) > 1 else values[:1]))

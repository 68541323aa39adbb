"""Arithmetic on frames: which to read, grey values, size, intensity, encoder input. Plain functions, no keys."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.errors import SequenceError, bad_value

PIXEL_MEAN = 0.5  # one mean and deviation for every channel, as RETFound-Green was trained (its README)
PIXEL_STD = 0.5
FRAME_CHOICES = ("all", "uniform")
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as YBR in PS3.3 C.7.6.3.1.2


def choose_frames(num_frames: int, frame_choice: str, max_frames: int) -> np.ndarray:
    """0-based indices of the frames to read, ascending, (T,) int64.

    Args:
        num_frames: frames of the sequence, at least 1.
        frame_choice: `all`, or `uniform` for at most `max_frames` spread evenly, first and last included.
        max_frames: at least 1; of no effect with `all`.

    Raises:
        ValueError: an unknown choice, or `max_frames` below 1.
    """
    if frame_choice not in FRAME_CHOICES:
        raise ValueError(bad_value("configuration", "frame_choice", frame_choice, f"one of {FRAME_CHOICES}"))
    if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < 1:
        raise ValueError(bad_value("configuration", "max_frames", max_frames, "a whole number of at least 1"))
    if frame_choice == "all" or num_frames <= max_frames:
        return np.arange(num_frames)
    return np.linspace(0, num_frames - 1, max_frames).round().astype(np.int64)


def are_indices(frames: object) -> bool:
    """True for a list of whole numbers, not empty."""
    whole = isinstance(frames, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in frames)
    return whole and len(frames) > 0  # type: ignore[arg-type]


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
    valid = are_indices(frames)
    indices = np.asarray(frames if valid else [0])
    if not valid or (np.diff(indices) <= 0).any() or indices[0] < 0 or indices[-1] >= num_frames:
        raise SequenceError(
            bad_value(item, "frames", frames, f"ascending 0-based indices below {num_frames}, at least one")
        )
    return indices.astype(np.int64)


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


def to_grey(stored: np.ndarray, photometric: str, bits_stored: int) -> Tensor:
    """Brightness of each pixel, larger is brighter, (T, H, W) float32 in stored units.

    MONOCHROME1 displays its smallest value as white (PS3.3 C.7.6.3.1.2) and is inverted; RGB becomes luminance.

    Args:
        stored: (T, H, W), or (T, H, W, 3) RGB.
        photometric: PhotometricInterpretation.
        bits_stored: BitsStored.
    """
    values = torch.from_numpy(stored.astype(np.float32, copy=False))
    if values.ndim == 4:
        return values @ torch.tensor(LUMINANCE)  # (T, H, W)
    return (2**bits_stored - 1) - values if photometric == "MONOCHROME1" else values


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


def normalise_sequence(frames: Tensor, lower: float, upper: float) -> Tensor:
    """Frames scaled to [0, 1] between two percentiles of the whole sequence, never of a single frame.

    The change from frame to frame is the signal, so all frames share one scale.

    Args:
        frames: (T, H, W) float32.
        lower: percentile that becomes 0, in [0, 100).
        upper: percentile that becomes 1, in (lower, 100].

    Returns:
        (T, H, W) float32 in [0, 1].

    Raises:
        SequenceError: every pixel has the same value.
    """
    if not 0 <= lower < upper <= 100:
        raise ValueError(
            bad_value(
                "configuration",
                "percentiles",
                (lower, upper),
                "0 <= lower_percentile < upper_percentile <= 100",
            )
        )
    values = frames.numpy()
    low, high = (float(v) for v in np.percentile(values, (lower, upper)))
    if high <= low:  # nearly all pixels alike: the percentiles fall on one value
        low, high = float(values.min()), float(values.max())
    if high <= low:
        raise SequenceError(bad_value("sequence", "pixel values", f"all {low:g}", "at least two different values"))
    return ((frames - low) / (high - low)).clamp(0.0, 1.0)


def to_encoder_input(frames: Tensor) -> Tensor:
    """Frames in [0, 1] (T, H, W) -> (T, 3, H, W) float32, three equal channels, encoder's mean and deviation."""
    return ((frames - PIXEL_MEAN) / PIXEL_STD)[:, None].repeat(1, 3, 1, 1)

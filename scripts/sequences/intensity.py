"""Stored values -> brightness in [0, 1]: luminance, padding, and the window of one sequence.

No modality LUT: that of XA and RF leads back to the X-ray intensity and is not for display (PS3.3 C.8.7.1.1.2, PS3.4
N.2.1.2 note 1).
"""

import math

import numpy as np
import torch
from torch import Tensor

from scripts.dicom.header import LINEAR, SIGMOID, SequenceHeader, Voi
from scripts.errors import SequenceError, bad_value
from scripts.sequences.subtraction import is_logarithmic

WINDOWS = ("percentile", "voi", "stored")
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601, as YBR in PS3.3 C.7.6.3.1.2
# Percentiles are taken on every k-th row and column of each frame, k the least that leaves about this many pixels: they
# stay within 0.3 % of the distance between them (tests/test_intensity.py, synthetic runs), and sorting all pixels of
# 20 x 1024 x 1024 would take longer than the rest of the window.
MAX_PERCENTILE_PIXELS = 2**20


def check_window(window: str, lower: float, upper: float) -> None:
    """Refuse what no sequence can be windowed with, before the first exam is read.

    Args:
        window: `percentile`, `voi` or `stored`.
        lower: percentile that becomes 0, in [0, 100); of use with `voi` too, for exams that bring no window.
        upper: percentile that becomes 1, in (lower, 100].

    Raises:
        ValueError: unknown window, or impossible percentiles.
    """
    if window not in WINDOWS:
        raise ValueError(bad_value("configuration", "window", window, f"one of {', '.join(WINDOWS)}"))
    numbers = all(isinstance(p, (int, float)) and not isinstance(p, bool) for p in (lower, upper))
    if not numbers or not 0 <= lower < upper <= 100:
        allowed = "0 <= lower_percentile < upper_percentile <= 100"
        raise ValueError(bad_value("configuration", "percentiles", (lower, upper), allowed))


def window_used(header: SequenceHeader, window: str) -> str:
    """The window a sequence gets: `voi` becomes `percentile` where the exam asks for none, or was subtracted.

    A window in an image's header is for its stored values, and after a subtraction it would cut off one half of them;
    one made for differences comes in a presentation state (PS3.4 N.2.1.3), which a sequence does not have.
    """
    return "percentile" if window == "voi" and (header.subtracted or header.voi is None) else window


def to_values(stored: np.ndarray, header: SequenceHeader) -> Tensor:
    """Stored values as one number a pixel, (T, H, W) float32 in stored units; `stored` is left as it is.

    RGB becomes luminance. Pixels without content (PixelPaddingValue, PS3.3 C.7.5.1.1.2) get the value among the others
    that displays darkest: the smallest, of MONOCHROME1 the largest.

    Args:
        stored: (T, H, W), or (T, H, W, 3) RGB.
        header: of the sequence.
    """
    if stored.ndim == 4:
        values = np.empty(stored.shape[:3], dtype=np.float32)
        for t, frame in enumerate(stored):  # one by one: a float copy of all three channels is never held
            values[t] = frame.astype(np.float32) @ np.asarray(LUMINANCE, dtype=np.float32)
        return torch.from_numpy(values)
    values = stored.astype(np.float32)
    if header.padding is not None:
        lowest, highest = header.padding
        padded = (stored >= lowest) & (stored <= highest)
        if padded.any() and not padded.all():
            content = stored[~padded]
            values[padded] = content.max() if header.photometric == "MONOCHROME1" else content.min()
    return torch.from_numpy(values)


def window_sequence(values: Tensor, header: SequenceHeader, window: str, lower: float, upper: float) -> Tensor:
    """Brightness of each pixel, (T, H, W) float32 in [0, 1], larger is brighter; MONOCHROME1 is inverted last.

    All frames share one scale, since the change from frame to frame is the signal.

    Args:
        values: (T, H, W) float32, of `to_values` or `subtract`.
        header: of the sequence; `subtracted` where `values` are differences.
        window: `voi`: as the exam asks to be shown (PS3.3 C.11.2), else percentile, see `window_used`.
            `percentile`: between two percentiles of the whole sequence.
            `stored`: between the least and the largest value its bits can hold, or difference of such values, so that
            nothing is cut off and exams of one device can be compared; floats and 32-bit integers, which never fill
            their range, between their own least and largest value.
        lower: percentile that becomes 0, in [0, 100).
        upper: percentile that becomes 1, in (lower, 100].

    Raises:
        ValueError: a setting `check_window` refuses.
        SequenceError: all pixels have the same value (`percentile`), or the width of the exam's window is not positive.
    """
    check_window(window, lower, upper)
    used = window_used(header, window)
    if used == "voi" and header.voi is not None:
        shown = _through_voi(values, header.voi, header)
    else:
        known_range = used == "stored" and header.bits_stored <= 16
        lower, upper = (0, 100) if used == "stored" else (lower, upper)
        low, high = _stored_range(header) if known_range else _percentiles(values, header, lower, upper)
        shown = (values - low).div_(high - low).clamp_(0.0, 1.0)
    return 1 - shown if header.photometric == "MONOCHROME1" else shown


def _stored_range(header: SequenceHeader) -> tuple[float, float]:
    """Least and largest value that BitsStored can hold, or difference between two such values."""
    levels = 2**header.bits_stored
    low, high = (-levels // 2, levels // 2 - 1) if header.signed else (0, levels - 1)
    if not header.subtracted:
        return float(low), float(high)
    largest = math.log1p(high) if is_logarithmic(header) else float(high - low)
    return -largest, largest


def _percentiles(values: Tensor, header: SequenceHeader, lower: float, upper: float) -> tuple[float, float]:
    """Two percentiles of a sequence (T, H, W); where they coincide or ask for it, its exact least and largest value."""
    least, largest = (float(value) for value in torch.aminmax(values))
    if not least < largest:
        raise SequenceError(
            bad_value(header.files[0], "pixel values", f"all {least:g}", "at least two different values")
        )
    step = math.ceil(math.sqrt(values.numel() / MAX_PERCENTILE_PIXELS))
    low, high = (float(value) for value in np.percentile(values[:, ::step, ::step].numpy(), (lower, upper)))
    low, high = least if lower == 0 else low, largest if upper == 100 else high
    return (low, high) if low < high else (least, largest)  # nearly all pixels alike: percentiles fall on one value


def _through_voi(values: Tensor, voi: Voi, header: SequenceHeader) -> Tensor:
    """Values through the exam's VOI LUT or window, (T, H, W) float32 in [0, 1]."""
    if voi.lut is not None:
        return _through_lut(values, voi.lut, voi.lut_first, voi.lut_bits)
    if not voi.width > 0:
        raise SequenceError(bad_value(header.files[0], "(0028,1051) WindowWidth", voi.width, "more than 0"))
    if voi.function == SIGMOID:  # PS3.3 C.11.2.1.3.1
        return torch.sigmoid_((values - voi.center).mul_(4 / voi.width))
    center, width = (voi.center - 0.5, voi.width - 1) if voi.function == LINEAR else (voi.center, voi.width)
    if width <= 0:  # LINEAR of width 1 is a threshold (PS3.3 C.11.2.1.2.1)
        return (values > center - width / 2).to(values.dtype)
    return (values - center).div_(width).add_(0.5).clamp_(0.0, 1.0)


def _through_lut(values: Tensor, lut: np.ndarray, first: int, bits: int) -> Tensor:
    """Values through a VOI LUT; those before its first entry or after its last one get that entry (C.11.2.1.1)."""
    # Entries above what the descriptor's bits can hold are met in real files: their own bits are the scale then.
    bits = max(bits, int(lut.max()).bit_length())
    table = torch.from_numpy((lut / (2**bits - 1)).astype(np.float32))  # (entries,) in [0, 1]
    shown = torch.empty_like(values)
    for t, frame in enumerate(values):  # one by one: no second copy of the sequence is held
        entries = (frame - first).round_().clamp_(0, len(table) - 1).int()  # (H, W)
        shown[t] = table.index_select(0, entries.flatten()).view_as(frame)  # a third of the time of table[entries]
    return shown

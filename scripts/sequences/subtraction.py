"""Digital subtraction: which frames are the mask of a frame, and contrast minus mask.

Subtraction takes place in a space logarithmic to the X-ray intensity (PS3.4 N.2.1.2): there the attenuations along a
ray add up (Beer-Lambert), so that bone in front of a vessel does not change the vessel's contrast.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scripts.dicom.header import TID, MaskStep, SequenceHeader
from scripts.errors import SequenceError, bad_value

SUBTRACTIONS = ("none", "header", "bolus")
# A mask of n frames leaves sqrt(1 + 1/n) times a frame's noise in the difference: 3 % more than no noise at n = 16.
MAX_BOLUS_MASK_FRAMES = 16


class FrameMask(NamedTuple):
    """The mask of one frame: the mean of frames, moved by MaskSubPixelShift."""

    frames: tuple[int, ...]  # 0-based, at least one
    shift: tuple[float, float] = (0.0, 0.0)  # rows downwards, columns to the left (PS3.3 C.7.6.10.1.2)


def check_subtraction(subtraction: str) -> None:
    """Refuse an unknown choice before the first exam is read.

    Raises:
        ValueError: not one of `SUBTRACTIONS`.
    """
    if subtraction not in SUBTRACTIONS:
        raise ValueError(bad_value("configuration", "subtraction", subtraction, f"one of {', '.join(SUBTRACTIONS)}"))


def needs_pre_contrast(header: SequenceHeader, subtraction: str) -> bool:
    """True where the mask has to be found in the bolus curve, because the header of a run names none."""
    return subtraction == "bolus" and not header.mask_steps and header.num_frames > 1


def is_logarithmic(header: SequenceHeader) -> bool:
    """True where logarithms are subtracted: stored values are proportional to the X-ray intensity.

    LOG values are logarithms already. DISP values and those of unknown relation, a retinal camera's too, are subtracted
    as they are, since no way to the logarithm is known for them (PS3.4 N.2.1.2, notes 1 to 3).
    """
    return header.facts.get("PixelIntensityRelationship") == "LIN"


def mask_frames(
    header: SequenceHeader,
    indices: Iterable[int],
    subtraction: str,
    pre_contrast: Sequence[int] | np.ndarray | None = None,
) -> list[FrameMask]:
    """The mask of each chosen frame; an empty list where the sequence stays as it is.

    `header` follows the first item of MaskSubtractionSequence that applies to a frame (PS3.3 C.7.6.10.1). `bolus` does
    the same, and gives an exam without such items the mean of its pre-contrast frames as mask.

    Within one sequence either all frames are subtracted or none: differences and anatomy have no common scale. A frame
    outside every ApplicableFrameRange, which a viewer shows unsubtracted, and a TID frame whose mask would lie outside
    the sequence are their own mask and become 0, no change; mostly they are the mask frames, whose difference is noise.

    Args:
        header: of the sequence.
        indices: 0-based frames that are wanted.
        subtraction: `none`, `header` or `bolus`.
        pre_contrast: 0-based frames before the contrast arrives, where `needs_pre_contrast`; of many, at most
            `MAX_BOLUS_MASK_FRAMES` spread evenly are used, so that few frames are decoded for the mask.

    Raises:
        ValueError: unknown `subtraction`.
        SequenceError: a mask frame does not exist, or none was found before the contrast.
    """
    check_subtraction(subtraction)
    if subtraction == "none":
        return []
    if needs_pre_contrast(header, subtraction):
        if pre_contrast is None or len(pre_contrast) == 0:
            way_out = "Its contrast may be there from the first frame on: use subtraction header or none."
            found = "not among its frames"
            raise SequenceError(bad_value(header.files[0], "pre-contrast phase", found, "at least one frame", way_out))
        spread = np.linspace(0, len(pre_contrast) - 1, min(len(pre_contrast), MAX_BOLUS_MASK_FRAMES)).round()
        mask = FrameMask(tuple(int(pre_contrast[int(i)]) for i in spread))
        return [mask for _ in indices]
    for step in header.mask_steps:
        _check_step(header, step)
    frames = [int(frame) for frame in indices]
    asked = [_header_mask(header, frame) for frame in frames]
    if not any(asked):
        return []
    return [mask or FrameMask((frame,)) for frame, mask in zip(frames, asked, strict=True)]


def needed_frames(indices: Iterable[int], masks: Iterable[FrameMask]) -> list[int]:
    """The frames to decode, ascending and each once: those wanted and those of their masks."""
    return sorted({int(frame) for frame in indices} | {frame for mask in masks for frame in mask.frames})


def subtract(
    values: Tensor, decoded: Sequence[int], indices: Iterable[int], masks: Sequence[FrameMask], header: SequenceHeader
) -> Tensor:
    """Wanted frames minus their masks: 0 where nothing changed, and a vessel as dark or bright as it was stored.

    Masks are averaged one frame after the other, so that only the result and a frame or two are held beside `values`.

    Args:
        values: decoded frames in stored units, (N, H, W) float32.
        decoded: which frames they are, of `needed_frames`, (N,).
        indices: the frames that are wanted, T of them.
        masks: of `mask_frames`; empty: nothing is subtracted.
        header: of the sequence; says whether logarithms are subtracted.

    Returns:
        (T, H, W) float32, signed (PS3.4 N.2.1.2): stored units, or natural logarithms where `is_logarithmic`.
    """
    at = {frame: position for position, frame in enumerate(decoded)}
    wanted = [at[int(frame)] for frame in indices]
    if not masks:
        return values if wanted == list(range(len(values))) else values[wanted]
    logarithmic = is_logarithmic(header)
    differences = values.new_empty((len(wanted), *values.shape[1:]))
    current, mean = None, values
    for t, (position, mask) in enumerate(zip(wanted, masks, strict=True)):
        if mask != current:
            current, mean = mask, _mask_image(values, [at[frame] for frame in mask.frames], mask.shift, logarithmic)
        torch.sub(_intensity_space(values[position], logarithmic), mean, out=differences[t])
    return differences


def _check_step(header: SequenceHeader, step: MaskStep) -> None:
    last = header.num_frames - 1
    wrong = [frame for frame in step.mask_frames if not 0 <= frame <= last]
    if wrong or (step.operation != TID and not step.mask_frames):
        found = wrong[0] + 1 if wrong else "empty"  # the header counts from 1
        raise SequenceError(
            bad_value(header.files[0], "(0028,6110) MaskFrameNumbers", found, f"frames from 1 to {last + 1}")
        )
    if not all(math.isfinite(pixels) for pixels in step.shift):
        raise SequenceError(bad_value(header.files[0], "(0028,6114) MaskSubPixelShift", step.shift, "finite numbers"))


def _header_mask(header: SequenceHeader, frame: int) -> FrameMask | None:
    for step in header.mask_steps:
        if step.frame_ranges and not any(first <= frame <= last for first, last in step.frame_ranges):
            continue
        if step.operation != TID:
            return FrameMask(step.mask_frames, step.shift)
        if 0 <= frame - step.tid_offset < header.num_frames:
            return FrameMask((frame - step.tid_offset,), step.shift)
    return None


def _mask_image(values: Tensor, positions: Sequence[int], shift: tuple[float, float], logarithmic: bool) -> Tensor:
    """Mean of frames, moved by `shift`; averaged after the logarithm, in the order of PS3.4 N.2.1."""
    total = torch.zeros(values.shape[1:], dtype=torch.float64)  # (H, W); exact for equal frames, so they become 0
    for position in positions:
        total += _intensity_space(values[position], logarithmic)
    mean = (total / len(positions)).to(values.dtype)
    down, left = shift
    return _resampled(_resampled(mean, 0, -down), 1, left)


def _intensity_space(frame: Tensor, logarithmic: bool) -> Tensor:
    """Values as they are subtracted, (H, W); + 1 keeps the logarithm of a black pixel finite."""
    return frame.clamp(min=0).log1p() if logarithmic else frame


def _resampled(image: Tensor, dim: int, offset: float) -> Tensor:
    """The image (H, W) read `offset` pixels further along `dim`, linear between pixels, edges repeated."""
    if offset == 0:
        return image
    size = image.shape[dim]
    places = (torch.arange(size, dtype=torch.float64) + offset).clamp(0, size - 1)
    before = places.floor().long()
    after = (before + 1).clamp(max=size - 1)
    weight = (places - before).to(image.dtype)
    weight = weight[:, None] if dim == 0 else weight
    return torch.lerp(image.index_select(dim, before), image.index_select(dim, after), weight)

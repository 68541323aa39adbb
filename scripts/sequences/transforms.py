"""MONAI transforms over the arithmetic of this folder: a datalist item -> encoder input (T, 3, H, W).

Spatial transforms of MONAI may stand between them: they see (T, H, W), frames as channels, so that one draw moves all
frames of a sequence alike.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader
from scripts.keys import FRAME_INDICES, FRAME_TIMES, FRAMES, HEADER, IMAGE, MODALITY
from scripts.sequences.bolus import pre_contrast, read_curve
from scripts.sequences.choice import PHASE_BOUNDS_S, FrameChoice, choose_frames, jitter
from scripts.sequences.frames import (
    PIXEL_MEAN,
    PIXEL_STD,
    channel_values,
    check_indices,
    check_times,
    resize_frames,
    to_encoder_input,
)
from scripts.sequences.geometry import check_geometry, show_region
from scripts.sequences.intensity import check_window, to_values, window_sequence
from scripts.sequences.reader import read_frames, read_header
from scripts.sequences.subtraction import check_subtraction, mask_frames, needed_frames, needs_pre_contrast, subtract


class LoadSequenced(MapTransform):
    """Read the chosen frames of a sequence, mask subtracted where asked for; only frames that are needed are decoded.

    In:  image: path of a file with all frames, a folder of single-frame files, or a list of such files;
         frames (optional): 0-based indices to use instead of `frame_choice`;
         frame_times_ms (optional): one time for each frame of the source, instead of the header's;
         modality (optional): DICOM's code, of exams whose container states none: contrast is dark in XA, bright in OP.
    Out: image (T, H, W) float32 in stored units; frame_times_ms (T,) float32 since the first frame of the sequence,
         NaN = unknown; frame_indices (T,) int64; header: SequenceHeader, which the transforms after this one read.
    No randomness.

    Args:
        keys: one key, that of the path.
        frame_choice: of `FrameChoice`, as the next three.
        max_frames: T at most, of no effect with `all` and `one_per_phase`.
        every_ms: spacing with `every_ms`.
        phase_bounds_s: ends of the phases, seconds since the first frame.
        subtraction: `header`: digital subtraction where the exam asks for it; `bolus`: of every other run too, with
            the frames before the contrast as mask; `none`.
        max_sequence_bytes: largest decoded size of a whole sequence.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        frame_choice: str = "uniform",
        max_frames: int = 20,
        every_ms: float = 1000.0,
        phase_bounds_s: Sequence[float] = PHASE_BOUNDS_S,
        subtraction: str = "header",
        max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES,
    ) -> None:
        super().__init__(keys)
        self.choice = FrameChoice(frame_choice, max_frames, every_ms, tuple(phase_bounds_s))
        check_subtraction(subtraction)
        self.subtraction = subtraction
        self.max_sequence_bytes = max_sequence_bytes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key]
            paths = Path(source) if isinstance(source, (str, Path)) else [Path(path) for path in source]
            header = self.read_header(paths)
            if out.get(FRAME_TIMES) is not None:
                header = replace(header, frame_times_ms=check_times(source, out[FRAME_TIMES], header.num_frames))
            if out.get(MODALITY) is not None and not header.modality:
                header = replace(header, facts={**header.facts, "Modality": out[MODALITY]})
            before_contrast = needs_pre_contrast(header, self.subtraction)
            by_curve = out.get(FRAMES) is None and self.choice.needs_curve(header.num_frames)
            curve = read_curve(header, read_frames) if before_contrast or by_curve else None
            if out.get(FRAMES) is None:
                indices = self.place(
                    choose_frames(header.frame_times_ms, self.choice, curve, source), header.num_frames
                )
            else:
                indices = check_indices(source, out[FRAMES], header.num_frames)
            mask = pre_contrast(curve) if before_contrast and curve is not None else None
            masks = mask_frames(header, indices, self.subtraction, mask)
            decoded = needed_frames(indices, masks)
            values = to_values(read_frames(header, decoded), header)  # (T and mask frames, H, W)
            out[key] = subtract(values, decoded, indices, masks, header)  # (T, H, W)
            out[FRAME_TIMES] = torch.from_numpy(header.frame_times_ms[indices]).to(torch.float32)
            out[FRAME_INDICES] = torch.from_numpy(indices)
            out[HEADER] = replace(header, subtracted=bool(masks))
        return out

    def read_header(self, source: Path | Sequence[Path]) -> SequenceHeader:
        """The header of a sequence; errors as of `scripts.sequences.reader.read_header`."""
        return read_header(source, self.max_sequence_bytes)

    def place(self, indices: np.ndarray, num_frames: int) -> np.ndarray:
        """The frames to use, of those chosen."""
        return indices


class RandLoadSequenced(LoadSequenced, Randomizable):
    """`LoadSequenced` with temporal jitter, for training the encoder: each chosen frame moves between its neighbours.

    Random: seed it with `set_random_state`; the global state is left alone.

    Args:
        temporal_jitter: 0 for the chosen frames, 1 for any frame up to half-way to the next one.
        options: of `LoadSequenced`.
    """

    def __init__(self, keys: KeysCollection = IMAGE, temporal_jitter: float = 1.0, **options: Any) -> None:
        super().__init__(keys, **options)
        self.temporal_jitter = temporal_jitter
        self.place(np.arange(1), num_frames=1)  # a wrong amount is told before the first exam

    def place(self, indices: np.ndarray, num_frames: int) -> np.ndarray:
        """The frames chosen, each moved at random."""
        return jitter(indices, num_frames, self.temporal_jitter, self.R)


class ShowRegiond(MapTransform):
    """Keep what the exam shows: image (T, H, W) in stored units -> (T, h, w), header. No randomness.

    Args:
        keys: one key.
        border: what is outside display shutter, collimator and black border: `keep`, `fill` or `crop`.
        panel: `whole`, or the `left` or `right` half of frames that hold two pictures side by side, taken first.
    """

    def __init__(self, keys: KeysCollection = IMAGE, border: str = "keep", panel: str = "whole") -> None:
        super().__init__(keys)
        check_geometry(border, panel)
        self.border, self.panel = border, panel

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = show_region(out[key], out[HEADER], self.border, self.panel)
        return out


class WindowSequenced(MapTransform):
    """Scale a sequence to brightness in [0, 1]: image (T, H, W) in stored units, header -> same shape. No randomness.

    Args:
        keys: one key.
        window: `percentile` of the sequence, `voi` (the exam's own window or table) or `stored` (all that bits hold).
        lower_percentile: becomes 0.
        upper_percentile: becomes 1.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        window: str = "percentile",
        lower_percentile: float = 0.5,
        upper_percentile: float = 99.5,
    ) -> None:
        super().__init__(keys)
        check_window(window, lower_percentile, upper_percentile)
        self.window, self.lower, self.upper = window, lower_percentile, upper_percentile

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = window_sequence(out[key], out[HEADER], self.window, self.lower, self.upper)
        return out


class ResizeFramesd(MapTransform):
    """Scale frames into a square, aspect kept: image (T, H, W) -> (T, image_size, image_size). No randomness."""

    def __init__(self, keys: KeysCollection = IMAGE, image_size: int = 224) -> None:
        super().__init__(keys)
        self.image_size = image_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {
            **data,
            **{key: resize_frames(data[key], self.image_size) for key in self.key_iterator(dict(data))},
        }


class ToEncoderInputd(MapTransform):
    """Frames in [0, 1] to what the encoder takes: image (T, H, W) -> (T, 3, H, W). No randomness.

    Args:
        keys: of images.
        pixel_mean: one number, or one a channel, as the encoder was trained with.
        pixel_std: likewise, above 0.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        pixel_mean: float | Sequence[float] = PIXEL_MEAN,
        pixel_std: float | Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__(keys)
        self.pixel_mean = channel_values("pixel_mean", pixel_mean)
        self.pixel_std = channel_values("pixel_std", pixel_std, positive=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {
            **data,
            **{
                key: to_encoder_input(data[key], self.pixel_mean, self.pixel_std)
                for key in self.key_iterator(dict(data))
            },
        }

"""MONAI transforms over `dicom` and `frames`: a datalist item -> encoder input (T, 3, H, W)."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.dicom import sequence as dicom
from scripts.keys import FRAME_INDICES, FRAME_TIMES, FRAMES, HEADER, IMAGE
from scripts.sequences.frames import (
    check_indices,
    check_times,
    choose_frames,
    normalise_sequence,
    resize_frames,
    to_encoder_input,
    to_grey,
)


class LoadSequenced(MapTransform):
    """Read the chosen frames of a DICOM sequence; only these are decoded.

    In:  image: path of a multi-frame file, a folder of single-frame files, or a list of such files;
         frames (optional): 0-based indices to use instead of `frame_choice`;
         frame_times_ms (optional): one time for each frame of the source, instead of the header's.
    Out: image (T, H, W) float32, larger is brighter, stored units; frame_times_ms (T,) float32 since the first
         frame of the sequence, NaN = unknown; frame_indices (T,) int64; header: allow-listed facts.
    No randomness.

    Args:
        keys: one key, that of the path.
        frame_choice: `all` or `uniform`.
        max_frames: T at most, with `uniform`.
        max_sequence_bytes: largest decoded size of a whole sequence.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        frame_choice: str = "uniform",
        max_frames: int = 20,
        max_sequence_bytes: int = dicom.DEFAULT_MAX_SEQUENCE_BYTES,
    ) -> None:
        super().__init__(keys)
        choose_frames(1, frame_choice, max_frames)  # a wrong knob is told before the first exam
        self.frame_choice = frame_choice
        self.max_frames = max_frames
        self.max_sequence_bytes = max_sequence_bytes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key]
            paths = Path(source) if isinstance(source, (str, Path)) else [Path(path) for path in source]
            header = dicom.read_header(paths, self.max_sequence_bytes)
            if out.get(FRAMES) is None:
                indices = choose_frames(header.num_frames, self.frame_choice, self.max_frames)
            else:
                indices = check_indices(source, out[FRAMES], header.num_frames)
            stored = dicom.read_frames(header, indices.tolist())
            out[key] = to_grey(stored, header.photometric, header.bits_stored)  # (T, H, W)
            times = header.frame_times_ms
            if out.get(FRAME_TIMES) is not None:
                times = check_times(source, out[FRAME_TIMES], header.num_frames)
            out[FRAME_TIMES] = torch.from_numpy(times[indices]).to(torch.float32)
            out[FRAME_INDICES] = torch.from_numpy(indices)
            out[HEADER] = header.facts
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


class NormaliseSequenced(MapTransform):
    """Scale a sequence to [0, 1] between two of its percentiles: image (T, H, W) -> same shape. No randomness."""

    def __init__(
        self, keys: KeysCollection = IMAGE, lower_percentile: float = 0.5, upper_percentile: float = 99.5
    ) -> None:
        super().__init__(keys)
        self.lower, self.upper = lower_percentile, upper_percentile

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = normalise_sequence(out[key], self.lower, self.upper)
        return out


class ToEncoderInputd(MapTransform):
    """Frames in [0, 1] to what the encoder takes: image (T, H, W) -> (T, 3, H, W). No randomness."""

    def __init__(self, keys: KeysCollection = IMAGE) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: to_encoder_input(data[key]) for key in self.key_iterator(dict(data))}}

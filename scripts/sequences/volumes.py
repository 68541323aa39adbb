"""Volumes over time from NIfTI -> encoder input (T, 1, S, S, S), as MONAI MapTransforms.

4D data is one file (X, Y, Z, T); a patient followed up is a list of 3D files in the order of time, whose times the
datalist says in frame_times_ms. Nothing is registered: where a voxel shall mean the same place each time, that is done
before. Between these transforms WindowSequenced scales all times alike.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel.affines
import nibabel.orientations
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, EnsureTyped, MapTransform, RandAdjustContrastd, RandAffined, Resize
from torch import Tensor
from torch.nn import functional as F

from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader
from scripts.errors import SequenceError, bad_value
from scripts.keys import FRAME_INDICES, FRAME_TIMES, FRAMES, HEADER, IMAGE
from scripts.sequences import nifti
from scripts.sequences.choice import PHASE_BOUNDS_S, FrameChoice, choose_frames
from scripts.sequences.frames import PIXEL_MEAN, PIXEL_STD, channel_values, check_indices, check_times

RAS = "RAS"  # axes of what leaves: to the right, to the front, to the head


class LoadVolumesd(MapTransform):
    """Read the chosen volumes of a sequence, turned to RAS and scaled to a cube; one at a time is held at full size.

    In:  image: path of a NIfTI file of volumes, or a list of such files of one volume each;
         frames, frame_times_ms (optional): as for LoadSequenced.
    Out: image (T, S, S, S) float32 in stored units, axes X, Y, Z of RAS; frame_times_ms (T,) float32 since the first
         volume, NaN = unknown; frame_indices (T,) int64; header: SequenceHeader.
    No randomness.

    Args:
        keys: one key, that of the path.
        image_size: S. The longest side of each volume in mm becomes S voxels, proportions kept, in the middle; the rest
            is its darkest value.
        frame_choice: of `FrameChoice`, as the next three; none that needs a curve of contrast.
        max_sequence_bytes: largest decoded size of a whole sequence.

    Raises:
        ValueError: a frame choice that needs a curve.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        image_size: int = 96,
        frame_choice: str = "uniform",
        max_frames: int = 20,
        every_ms: float = 1000.0,
        phase_bounds_s: Sequence[float] = PHASE_BOUNDS_S,
        max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES,
    ) -> None:
        super().__init__(keys)
        self.choice = FrameChoice(frame_choice, max_frames, every_ms, tuple(phase_bounds_s))
        if self.choice.needs_curve(max_frames + 1):
            raise ValueError(bad_value("configuration", "frame_choice", frame_choice, "one by time, for volumes"))
        self.image_size, self.max_sequence_bytes = image_size, max_sequence_bytes

    def read_header(self, source: Path | Sequence[Path]) -> SequenceHeader:
        """The header of a sequence of volumes.

        Raises:
            FileNotFoundError: nothing at the path.
            SequenceError: no volumes, a list of files that hold more than one, damaged or too large.
        """
        if isinstance(source, Path):
            return nifti.read_header(source, self.max_sequence_bytes, volumes=True)
        left, headers = self.max_sequence_bytes, []
        for path in source:
            header = nifti.read_header(path, left, volumes=True)
            if header.num_frames > 1 and len(source) > 1:
                found = f"{header.num_frames} volumes"
                raise SequenceError(bad_value(path, "volumes", found, "one, in a list of files"))
            left -= header.rows * header.columns * header.slices * 4
            headers.append(header)
        if len(headers) == 1:
            return headers[0]
        times = np.full(len(headers), np.nan)
        times[0] = 0.0
        files = tuple(header.files[0] for header in headers)
        return replace(headers[0], files=files, num_frames=len(files), frame_times_ms=times)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key]
            paths = Path(source) if isinstance(source, (str, Path)) else [Path(path) for path in source]
            header = self.read_header(paths)
            if out.get(FRAME_TIMES) is not None:
                header = replace(header, frame_times_ms=check_times(source, out[FRAME_TIMES], header.num_frames))
            if out.get(FRAMES) is None:
                indices = choose_frames(header.frame_times_ms, self.choice, None, source)
            else:
                indices = check_indices(source, out[FRAMES], header.num_frames)
            volumes = [fit_cube(*volume, self.image_size) for volume in read_volumes(header, indices.tolist())]
            out[key] = torch.stack(volumes)  # (T, S, S, S)
            out[FRAME_TIMES] = torch.from_numpy(header.frame_times_ms[indices]).to(torch.float32)
            out[FRAME_INDICES] = torch.from_numpy(indices)
            out[HEADER] = header
        return out


def read_volumes(header: SequenceHeader, indices: Sequence[int]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Chosen volumes one by one: values (X, Y, Z) float32, axes turned to RAS, and the sides of a voxel in mm.

    Args:
        header: of `LoadVolumesd.read_header`.
        indices: 0-based, ascending.

    Raises:
        SequenceError: the place of a volume is not known, or its values cannot be read.
    """
    one_file = len(header.files) == 1
    for path in header.files if one_file else [header.files[index] for index in indices]:
        affine = nifti.read_affine(path)
        turns = nibabel.orientations.io_orientation(affine)  # (3, 2): where each axis goes, and whether it is reversed
        sides = np.empty(3)
        sides[turns[:, 0].astype(int)] = nibabel.affines.voxel_sizes(affine)
        for values in nifti.each_frame(replace(header, files=(path,)), indices if one_file else [0]):
            turned = nibabel.orientations.apply_orientation(values.T, turns)  # the file has X fastest
            yield torch.from_numpy(np.ascontiguousarray(turned, dtype=np.float32)), sides


def fit_cube(volume: Tensor, voxel_mm: Sequence[float] | np.ndarray, image_size: int) -> Tensor:
    """A volume scaled to fit a cube: proportions in mm kept, in the middle, the rest filled with its darkest value.

    Trilinear, smoothed first where it shrinks.

    Args:
        volume: (X, Y, Z) float32.
        voxel_mm: sides of a voxel.
        image_size: S.

    Returns:
        (S, S, S) float32.
    """
    extent = np.array(volume.shape) * np.asarray(voxel_mm)
    size = [max(round(image_size * part), 1) for part in extent / extent.max()]
    scaled = Resize(size, mode="trilinear", anti_aliasing=True)(volume[None])  # (1, X, Y, Z)
    margins: list[int] = []
    for side in reversed(size):  # of F.pad, the last axis first
        margins += [(image_size - side) // 2, math.ceil((image_size - side) / 2)]
    return F.pad(torch.as_tensor(scaled)[0], margins, value=float(volume.min()))


class ToVolumeInputd(MapTransform):
    """Volumes in [0, 1] to what the encoder takes: image (T, S, S, S) -> (T, 1, S, S, S). No randomness.

    Args:
        keys: of images.
        pixel_mean: subtracted.
        pixel_std: divided by, above 0.
    """

    def __init__(self, keys: KeysCollection = IMAGE, pixel_mean: Any = PIXEL_MEAN, pixel_std: Any = PIXEL_STD) -> None:
        super().__init__(keys)
        self.pixel_mean = channel_values("pixel_mean", pixel_mean)
        self.pixel_std = channel_values("pixel_std", pixel_std, positive=True)
        for knob, values in (("pixel_mean", self.pixel_mean), ("pixel_std", self.pixel_std)):
            if len(values) > 1:
                raise ValueError(bad_value("configuration", knob, list(values), "one number, for volumes"))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = ((out[key] - self.pixel_mean[0]) / self.pixel_std[0])[:, None]
        return out


def make_augmentation(keys: KeysCollection = IMAGE) -> Compose:
    """Random changes before `ToVolumeInputd`, of brightness (T, S, S, S) in [0, 1], drawn once for all times.

    Times stand where MONAI expects channels. Turned by at most 10 degrees about each axis, shifted by at most 5 voxels,
    and a gamma curve: mild by intent, not tuned on any data. Seed it with `set_random_state`.

    Args:
        keys: of images that all get the same change.
    """
    turn = [math.radians(10.0)] * 3
    return Compose(
        [
            RandAdjustContrastd(keys, prob=1.0, gamma=(0.8, 1.25)),
            RandAffined(keys, prob=1.0, rotate_range=turn, translate_range=[5.0] * 3, padding_mode="border"),
            EnsureTyped(keys, dtype=torch.float32, track_meta=False),
        ]
    )

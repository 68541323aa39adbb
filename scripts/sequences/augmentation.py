"""Random changes of a sequence for training the encoder: every frame of it is moved and shaded alike.

What tells classes apart is how contrast moves from frame to frame, so one draw is for the whole sequence: frames stand
where MONAI expects channels, and only transforms that treat all channels alike are here. They imitate what varies
between two exams of one patient and leaves the finding as it is:

    shading   a gamma curve. The window fixes the darkest and the brightest value already, so that offset and gain would
              only cut values off; what differs between devices is the curve between them.
    movement  turned, zoomed and shifted a little, as a table, an eye or a panning operator does. All three in one
              interpolation, since thin vessels fade with each. Not MONAI's RandAffined: it draws the zoom of rows and
              of columns apart, which undoes the aspect that `resize_frames` keeps, and takes shifts in pixels.
    flip      left for right, off unless asked for: it makes a left eye or coronary artery a right one.

Left out: noise, which drawn for each frame would look like change in time, and drawn once like anatomy; elastic
deformation, blur and dropped squares, which alter the calibre of vessels and hide leaks and stenoses; bias fields,
which look like perfusion; and what MONAI 1.6.1 draws for each channel (RandKSpaceSpikeNoised; RandShiftIntensityd,
RandScaleIntensityd and others with `channel_wise=True`). Moving frames in time is `RandLoadSequenced`'s.
"""

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    EnsureTyped,
    MapTransform,
    RandAdjustContrastd,
    RandFlipd,
    RandomizableTransform,
    ScaleIntensityRanged,
)
from torch import Tensor
from torch.nn import functional as F

from scripts.errors import bad_value
from scripts.keys import IMAGE


def make_augmentation(
    keys: KeysCollection = IMAGE,
    rotate_degrees: float = 10.0,
    translate_fraction: float = 0.05,
    zoom_fraction: float = 0.1,
    contrast_fraction: float = 0.25,
    flip_prob: float = 0.0,
    prob: float = 0.8,
) -> Compose:
    """Random changes between `ResizeFramesd` and `ToEncoderInputd`, of brightness (T, H, W) float32 in [0, 1].

    The shape, the range and the item's other keys stay; the result is a plain tensor. Seed it with `set_random_state`,
    alone or as part of a longer Compose; the global random states are left alone. The defaults are mild by intent and
    were not tuned on any data.

    Args:
        keys: of images that all get the same change.
        rotate_degrees: most that a sequence is turned, either way, 0 to 180.
        translate_fraction: most that it is shifted along rows and along columns, as a share of their length, 0 to 1.
        zoom_fraction: it is enlarged at most 1 + this times, or made as many times smaller, 0 to 1.
        contrast_fraction: gamma is at most 1 + this and at least 1 / (1 + this), 0 to 1.
        flip_prob: share of sequences with left and right exchanged, 0 to 1.
        prob: share of sequences that are moved, 0 to 1; shading always varies.

    Raises:
        ValueError: a number outside its range.
    """
    check_amount("rotate_degrees", rotate_degrees, 180)
    check_amount("translate_fraction", translate_fraction, 1)
    check_amount("zoom_fraction", zoom_fraction, 1)
    check_amount("contrast_fraction", contrast_fraction, 1)
    check_amount("flip_prob", flip_prob, 1)
    check_amount("prob", prob, 1)
    gamma = (1 / (1 + contrast_fraction), 1 + contrast_fraction)
    return Compose(
        [
            # Below prob=1, MONAI 1.6.1 takes "whether" and "how much" from two generators of one seed: they correlate.
            RandAdjustContrastd(keys, prob=1.0, gamma=gamma),
            RandFlipd(keys, prob=flip_prob, spatial_axis=1),
            RandMoveFramesd(keys, rotate_degrees, translate_fraction, zoom_fraction, prob),
            ScaleIntensityRanged(keys, a_min=0.0, a_max=1.0, b_min=0.0, b_max=1.0, clip=True),  # undoes rounding only
            EnsureTyped(keys, dtype=torch.float32, track_meta=False),
        ]
    )


class RandMoveFramesd(RandomizableTransform, MapTransform):
    """Turn, zoom and shift a sequence by amounts drawn once for all its frames: image (T, H, W) -> same shape.

    Random: seed it with `set_random_state`; the global state is left alone.

    Args:
        keys: of images that all get the same movement.
        rotate_degrees: and the next three as for `make_augmentation`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rotate_degrees: float,
        translate_fraction: float,
        zoom_fraction: float,
        prob: float,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.rotate_degrees = rotate_degrees
        self.translate_fraction = translate_fraction
        self.zoom_fraction = zoom_fraction

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self.randomize(None)
        if self._do_transform:
            turn, zoom, right, down = self.R.uniform(-1, 1, size=4)
            degrees = self.rotate_degrees * turn
            shift = (self.translate_fraction * right, self.translate_fraction * down)
            for key in self.key_iterator(out):
                out[key] = move_frames(out[key], degrees, (1 + self.zoom_fraction) ** zoom, shift)
        return out


def move_frames(frames: Tensor, degrees: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """Frames turned and zoomed about their middle, then shifted, (T, H, W); bilinear, all frames alike.

    What comes in from outside gets the darkest value, as the margins of `resize_frames`.

    Args:
        frames: (T, H, W) float32.
        degrees: clockwise on screen.
        zoom: above 1 enlarges.
        shift: to the right as a share of W, downwards as a share of H.
    """
    height, width = frames.shape[-2:]
    right, down = 2 * shift[0], 2 * shift[1]  # half a side is 1 in the coordinates of affine_grid
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    from_x, from_y = sin * height / width, -sin * width / height
    theta = torch.tensor(  # where each pixel of the result comes from
        [
            [cos, from_x, -cos * right - from_x * down],
            [from_y, cos, -from_y * right - cos * down],
        ],
        dtype=frames.dtype,
        device=frames.device,
    )
    grid = F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)  # (1, H, W, 2)
    darkest = frames.min()
    moved = F.grid_sample(frames[None] - darkest, grid, padding_mode="zeros", align_corners=False)  # (1, T, H, W)
    return moved[0] + darkest


def check_amount(knob: str, amount: object, most: float) -> None:
    """Refuse what is no number between 0 and `most`.

    Raises:
        ValueError: names the knob and what it may be.
    """
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
    if not number or not 0 <= amount <= most:  # type: ignore[operator]
        raise ValueError(bad_value("configuration", knob, amount, f"a number of 0 to {most:g}"))

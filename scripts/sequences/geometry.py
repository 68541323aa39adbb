"""The part of the frames that holds the picture: shutters of the header, black border of the pixels, panels."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull
from torch import Tensor

from scripts.dicom.header import SequenceHeader, Shutter
from scripts.errors import SequenceError, bad_value

BORDERS = ("keep", "fill", "crop")
SIDES = (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1])
PANELS = ("whole", "left", "right")
MAX_COORDINATE = 2**20  # of a vertex: Pillow counts pixels in 32 bits, and draws nothing where they overflow
MAX_BORDER_FRAMES = 16  # looked at, spread over the run: a border stays, and more frames only cost time
BRIGHT_FRAMES = 0.1  # share of frames in which a border pixel may be bright: the first of fluoroscopy are noisy
SIDE_LEVEL = 10  # percentile along one side of the frame that is its level: corners of a round mask take up that much
MAX_DARK_SIDE = 0.35  # of the way from the darkest level to the picture's: brighter sides of a frame are tissue
BORDER_LEVEL = 0.25  # of the way from the border's level to the picture's: beyond the foot of a blade's blurred edge
# Within this share of the image side a border gives way to the picture; soft tissue darkens over longer ways.
EDGE_WIDTH = 0.015
EDGE_RISE = 1.6  # times BORDER_LEVEL that a border's edge has risen by there
MAX_BULGE = 0.005  # of the image side, beyond half a pixel: mean depth to which a border reaches into a convex picture
PANELS_ASPECT = 1.5  # width over height from which on a frame may hold two panels: two square pictures make 2
MAX_TENDRIL = 0.01  # of the image side: dark catheters and vessels that leave the border are no wider than that
MIN_PICTURE = 0.1  # of the largest lit part: smaller ones inside the border are burned-in text and markers
# Of the frame. Less is a stain: a blade of one pixel along all sides of 512 x 512 takes 0.8 %. More is a picture that
# is mostly dark: the largest known border, that of a round fundus as high as a 16:9 frame, takes 56 %.
MIN_CUT, MAX_CUT = 0.005, 0.6


def check_geometry(border: str, panel: str) -> None:
    """Refuse unknown words, before the first exam is read.

    Args:
        border: `keep`, `fill` or `crop`.
        panel: `whole`, `left` or `right`.

    Raises:
        ValueError: another word.
    """
    for name, found, allowed in (("border", border, BORDERS), ("panel", panel, PANELS)):
        if found not in allowed:
            raise ValueError(bad_value("configuration", name, found, f"one of {', '.join(allowed)}"))


def show_region(values: Tensor, header: SequenceHeader, border: str, panel: str = "whole") -> Tensor:
    """A sequence without what lies outside shutters, collimator and black border, (T, h, w); `values` stay as they are.

    Args:
        values: (T, H, W) float32 in stored units.
        header: of the sequence.
        border: `keep`: unchanged. `fill`: outside gets one value, the darkest of the region as displayed, or 0 (no
            difference to the mask) in a subtracted sequence. `crop`: cut to the region's bounding box, the rest of
            it filled. Where nothing would be left, unchanged.
        panel: of `split_panel`; the region is that of this panel.
    """
    check_geometry(border, panel)
    values = split_panel(values, panel)  # first: a crop moves the seam, and a dim panel is no border
    if border == "keep":
        return values
    region = find_border(values, header)
    shown = shutter_region(header)
    if shown is not None:
        region &= split_panel(shown[None], panel)[0]
    if region.all() or not region.any():
        return values
    if border == "crop":
        rows, columns = (torch.nonzero(region.any(dim)).flatten() for dim in (1, 0))
        box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        region, values = region[box], values[:, *box]  # (h, w), (T, h, w)
    return torch.where(region, values, _darkest(values, region, header))


def split_panel(values: Tensor, panel: str) -> Tensor:
    """One half of frames that hold two pictures side by side (FA|ICGA), (T, H, W // 2), or all of them.

    Args:
        values: (T, H, W); where W is odd, the middle column belongs to none.
        panel: `whole`, `left` or `right`.

    Raises:
        SequenceError: the frames are one column wide.
    """
    check_geometry("keep", panel)
    if panel == "whole":
        return values
    width = values.shape[-1] // 2
    if width == 0:
        raise SequenceError(
            bad_value("sequence", "frame width", values.shape[-1], f"at least 2 for the {panel} panel", "Use whole.")
        )
    return values[..., :width] if panel == "left" else values[..., -width:]


def shutter_region(header: SequenceHeader) -> Tensor | None:
    """Pixels that all shutters of the header show, bool (H, W), edges included; None where there is no shutter.

    Display shutter: PS3.3 C.7.6.11; X-ray collimator: PS3.3 C.8.7.3.
    """
    if not header.shutters:
        return None
    region = np.ones((header.rows, header.columns), bool)
    for shutter in header.shutters:
        region &= _shutter(shutter, header.rows, header.columns)
    return torch.from_numpy(region)


def find_border(values: Tensor, header: SequenceHeader) -> Tensor:
    """Pixels inside the picture, bool (H, W): no collimator blade, no mask of image intensifier or fundus camera.

    A border is dark in nearly all frames, touches the frame's edge and gives way to the picture within a few pixels.
    All are inside where no such border is found, or one of less than MIN_CUT or more than MAX_CUT of the frame.
    Subtracted sequences have none: their mask took it away.

    Args:
        values: (T, H, W) in stored units; MONOCHROME1 stores white as 0, and its border has the largest values.
        header: of the sequence.
    """
    rows, columns = values.shape[1:]
    everything = torch.ones((rows, columns), dtype=torch.bool)
    if header.subtracted:
        return everything
    lasting = _lasting_brightness(values, header)
    border = np.zeros((rows, columns), bool)
    picture = float(np.median(lasting[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]))
    darkest = float(lasting.min())
    levels = {float(np.percentile(lasting[side], SIDE_LEVEL)) for side in SIDES}  # blades let pass more or less scatter
    for level in sorted(levels):
        if level < picture and level <= darkest + MAX_DARK_SIDE * (picture - darkest):
            border |= _border_at(lasting, level, picture)
    inside = ~border
    return torch.from_numpy(inside) if MIN_CUT <= border.mean() <= MAX_CUT else everything


def _shutter(shutter: Shutter, rows: int, columns: int) -> NDArray[np.bool_]:
    """Pixels all shapes of one shutter show, (H, W)."""
    y, x = np.arange(rows), np.arange(columns)
    region = np.ones((rows, columns), bool)
    if shutter.rectangle is not None:
        top, bottom, left, right = shutter.rectangle
        region &= ((y >= top) & (y <= bottom))[:, None] & (x >= left) & (x <= right)
    if shutter.circle is not None:
        row, column, radius = shutter.circle
        region &= np.hypot(y[:, None] - row, x - column) <= radius
    if shutter.polygon is not None:
        drawing = Image.new("1", (columns, rows))
        vertices = np.clip(shutter.polygon, -MAX_COORDINATE, MAX_COORDINATE)[:, ::-1]  # (vertices, 2), column first
        ImageDraw.Draw(drawing).polygon([tuple(vertex) for vertex in vertices.tolist()], fill=1, outline=1)
        region &= np.asarray(drawing)
    return region


def _darkest(values: Tensor, region: Tensor, header: SequenceHeader) -> Tensor:
    """The value outside a region (H, W) of (T, H, W) gets, a scalar."""
    if header.subtracted:
        return values.new_tensor(0.0)
    white_is_0 = header.photometric == "MONOCHROME1"
    return values.amax(0)[region].max() if white_is_0 else values.amin(0)[region].min()


def _lasting_brightness(values: Tensor, header: SequenceHeader) -> NDArray[np.float32]:
    """Brightness each pixel stays below in all but BRIGHT_FRAMES of the frames, noise of one pixel removed, (H, W)."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_BORDER_FRAMES)).round().astype(int))
    frames = values[torch.from_numpy(chosen)].numpy()  # (t, H, W), a copy
    if header.photometric == "MONOCHROME1":
        np.negative(frames, out=frames)
    rank = math.ceil((1 - BRIGHT_FRAMES) * len(frames)) - 1
    frames.partition(rank, axis=0)
    return ndimage.median_filter(frames[rank], 3, mode="nearest")


def _border_at(lasting: NDArray, level: float, picture: float) -> NDArray[np.bool_]:
    """The border of one level of brightness, (H, W).

    Args:
        lasting: brightness that lasts, (H, W).
        level: brightness of the border.
        picture: brightness of the picture, more than `level`.
    """
    limit = level + BORDER_LEVEL * (picture - level)
    parts, num_parts = ndimage.label(lasting < limit)
    dark = _touch_side(parts, num_parts)[parts]
    parts, num_parts = ndimage.label(~dark)
    sizes = np.bincount(parts.ravel(), minlength=num_parts + 1)
    sizes[0] = 0
    is_picture = _touch_side(parts, num_parts) | (sizes >= MIN_PICTURE * sizes.max())
    dark |= ~is_picture[parts]
    # Opening, as if the border went on outside the frame, where blades may be thinner than a catheter.
    width = 2 * math.ceil(MAX_TENDRIL * min(dark.shape)) + 1
    padded = np.pad(dark, width, constant_values=True)
    opened = ndimage.grey_opening(padded.astype(np.uint8), (width, width)).astype(bool)
    return _convincing(lasting, opened[width:-width, width:-width], level, limit)


def _convincing(lasting: NDArray, dark: NDArray[np.bool_], level: float, limit: float) -> NDArray[np.bool_]:
    """Those parts of a dark region that look like a border, (H, W).

    The picture rises from them as from an edge, and they do not bulge into it: what collimators and round masks leave
    is convex, in each half of frames that may hold two panels.
    """
    parts, num_parts = ndimage.label(dark)
    reach = math.ceil(EDGE_WIDTH * min(dark.shape)) + 1
    near = ndimage.grey_dilation(parts, (2 * reach + 1, 2 * reach + 1))
    near[ndimage.maximum_filter(dark, 2 * reach - 1)] = 0  # a line `reach` pixels away
    halves = np.array_split(~dark, 2 if dark.shape[1] >= PANELS_ASPECT * dark.shape[0] else 1, axis=1)
    bulging = dark & np.hstack([_convex_hulls(half) for half in halves])
    length = np.bincount(near.ravel(), minlength=num_parts + 1)
    depth = np.bincount(parts[bulging], minlength=num_parts + 1) / np.maximum(length, 1)
    candidates = 1 + np.flatnonzero((length > 0)[1:] & (depth < MAX_BULGE * min(dark.shape) + 0.5)[1:])
    rise = np.array([np.median(lasting[near == part]) - level for part in candidates])
    return np.isin(parts, candidates[rise > EDGE_RISE * (limit - level)])


def _touch_side(parts: NDArray, num_parts: int) -> NDArray[np.bool_]:
    """For each label in (H, W) whether it touches the frame's edge, (num_parts + 1,); label 0 never does."""
    touch = np.zeros(num_parts + 1, bool)
    for side in SIDES:
        touch[parts[side]] = True
    touch[0] = False
    return touch


def _convex_hulls(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Convex hulls of the connected parts of a region, (H, W)."""
    parts, _ = ndimage.label(region)  # pixels that share a side: a part is never a slanting line
    drawing = Image.new("1", region.shape[::-1])
    pen = ImageDraw.Draw(drawing)
    for part, box in enumerate(ndimage.find_objects(parts), start=1):
        points = np.argwhere(parts[box] == part)[:, ::-1] + (box[1].start, box[0].start)  # (pixels, 2), column first
        if np.ptp(points, axis=0).all():  # a line of pixels is its own hull
            pen.polygon([tuple(point) for point in points[ConvexHull(points).vertices].tolist()], fill=1)
    return np.asarray(drawing)

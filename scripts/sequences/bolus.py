"""When the contrast comes: thumbnails of a few frames -> a curve of how much each frame shows, its peak, its start.

Dark contrast (X-ray) and bright contrast (fluorescein, indocyanine green) are both seen as lines: where the grey values
bend across a line far more than along it. The mean grey value does not do: where the table pans it follows what comes
into view (in a real X-ray run it rose by 12 % while dark contrast filled the vessels).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from scripts.dicom.header import SequenceHeader

CURVE_FRAMES = 32  # frames decoded for a curve: a third of a usual run, and its passage takes several of them
CHUNK_FRAMES = 4  # decoded at a time, so that a large run is never held
THUMBNAIL_PIXELS = 128  # larger side at most; a coronary artery of 3 mm is then 2 to 4 pixels wide
LINE_SIGMA = 1.5  # thumbnail pixels: answers most to lines 3 to 5 pixels wide, and smooths noise away
# Second differences of both directions: plain structure cancels, noise stays (Immerkaer, CVIU 1996;64:300), times 6.
NOISE_MASK = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32)[None]
MEDIAN_OF_NOISE = 0.6745  # of the absolute values, in standard deviations
NOISE_BEND = 0.2  # of the noise's deviation: what it bends after LINE_SIGMA (0.16 for white noise), and a little more
MIN_EXPOSURE = 0.1  # of the run's: a blanked frame is not amplified to the level of the others
ARRIVAL = 0.1  # of the rise from the frames before to the peak: contrast is there
BRIGHT_MODALITIES = ("OP", "OPT")

ReadFrames = Callable[[SequenceHeader, Sequence[int]], np.ndarray]


def thumbnail(frames: np.ndarray) -> np.ndarray:
    """Frames (n, H, W) as means of square blocks, at most THUMBNAIL_PIXELS in the larger side, float32 (n, h, w).

    What is left at the lower and right edge and fills no block is cut off.
    """
    num_frames, rows, columns = frames.shape
    side = min(-(-max(rows, columns) // THUMBNAIL_PIXELS), rows, columns)
    rows, columns = rows // side, columns // side
    blocks = frames[:, : rows * side, : columns * side].reshape(num_frames, rows, side, columns, side)
    return blocks.mean(axis=(2, 4), dtype=np.float32)


def bolus_curve(frames: np.ndarray, dark: bool) -> np.ndarray:
    """How much contrast each frame shows, (n,) float64, at least 0, without unit, for frames of one run.

    The mean strength of lines that are darker (or brighter) than what is beside them, less what the frame's own noise
    would make: the first frames are often noisy. Lines that are always there, as ribs and catheters, add a constant.
    Where contrast is dark, frames count at equal exposure (X-ray: the first are often brighter); where it is bright,
    brightness is contrast itself, and all frames are on the scale of the run.

    Args:
        frames: thumbnails, (n, h, w), larger is brighter.
        dark: True where contrast absorbs (X-ray), False where it shines.
    """
    values = np.asarray(frames, np.float32) - np.min(frames)
    level = values.mean(axis=(1, 2), keepdims=True)
    run_level = max(float(np.median(level)), float(np.finfo(np.float32).tiny))
    values = values / (np.maximum(level, MIN_EXPOSURE * run_level) if dark else run_level)
    values = values if dark else -values
    bend = [
        ndimage.gaussian_filter(values, (0, LINE_SIGMA, LINE_SIGMA), order=(0, *order), mode="nearest")
        for order in ((2, 0), (0, 2), (1, 1))
    ]
    middle = (bend[0] + bend[1]) / 2
    spread = np.hypot((bend[0] - bend[1]) / 2, bend[2])
    across, along = middle + spread, np.abs(middle - spread)  # eigenvalues of the Hessian
    differences = np.abs(ndimage.convolve(values, NOISE_MASK, mode="nearest"))
    noise = np.median(differences, axis=(1, 2), keepdims=True) / (6 * MEDIAN_OF_NOISE)
    lines = np.maximum(LINE_SIGMA**2 * (across - along) - NOISE_BEND * noise, 0.0)
    return lines.mean(axis=(1, 2), dtype=np.float64)


def peak(curve: np.ndarray) -> int:
    """Index of the frame with the most contrast, the first of several."""
    return int(np.argmax(curve))


def pre_contrast(curve: np.ndarray) -> np.ndarray:
    """Indices of frames before the contrast arrives, fit for a subtraction mask, ascending, at least one, int64.

    The frames up to the peak are parted where two constants fit them best. From there back, the first frame within
    ARRIVAL of the level before is the last without contrast. The middle third of all up to it is taken: exposure
    control is still settling in the first third (six of 18 frames in a real run), and the first trace of contrast may
    be in the last one. Where the peak is the first frame, it is the frame with least contrast instead.

    Args:
        curve: contrast of each frame, (T,).
    """
    rise = np.asarray(curve, np.float64)[: peak(curve) + 1]
    if len(rise) == 1:
        return np.array([int(np.argmin(curve))])
    parts = range(1, len(rise))
    split = min(parts, key=lambda part: rise[:part].var() * part + rise[part:].var() * (len(rise) - part))
    level = float(np.median(rise[:split]))
    calm = np.flatnonzero(rise[:split] <= level + ARRIVAL * (rise[-1] - level))
    count = int(calm[-1]) + 1
    return np.arange(count // 3, count - count // 3)


def expand(curve_at: np.ndarray, indices: np.ndarray, num_frames: int) -> np.ndarray:
    """A curve known at ascending frame indices, in between by straight lines, (num_frames,) float64."""
    return np.interp(np.arange(num_frames), indices, curve_at)


def is_dark(header: SequenceHeader) -> bool:
    """True where contrast is darker than what is beside it: all but retinal images and colour of unknown origin."""
    colour = not header.photometric.startswith("MONOCHROME")
    return header.modality not in BRIGHT_MODALITIES and not (colour and not header.modality)


def read_curve(header: SequenceHeader, read_frames: ReadFrames) -> np.ndarray:
    """How much contrast each frame of a sequence shows, (T,) float64, from at most CURVE_FRAMES decoded frames.

    Args:
        header: of the sequence.
        read_frames: gives stored values (n, H, W), or (n, H, W, 3), at indices of this header.

    Raises:
        SequenceError: as `read_frames` does.
    """
    indices = np.linspace(0, header.num_frames - 1, min(CURVE_FRAMES, header.num_frames)).round().astype(np.int64)
    chunks = [indices[start : start + CHUNK_FRAMES] for start in range(0, len(indices), CHUNK_FRAMES)]
    thumbnails = np.concatenate([_displayed_thumbnail(read_frames(header, chunk.tolist()), header) for chunk in chunks])
    return expand(bolus_curve(thumbnails, is_dark(header)), indices, header.num_frames)


def _displayed_thumbnail(stored: np.ndarray, header: SequenceHeader) -> np.ndarray:
    """Thumbnails in which larger is brighter, colours averaged, pixels without content as dark as the darkest other."""
    inverted = header.photometric == "MONOCHROME1"
    values = stored.mean(axis=-1, dtype=np.float32) if stored.ndim == 4 else stored
    if header.padding is not None and stored.ndim == 3:
        content = (stored < header.padding[0]) | (stored > header.padding[1])
        if content.any():
            values = np.where(content, stored, stored[content].max() if inverted else stored[content].min())
    small = thumbnail(values)
    return -small if inverted else small

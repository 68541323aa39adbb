"""What is known of a sequence before its pixels are decoded, in DICOM's terms whatever holds it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scripts.errors import SequenceError, bad_value

DEFAULT_MAX_SEQUENCE_BYTES = 2 * 2**30
# X-ray detectors end at 2880 x 2880, fundus cameras at 4000 x 4000 in colour (48 MB). A few kB can claim far more, and
# decoders take several times a frame's size before they find out.
MAX_FRAME_BYTES = 64 * 2**20
LINEAR, LINEAR_EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
AVG_SUB, TID = "AVG_SUB", "TID"


@dataclass(frozen=True)
class Voi:
    """The values of interest an exam asks to be shown with (PS3.3 C.11.2): a window, or a table if `lut` is there.

    `lut` holds display values of the stored values `lut_first`, `lut_first` + 1, ... (PS3.3 C.11.2.1.1).
    """

    center: float = 0.0
    width: float = 1.0
    function: str = LINEAR  # or LINEAR_EXACT, SIGMOID: PS3.3 C.11.2.1.2 and C.11.2.1.3
    lut: np.ndarray | None = None  # (entries,) uint16
    lut_first: int = 0
    lut_bits: int = 16


@dataclass(frozen=True)
class Shutter:
    """Region that is shown, in pixels from 0, edges included; None where that shape is not asked for.

    A display shutter (PS3.3 C.7.6.11) or an X-ray collimator (PS3.3 C.8.7.3); several shapes of one intersect.
    """

    rectangle: tuple[int, int, int, int] | None = None  # first row, last row, first column, last column
    circle: tuple[float, float, float] | None = None  # row and column of the centre, radius
    polygon: tuple[tuple[float, float], ...] | None = None  # vertices (row, column)


@dataclass(frozen=True)
class MaskStep:
    """One item of MaskSubtractionSequence (PS3.3 C.7.6.10) that asks for a subtraction; frames count from 0."""

    operation: str  # AVG_SUB or TID
    mask_frames: tuple[int, ...] = ()  # AVG_SUB: their mean is the mask
    frame_ranges: tuple[tuple[int, int], ...] = ()  # first and last frame it applies to; empty: to all
    shift: tuple[float, float] = (0.0, 0.0)  # MaskSubPixelShift: the mask moves: rows downwards, columns to the left
    tid_offset: int = 1  # TID: the mask of frame t is frame t - tid_offset


@dataclass(frozen=True)
class SequenceHeader:
    """One angiographic run before its pixels are decoded.

    `files` holds one file with all frames, or single-frame files in the order of time.
    """

    container: str  # dicom, nifti, images or video
    files: tuple[Path, ...]
    num_frames: int
    rows: int
    columns: int
    frame_times_ms: np.ndarray  # (T,) float64 from 0, never decreasing, NaN = unknown
    photometric: str = "MONOCHROME2"
    bits_stored: int = 8
    signed: bool = False
    transfer_syntax: tuple[str, ...] = ()  # DICOM: one a file
    facts: dict[str, str | float] = field(default_factory=dict)  # allow-listed codes and numbers, never a person's
    warnings: tuple[str, ...] = ()  # what is odd but usable: field, values found; nothing of a person
    voi: Voi | None = None
    shutters: tuple[Shutter, ...] = ()
    mask_steps: tuple[MaskStep, ...] = ()
    padding: tuple[int, int] | None = None  # stored values, lowest and highest, that mark pixels without content
    slices: int = 1  # more: each frame is a volume, of NIfTI only
    subtracted: bool = False  # the values that travel with this header are differences to a mask

    @property
    def modality(self) -> str:
        """DICOM's Modality, empty where unknown."""
        return str(self.facts.get("Modality", ""))


def check_decoded_size(
    item: object,
    num_frames: int,
    frame_bytes: int,
    size: object,
    max_bytes: int,
    max_frame_bytes: int = MAX_FRAME_BYTES,
) -> None:
    """Refuse a sequence or frame that would decode to more than allowed, before anything is allocated.

    Args:
        item: what is being read, for the message.
        num_frames: T.
        frame_bytes: of one decoded frame.
        size: what the message calls the size of a frame, such as "512 x 512".
        max_bytes: the limit.
        max_frame_bytes: that of one frame.

    Raises:
        SequenceError: it is larger.
    """
    if frame_bytes * num_frames > max_bytes:
        found = f"{frame_bytes * num_frames} bytes ({num_frames} x {size})"
        way_out = "Raise --max_sequence_bytes if the file is really that large."
        raise SequenceError(bad_value(item, "decoded size", found, f"at most {max_bytes}", way_out))
    if frame_bytes > max_frame_bytes:
        raise SequenceError(
            bad_value(item, "frame size", f"{frame_bytes} bytes ({size})", f"at most {max_frame_bytes}")
        )

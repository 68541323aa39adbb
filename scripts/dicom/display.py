"""What a DICOM header says of display: values of interest, shutters, mask subtraction and padding, for the reader.

Every function returns what it found with what it had to ignore, one line a finding.
"""

from collections.abc import Callable

import numpy as np
from pydicom import Dataset

from scripts.dicom.header import AVG_SUB, LINEAR, LINEAR_EXACT, SIGMOID, TID, MaskStep, Shutter, Voi
from scripts.dicom.values import field_name, first, integers, items, number, numbers, several, shown, value_of

SHAPES = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")
EDGES = ("UpperHorizontalEdge", "LowerHorizontalEdge", "LeftVerticalEdge", "RightVerticalEdge")
SHUTTER_TAGS, COLLIMATOR_TAGS = (
    (
        f"{kind}Shape",
        *(f"{kind}{edge}" for edge in EDGES),
        f"CenterOfCircular{kind}",
        f"RadiusOfCircular{kind}",
        f"VerticesOfThePolygonal{kind}",
    )
    for kind in ("Shutter", "Collimator")
)
VOI_TAGS = ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence")
RESCALE_TAGS = ("RescaleSlope", "RescaleIntercept")
MODALITY_LUT = "ModalityLUTSequence"
MASKS = "MaskSubtractionSequence"
MASK_TAGS = ("MaskOperation", "MaskFrameNumbers", "ApplicableFrameRange", "MaskSubPixelShift", "TIDOffset")
PADDING_TAGS = ("PixelPaddingValue", "PixelPaddingRangeLimit")
DISPLAY_TAGS = (*VOI_TAGS, *RESCALE_TAGS, MODALITY_LUT, *SHUTTER_TAGS, *COLLIMATOR_TAGS, MASKS, *PADDING_TAGS)
MAX_LUT_BYTES = 2**17 + 2  # 65,536 entries of 16 bits
MAX_MASKS = 256  # a step for each of some frames, more than any exam has


def display_voi(header: Dataset, x_ray: bool, signed: bool) -> tuple[Voi | None, list[str]]:
    """The values of interest, in stored values: the first VOI LUT (PS3.3 C.11.2), else the first window.

    No modality transform stands between stored values and window for X-ray: its modality LUT tells how pixels came
    about, and is not for display. For other modalities the window acts on rescaled values (PS3.4 N.2); as long as
    that rescaling is a rising line, the window is moved to stored values, and otherwise left out.

    Args:
        header: with DISPLAY_TAGS, of monochrome pixels.
        x_ray: see `facts.is_x_ray`.
        signed: PixelRepresentation is 1.
    """
    tables = items(header, "VOILUTSequence")
    stated = value_of(header, "WindowCenter") is not None or value_of(header, "WindowWidth") is not None
    if not tables and not stated:
        return None, []
    slope, intercept = 1.0, 0.0
    if not x_ray:
        if MODALITY_LUT in header:
            return None, [f"{field_name(MODALITY_LUT)} is there: the window is for its output, not used"]
        values = [value_of(header, keyword) for keyword in RESCALE_TAGS]
        given = [number(v) if v is not None else other for v, other in zip(values, (1.0, 0.0), strict=True)]
        if None in given or not given[0] > 0:  # type: ignore[operator]
            return None, [f"{field_name('RescaleSlope')} is {shown(values[0])}: the window is not used"]
        slope, intercept = given  # type: ignore[assignment]
    warnings: list[str] = []
    if tables:
        voi, warnings = _table(header, tables[0], signed)
        if voi is not None and slope == 1.0 and intercept == int(intercept):
            return Voi(lut=voi.lut, lut_first=voi.lut_first - int(intercept), lut_bits=voi.lut_bits), warnings
        if voi is not None:
            warnings.append(f"{field_name('RescaleSlope')} is {slope:.6g}: VOILUTSequence not used")
    if stated:
        voi, more = _window(header, slope, intercept)
        return voi, warnings + more
    return None, warnings


def _window(header: Dataset, slope: float, intercept: float) -> tuple[Voi | None, list[str]]:
    stated = [value_of(header, keyword) for keyword in ("WindowCenter", "WindowWidth")]
    center, width = (number(first(value)) for value in stated)
    function = value_of(header, "VOILUTFunction")
    warnings = []
    if function is not None and function not in (LINEAR, LINEAR_EXACT, SIGMOID):
        warnings.append(f"{field_name('VOILUTFunction')} is another value: read as LINEAR")
    function = str(function) if function in (LINEAR_EXACT, SIGMOID) else LINEAR
    if center is None or width is None or not (width >= 1 if function == LINEAR else width > 0):
        found = f"{shown(first(stated[0]))} and {shown(first(stated[1]))}"
        fields = f"{field_name('WindowCenter')} with {field_name('WindowWidth')}"
        return None, [*warnings, f"{fields} is {found}: no window of {function}, not used"]
    if function == LINEAR:  # from center - 0.5 - (width - 1) / 2 to center - 0.5 + (width - 1) / 2
        return Voi((center - 0.5 - intercept) / slope + 0.5, (width - 1) / slope + 1, LINEAR), warnings
    return Voi((center - intercept) / slope, width / slope, function), warnings


def _table(header: Dataset, item: Dataset, signed: bool) -> tuple[Voi | None, list[str]]:
    """A VOI LUT: LUTDescriptor is entries (0: 65536), first stored value, bits (PS3.3 C.11.2.1.1)."""
    stated = value_of(item, "LUTDescriptor")
    descriptor = integers(stated)
    if descriptor is None or len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        return None, [f"{field_name('LUTDescriptor')} is {shown(stated)}: VOI LUT not used"]
    entries = descriptor[0] % 65536 or 65536
    data = value_of(item, "LUTData", MAX_LUT_BYTES)
    if isinstance(data, bytes):
        big_endian = getattr(header, "original_encoding", (False, True))[1] is False
        packed = len(data) in (entries, entries + 1) and entries > 1
        table = np.frombuffer(data[: len(data) // 2 * 2], np.uint8 if packed else ">u2" if big_endian else "<u2")
    else:
        words = integers(data) or []
        table = np.array(words, np.int64).astype(np.uint16)
        if len(words) == (entries + 1) // 2 and entries > 1:  # 8-bit entries in 16-bit words, low byte first
            table = table.astype("<u2").view(np.uint8)
    if len(table) not in (entries, entries + 1):  # values have even length: an odd 8-bit table is padded
        field = field_name("LUTData")
        return None, [f"{field} has {len(table)} entries but LUTDescriptor {entries}: VOI LUT not used"]
    return Voi(lut=table[:entries].astype(np.uint16), lut_first=_as(descriptor[1], signed), lut_bits=descriptor[2]), []


def _as(value: int, signed: bool) -> int:
    """A 16-bit value read as US or SS, as PixelRepresentation has it."""
    value %= 65536
    return value - 65536 if signed and value > 32767 else value


def display_shutters(header: Dataset, rows: int, columns: int) -> tuple[tuple[Shutter, ...], list[str]]:
    """The display shutter (PS3.3 C.7.6.11), then the X-ray collimator (PS3.3 C.8.7.3), each where there is one."""
    found = [_shutter(header, kind, rows, columns) for kind in ("Shutter", "Collimator")]
    return tuple(s for s, _ in found if s is not None), [warning for _, more in found for warning in more]


def _shutter(header: Dataset, kind: str, rows: int, columns: int) -> tuple[Shutter | None, list[str]]:
    """DICOM counts rows and columns from 1, the header from 0."""
    readers: dict[str, Callable] = {"RECTANGULAR": _rectangle, "CIRCULAR": _circle, "POLYGONAL": _polygon}
    regions: dict[str, tuple | None] = dict.fromkeys(SHAPES)
    warnings = []
    for shape in several(value_of(header, f"{kind}Shape")):
        if shape not in SHAPES:  # a bitmap shutter is an overlay
            warnings.append(f"{field_name(f'{kind}Shape')} is another value than {', '.join(SHAPES)}: not used")
            continue
        region = readers[shape](header, kind, rows, columns)
        if region is None:
            warnings.append(f"{field_name(f'{kind}Shape')} is {shape} without a region inside the image: not used")
        regions[shape] = region
    rectangle, circle, polygon = (regions[shape] for shape in SHAPES)
    there = any(region is not None for region in regions.values())
    return (Shutter(rectangle, circle, polygon) if there else None), warnings


def _rectangle(header: Dataset, kind: str, rows: int, columns: int) -> tuple[int, int, int, int] | None:
    edges = [integers(value_of(header, f"{kind}{edge}")) for edge in EDGES]
    if any(edge is None or len(edge) != 1 for edge in edges):
        return None
    top, bottom, left, right = (edge[0] - 1 for edge in edges)  # type: ignore[index]
    top, bottom, left, right = max(top, 0), min(bottom, rows - 1), max(left, 0), min(right, columns - 1)
    return (top, bottom, left, right) if top <= bottom and left <= right else None


def _circle(header: Dataset, kind: str, rows: int, columns: int) -> tuple[float, float, float] | None:
    center = numbers(value_of(header, f"CenterOfCircular{kind}"))
    radius = number(value_of(header, f"RadiusOfCircular{kind}"))
    if len(center) != 2 or None in center or radius is None or radius <= 0:
        return None
    row, column = (v - 1 for v in center)  # type: ignore[operator]
    nearest = np.hypot(row - np.clip(row, 0, rows - 1), column - np.clip(column, 0, columns - 1))
    return (row, column, radius) if nearest <= radius else None


def _polygon(header: Dataset, kind: str, rows: int, columns: int) -> tuple[tuple[float, float], ...] | None:
    values = numbers(value_of(header, f"VerticesOfThePolygonal{kind}"))
    if len(values) % 2 or len(values) < 6 or None in values:
        return None
    at = np.array(values, np.float64).reshape(-1, 2) - 1  # rows, columns
    turned = np.roll(at, -1, axis=0)
    area = 0.5 * abs(np.sum(at[:, 0] * turned[:, 1] - turned[:, 0] * at[:, 1]))
    outside = (at.max(axis=0) < 0).any() or (at.min(axis=0) > (rows - 1, columns - 1)).any()
    return None if outside or area == 0 else tuple((float(row), float(column)) for row, column in at)


def mask_steps(header: Dataset, num_frames: int) -> tuple[tuple[MaskStep, ...], list[str]]:
    """The subtractions that MaskSubtractionSequence (PS3.3 C.7.6.10) asks for; its operation NONE asks for none."""
    asked = items(header, MASKS)
    steps: list[MaskStep] = []
    warnings = [f"{field_name(MASKS)} has {len(asked)} items: {MAX_MASKS} used"] if len(asked) > MAX_MASKS else []
    for item in asked[:MAX_MASKS]:
        operation = value_of(item, "MaskOperation")
        if operation == "NONE":
            continue
        step = _step(item, operation, num_frames)
        if isinstance(step, str):
            warnings.append(f"{step}: this mask is not used")
        else:
            steps.append(step)
            averaged = number(value_of(item, "ContrastFrameAveraging"))
            if averaged is not None and averaged > 1:
                warnings.append(f"{field_name('ContrastFrameAveraging')} is {shown(averaged)}: frames not averaged")
    return tuple(steps), warnings


def _step(item: Dataset, operation: object, num_frames: int) -> MaskStep | str:
    """The step, or what is wrong with it. DICOM counts frames from 1, the header from 0."""
    if operation not in (AVG_SUB, TID):
        return f"{field_name('MaskOperation')} is {shown(operation, ('REV_TID',))}"
    values = {keyword: value_of(item, keyword) for keyword in MASK_TAGS}
    wrong = {
        keyword: f"{field_name(keyword)} is {shown(value)} of {num_frames} frames" for keyword, value in values.items()
    }
    frames, pairs = integers(values["MaskFrameNumbers"]), integers(values["ApplicableFrameRange"])
    if operation == AVG_SUB and (not frames or not all(1 <= frame <= num_frames for frame in frames)):
        return wrong["MaskFrameNumbers"]
    if pairs is None or len(pairs) % 2:
        return wrong["ApplicableFrameRange"]
    ranges = list(zip(pairs[::2], pairs[1::2], strict=True))
    if not all(1 <= start <= end <= num_frames for start, end in ranges):
        return wrong["ApplicableFrameRange"]
    shift = numbers(values["MaskSubPixelShift"]) or [0.0, 0.0]
    if len(shift) != 2 or None in shift:
        return wrong["MaskSubPixelShift"]
    offset = integers(values["TIDOffset"] if values["TIDOffset"] is not None else 1)
    if operation == TID and (offset is None or len(offset) != 1 or not 0 < abs(offset[0]) < num_frames):
        return wrong["TIDOffset"]
    return MaskStep(
        operation=str(operation),
        mask_frames=tuple(frame - 1 for frame in frames or ()) if operation == AVG_SUB else (),
        frame_ranges=tuple((start - 1, end - 1) for start, end in ranges),
        shift=(float(shift[0]), float(shift[1])),  # type: ignore[arg-type]
        tid_offset=offset[0] if operation == TID and offset else 1,
    )


def padding(header: Dataset, bits_allocated: int, signed: bool) -> tuple[tuple[int, int] | None, list[str]]:
    """Lowest and highest stored value of pixels without content (PS3.3 C.7.5.1.1.2), both included."""
    values = [value_of(header, keyword) for keyword in PADDING_TAGS]
    if values[0] is None:
        return None, []
    ends = integers(values[0]) if values[1] is None else [*(integers(values[0]) or []), *(integers(values[1]) or [])]
    lowest, highest = (
        (-(2 ** (bits_allocated - 1)), 2 ** (bits_allocated - 1) - 1) if signed else (0, 2**bits_allocated - 1)
    )
    found = [_as(end, signed) for end in ends or []]
    if len(found) != (1 if values[1] is None else 2) or not all(lowest <= value <= highest for value in found):
        return None, [f"{field_name('PixelPaddingValue')} is {shown(values[0])}: no stored value, not used"]
    return (min(found), max(found)), []

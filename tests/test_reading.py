"""Every form an exam comes in reads back, from outside, to the run it was made from: values, order, times, display."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from scipy import ndimage

from scripts.dicom.fragments import ENCAPSULATED_UNCOMPRESSED
from scripts.dicom.sequence import HEADER_TAGS
from scripts.errors import SequenceError
from scripts.keys import FRAME_INDICES, FRAME_TIMES, HEADER, IMAGE
from scripts.sequences.reader import read_frames, read_header
from scripts.sequences.transforms import LoadSequenced, ShowRegiond, WindowSequenced
from tests.conftest import OP, PERSON, assert_message, assert_no_person
from tests.encodings import CODED, HTJ2K_FRAME, HTJ2K_STREAM, NATIVE
from tests.exam_forms import (
    COLUMNS,
    ROWS,
    T,
    Writer,
    coded,
    colour,
    dicom,
    encoder,
    enhanced,
    extended_blocks,
    extended_streams,
    fragmented,
    halved_colour,
    headless,
    items,
    jpegs,
    nifti,
    pages,
    palette,
    pictures,
    rgb_of,
    segmented_palette,
    series,
    smooth,
    stored,
    video,
)

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # of metadata; the reader checks sizes itself
RLE, JPEG, JPEG_LS, NEAR = uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGLSLossless, uid.JPEGLSNearLossless
BIG, J2K, J2K_LOSSY = uid.ExplicitVRBigEndian, uid.JPEG2000Lossless, uid.JPEG2000
EVERY_40_MS = tuple(40.0 * t for t in range(T))
UNKNOWN = (0.0, *[np.nan] * (T - 1))


@dataclass(frozen=True)
class Case:
    """A form of an exam, and what is known of the run it was made from.

    `values`, `region` and `brightness` are what each of the three transforms should leave; None: what follows from
    the step before by the simplest rule, which is luminance, nothing cut off, and all that `bits` hold from 0 to 1.
    """

    name: str
    write: Writer
    stored: np.ndarray  # (T, H, W) or (T, H, W, 3)
    bits: int = 12
    error: float = 0.0  # of a lossy codec: the most by which a stored value may be off
    times_ms: Sequence[float] = EVERY_40_MS
    warned: tuple[str, ...] = ()  # a part of each warning, in their order
    inverted: bool = False  # MONOCHROME1
    subtraction: str = "header"
    values: np.ndarray | None = None  # (T, H, W)
    border: str = "keep"
    region: np.ndarray | None = None  # bool (H, W)
    window: str = "stored"
    brightness: np.ndarray | None = None  # (T, h, w)


XA8, XA12, XA16 = stored(8), stored(12), stored(16)
SMOOTH8, BLOCKS12, COLOUR, RGB = smooth(8), extended_blocks(), colour(), rgb_of(colour())
WHITE_IS_0_8, WHITE_IS_0 = stored(8, inverted=True), stored(12, inverted=True)
SIGNED = stored(12, signed=True)
F = XA12.astype(float)

# --- transfer syntaxes ---

HTJ2K = np.repeat(HTJ2K_FRAME[None], T, axis=0)  # one picture: there is no encoder among our packages
NEAR_STREAMS = encoder(XA12, 12, NEAR, "pyjpegls", jls_error=3)
LOSSY_STREAMS = encoder(XA12, 12, J2K_LOSSY, "pylibjpeg", j2k_psnr=[60])
SYNTAXES = [
    *(Case(name, dicom(XA12, 12, syntax), XA12) for name, syntax in (NATIVE | CODED).items()),
    *(
        Case(name, coded(lambda: [HTJ2K_STREAM] * T, HTJ2K, 12, syntax), HTJ2K)
        for name, syntax in (
            ("htj2k", uid.HTJ2K),
            ("htj2k lossless", uid.HTJ2KLossless),
            ("htj2k lossless rpcl", uid.HTJ2KLosslessRPCL),
        )
    ),
    Case("jpeg baseline", coded(jpegs(SMOOTH8), SMOOTH8, 8, JPEG), SMOOTH8, 8, error=6),
    Case("jpeg extended of 8 bits", coded(jpegs(SMOOTH8), SMOOTH8, 8, uid.JPEGExtended12Bit), SMOOTH8, 8, error=6),
    Case("jpeg extended of 12 bits", coded(extended_streams, BLOCKS12, 12, uid.JPEGExtended12Bit), BLOCKS12),
    Case("jpeg-ls near lossless", coded(NEAR_STREAMS, XA12, 12, NEAR), XA12, error=3),
    Case("jpeg 2000 lossy", coded(LOSSY_STREAMS, XA12, 12, J2K_LOSSY), XA12, error=20),
    Case("jpeg 2000 that lost nothing", coded(encoder(XA12, 12, J2K, "pylibjpeg"), XA12, 12, J2K_LOSSY), XA12),
]

# --- bits, signs, padding ---


def padded(name: str, content: np.ndarray, lowest: int, highest: int | None, inverted: bool = False) -> Case:
    """A corner without content, which shows as the darkest of the rest does."""
    corner = np.zeros(content.shape, bool)
    corner[:, :9, :7] = True
    frames = np.where(corner, content.dtype.type(lowest), content)
    frames[:, 3, 3] = lowest if highest is None else highest
    values = np.where(corner, content[~corner].max() if inverted else content[~corner].min(), content)
    stated: dict[str, Any] = {"photometric": "MONOCHROME1"} if inverted else {}
    stated |= {"PixelPaddingValue": lowest, "PixelPaddingRangeLimit": highest}
    return Case(name, dicom(frames, 12, **stated), frames, values=values, inverted=inverted)


OVERLAID = XA12 | (np.indices(XA12.shape).sum(0) % 16 << 12).astype(np.uint16)  # PS3.5 8.1.1: of old files
BITS = [
    Case("7 of 8 bits", dicom(stored(7), 7, JPEG_LS), stored(7), 7),
    Case("8 bits", dicom(XA8, 8), XA8, 8),
    Case("10 of 16 bits", dicom(stored(10), 10), stored(10), 10),
    Case("12 of 16 bits, rle", dicom(XA12, 12, RLE), XA12),
    Case("16 bits", dicom(XA16, 16), XA16, 16),
    Case("16 bits, jpeg 2000", dicom(XA16, 16, J2K), XA16, 16),
    Case("signed 8 bits", dicom(stored(8, True), 8), stored(8, True), 8),
    Case("signed 12 of 16 bits", dicom(SIGNED, 12), SIGNED),
    Case("signed 12 of 16 bits, jpeg lossless", dicom(SIGNED, 12, uid.JPEGLosslessSV1), SIGNED),
    Case("signed 16 bits, big endian", dicom(stored(16, True), 16, BIG), stored(16, True), 16),
    Case("overlay above the stored bits", dicom(OVERLAID, 16, BitsStored=12, HighBit=11), XA12),
    padded("padding of one value", XA12.clip(1), 0, None),
    padded("padding of a range", XA12.clip(61), 0, 60),
    padded("padding of monochrome1", WHITE_IS_0.clip(0, 4094), 4095, None, inverted=True),
    padded("padding of signed values", SIGNED.clip(-2047), -2048, None),
]

# --- photometric interpretations ---

RAMPS = np.stack([np.linspace(0, 65535, 256), np.linspace(60000, 0, 256), np.linspace(900, 30000, 256)])
TABLES16 = RAMPS.round().astype(np.uint16)  # (3, 256)
TABLES8 = (TABLES16 >> 8).astype(np.uint8)
PALETTE16, PALETTE8 = (np.moveaxis(tables[:, XA8], 0, -1) for tables in (TABLES16, TABLES8))
PAIRS = COLOUR.copy()
PAIRS[:, :, 1::2, 1:] = PAIRS[:, :, ::2, 1:]
RCT = encoder(COLOUR, 8, J2K, "pylibjpeg", photometric_interpretation="YBR_RCT")
ICT = encoder(COLOUR, 8, J2K_LOSSY, "pylibjpeg", photometric_interpretation="YBR_ICT", j2k_psnr=[50])
INVERTED: dict[str, Any] = {"photometric": "MONOCHROME1"}
PHOTOMETRIC = [
    Case("monochrome2", dicom(XA12, 12, photometric="MONOCHROME2"), XA12, brightness=XA12 / 4095),
    Case("monochrome1", dicom(WHITE_IS_0, 12, **INVERTED), WHITE_IS_0, inverted=True, brightness=1 - WHITE_IS_0 / 4095),
    Case("monochrome1, rle", dicom(WHITE_IS_0_8, 8, RLE, **INVERTED), WHITE_IS_0_8, 8, inverted=True),
    Case("rgb by pixel", dicom(COLOUR, 8), COLOUR, 8),
    Case("rgb by plane", dicom(COLOUR, 8, by_plane=True), COLOUR, 8),
    Case("rgb by plane, in items", dicom(COLOUR, 8, ENCAPSULATED_UNCOMPRESSED, by_plane=True), COLOUR, 8),
    Case("rgb, rle", dicom(COLOUR, 8, RLE, by_plane=True), COLOUR, 8),
    Case("rgb, jpeg-ls", dicom(COLOUR, 8, JPEG_LS), COLOUR, 8),
    Case("ybr_full", dicom(COLOUR, 8, photometric="YBR_FULL"), RGB, 8, error=1),
    Case("ybr_full by plane", dicom(COLOUR, 8, BIG, "YBR_FULL", by_plane=True), RGB, 8, error=1),
    Case("ybr_full, rle", dicom(COLOUR, 8, RLE, "YBR_FULL"), RGB, 8, error=1),
    Case("ybr_full_422", halved_colour(PAIRS), rgb_of(PAIRS), 8, error=1),
    Case("ybr_full_422, jpeg", coded(jpegs(COLOUR), COLOUR, 8, JPEG, "YBR_FULL_422"), COLOUR, 8, error=12),
    Case("ybr_rct, jpeg 2000", coded(RCT, COLOUR, 8, J2K, "YBR_RCT"), COLOUR, 8),
    Case("ybr_ict, jpeg 2000", coded(ICT, COLOUR, 8, J2K_LOSSY, "YBR_ICT"), COLOUR, 8, error=6),
    Case("palette of 16 bits", dicom(XA8, 8, **palette(TABLES16, 16)), PALETTE16, 16),
    Case("palette of 8 bits", dicom(XA8, 8, RLE, **palette(TABLES8, 8)), PALETTE8, 8),
    Case("palette in segments", dicom(XA8, 8, **segmented_palette(TABLES16)), PALETTE16, 16, error=1),
]

# --- fragments and offset tables, files without a head ---

FRAGMENTS = [
    *(
        Case(
            f"{name}, {table} table, {count} a frame",
            fragmented(streams, frames, bits, syntax, table, count),
            frames,
            bits,
            error,
        )
        for name, syntax, frames, bits, streams, error in (
            ("jpeg", JPEG, SMOOTH8, 8, jpegs(SMOOTH8), 6),
            ("jpeg 2000", J2K, XA12, 12, encoder(XA12, 12, J2K, "pylibjpeg"), 0),
            ("rle", RLE, XA12, 12, encoder(XA12, 12, RLE, "pylibjpeg"), 0),
        )
        for table, count in (("basic", 1), ("empty", 1), ("extended", 1), ("wrong", 1), ("basic", 3), ("empty", 3))
    ),
]
HEADLESS = [
    Case("meta group first", headless(dicom(XA12, 12), meta=True), XA12),
    Case("meta group first, rle", headless(dicom(XA12, 12, RLE), meta=True), XA12),
    Case("data set alone, explicit", headless(dicom(XA12, 12), meta=False), XA12),
    Case("data set alone, implicit", headless(dicom(XA12, 12, NATIVE["implicit"]), meta=False), XA12),
    Case("data set alone, big endian", headless(dicom(XA12, 12, BIG), meta=False), XA12),
]

# --- times ---

VECTOR = {"FrameTimeVector": ["0", "40", "100", "25", "60.5"]}
VECTOR_MS = (0, 40, 140, 165, 225.5)
SECONDS, SECONDS_MS = ("08.5", "09", "10.25", "40.25", "59.999999"), (0, 500, 1750, 31750, 51499.999)


def multi_frame(name: str, times_ms: Sequence[float], *warned: str, pointer: str | None = None, **stated: Any) -> Case:
    """One file that states its times so."""
    attributes = {"FrameTime": None, **stated}
    if pointer is not None:
        attributes["FrameIncrementPointer"] = Tag(pointer)
    return Case(name, dicom(XA12, 12, **attributes), XA12, times_ms=times_ms, warned=warned)


def files(name: str, times_ms: Sequence[float], each: Sequence[dict[str, Any]], *warned: str, **stated: Any) -> Case:
    """Single-frame files that state their moments so, in the order of time."""
    return Case(name, series(XA12, each, **stated), XA12, times_ms=times_ms, warned=warned)


def every(interval_ms: float) -> tuple[float, ...]:
    return tuple(interval_ms * t for t in range(T))


def moments(keyword: str, texts: Sequence[str], **others: Sequence[Any]) -> list[dict[str, Any]]:
    """Attributes of each file: one that differs, and others that may."""
    return [{keyword: text, **{k: v[t] for k, v in others.items()}} for t, text in enumerate(texts)]


def on_date(texts: Sequence[str]) -> list[str]:
    return [f"202001011200{text}" for text in texts]


TIMES = [
    multi_frame("frame time", EVERY_40_MS, FrameTime="40"),
    multi_frame("frame time pointed at", every(66.667), pointer="FrameTime", FrameTime="66.667"),
    multi_frame("frame time vector", VECTOR_MS, **VECTOR),
    multi_frame("frame time vector pointed at", VECTOR_MS, pointer="FrameTimeVector", **VECTOR),
    multi_frame("cine rate", every(1000 / 15), CineRate="15"),
    multi_frame("cine rate pointed at", every(125), pointer="CineRate", CineRate="8"),
    multi_frame("recommended rate", every(1000 / 30), RecommendedDisplayFrameRate="30"),
    multi_frame(
        "rates disagree",
        EVERY_40_MS,
        "FrameTime gives 40 ms but (0018,0040) CineRate 10 frames/s",
        FrameTime="40",
        CineRate="10",
    ),
    multi_frame(
        "pointer to the vector, frame time disagrees",
        VECTOR_MS,
        "FrameTimeVector gives 56.375 ms on average but (0018,1063) FrameTime 40 ms",
        pointer="FrameTimeVector",
        FrameTime="40",
        **VECTOR,
    ),
    multi_frame(
        "vector too short", EVERY_40_MS, "FrameTimeVector has 3 values", FrameTimeVector=["0", "9", "9"], FrameTime="40"
    ),
    multi_frame(
        "zero gap",
        (0, 40, 40, 80, 120),
        "FrameTimeVector has 1 zero gaps",
        FrameTimeVector=["0", "40", "0", "40", "40"],
    ),
    multi_frame(
        "negative gap",
        (0, 40, 40, 70, 110),
        "FrameTimeVector has 1 negative gaps",
        FrameTimeVector=["0", "40", "-10", "40", "40"],
    ),
    multi_frame("nothing stated", UNKNOWN),
    multi_frame("frame time 0", UNKNOWN, "FrameTime is 0", FrameTime="0"),
    multi_frame("moment of the whole run", UNKNOWN, AcquisitionDateTime="20200101120000"),
    multi_frame("enhanced, reference times", SECONDS_MS, **enhanced(FrameReferenceDateTime=on_date(SECONDS))),
    multi_frame("enhanced, acquisition times", SECONDS_MS, **enhanced(FrameAcquisitionDateTime=on_date(SECONDS))),
    multi_frame(
        "enhanced, temporal positions",
        (0, 500, 2250, 2500, 9000),
        **enhanced(TemporalPositionTimeOffset=[1.0, 1.5, 3.25, 3.5, 10.0]),
    ),
    multi_frame(
        "enhanced, one frame unknown",
        (0, 500, np.nan, 31750, 51499.999),
        **enhanced(FrameReferenceDateTime=[*on_date(SECONDS)[:2], None, *on_date(SECONDS)[3:]]),
    ),
    files("series by date-time", SECONDS_MS, moments("AcquisitionDateTime", on_date(SECONDS))),
    files(
        "series by date and time",
        SECONDS_MS,
        moments("AcquisitionTime", [f"1200{s}" for s in SECONDS]),
        AcquisitionDate="20200101",
    ),
    files(
        "series by content time",
        SECONDS_MS,
        moments("ContentTime", [f"1200{s}" for s in SECONDS]),
        ContentDate="20200101",
    ),
    files(
        "one series and study each",
        SECONDS_MS,
        moments(
            "AcquisitionDateTime",
            on_date(SECONDS),
            SeriesInstanceUID=[f"1.2.3.{t}" for t in range(T)],
            StudyInstanceUID=[f"1.2.4.{t}" for t in range(T)],
        ),
        SOPClassUID=OP,
        Modality="OP",
    ),
    files(
        "series past midnight",
        (0, 100, 1100, 61100, 121100),
        moments(
            "AcquisitionDateTime",
            ["20191231235959.9", "20200101000000", "20200101000001", "20200101000101", "20200101000201"],
        ),
    ),
    files(
        "series past midnight without a date",
        (0, 100, 1100, 61100, 121100),
        moments("AcquisitionTime", ["235959.9", "000000", "000001", "000101", "000201"]),
        "read as passing midnight",
    ),
    files(
        "series over the end of summer time",
        (0, 1000, 2000, 3000, 4000),
        moments(
            "AcquisitionDateTime",
            [
                "20201025025958+0200",
                "20201025025959+0200",
                "20201025020000+0100",
                "20201025020001+0100",
                "20201025020002+0100",
            ],
        ),
    ),
    files(
        "series with equal moments",
        (0, 0, 1000, 1000, 2000),
        moments("AcquisitionDateTime", on_date(["08", "08", "09", "09", "10"]), InstanceNumber=range(1, 6)),
        "2 zero gaps",
    ),
    files("series by number, frame time", EVERY_40_MS, moments("InstanceNumber", range(1, 6)), FrameTime="40"),
    files(
        "series by number, moment of the whole run",
        UNKNOWN,
        moments("InstanceNumber", range(1, 6)),
        AcquisitionDateTime="20200101120000",
    ),
    files("series by number, times unknown", UNKNOWN, moments("InstanceNumber", range(1, 6))),
]

# --- windows: brightness by the formulas of PS3.3 C.11.2 ---


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1."""
    conditions = [x <= c - 0.5 - (w - 1) / 2, x > c - 0.5 + (w - 1) / 2]
    return np.select(conditions, [0.0, 1.0], (x - (c - 0.5)) / max(w - 1, 1e-9) + 0.5)


def linear_exact(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2."""
    return np.select([x <= c - w / 2, x > c + w / 2], [0.0, 1.0], (x - c) / w + 0.5)


def sigmoid(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - c) / w))


def percentiles(x: np.ndarray) -> np.ndarray:
    low, high = np.percentile(x, (0.5, 99.5))
    return ((x - low) / (high - low)).clip(0, 1)


def shown(
    name: str, brightness: np.ndarray, frames: np.ndarray = XA12, window: str = "voi", bits: int = 12, **stated: Any
) -> Case:
    """A run with these attributes of display, and how bright it should be."""
    inverted = stated.get("photometric") == "MONOCHROME1"
    write = dicom(frames, bits, **stated)
    return Case(name, write, frames, bits, inverted=inverted, window=window, brightness=brightness)


def window_of(center: float, width: float, function: str | None = None) -> dict[str, Any]:
    return {"WindowCenter": str(center), "WindowWidth": str(width), "VOILUTFunction": function}


CURVE = (np.linspace(0, 1, 2000) ** 2 * 1023).round().astype("<u2")  # of 10 bits, for the values 500 to 2499
TABLE = {"VOILUTSequence": items({"LUTDescriptor": [2000, 500, 10], "LUTData": CURVE.tobytes()})}
THROUGH_TABLE = CURVE[(XA12.astype(int) - 500).clip(0, 1999)] / 1023
EYE = {"SOPClassUID": OP, "Modality": "OP"}
WINDOWS = [
    shown("linear", linear(F, 2000, 1500), **window_of(2000, 1500)),
    shown("linear of width 1", linear(F, 2000, 1), **window_of(2000, 1, "LINEAR")),
    shown("linear exact", linear_exact(F, 1200.5, 300.25), **window_of(1200.5, 300.25, "LINEAR_EXACT")),
    shown("sigmoid", sigmoid(F, 1800, 900), **window_of(1800, 900, "SIGMOID")),
    shown("first of two windows", linear(F, 900, 700), WindowCenter=["900", "5"], WindowWidth=["700", "9"]),
    shown("table", THROUGH_TABLE, **TABLE),
    shown("table before window", THROUGH_TABLE, **TABLE, **window_of(2000, 1500)),
    shown("linear of signed values", linear(F - 2048, -100, 800), SIGNED, **window_of(-100, 800)),
    shown(
        "linear of monochrome1",
        1 - linear(4095 - F, 2600, 900),
        WHITE_IS_0,
        **INVERTED,
        **window_of(2600, 900),
    ),
    shown(
        "x-ray: no modality transform",
        linear(F, 2000, 1500),
        **window_of(2000, 1500),
        RescaleSlope="3",
        RescaleIntercept="-7",
    ),
    shown(
        "retina: window of rescaled values",
        linear(2 * F - 1000, 2500, 1500),
        **window_of(2500, 1500),
        **EYE,
        RescaleSlope="2",
        RescaleIntercept="-1000",
    ),
    shown("no window: percentiles", percentiles(XA12)),
    shown("percentiles", percentiles(XA12), window="percentile", **window_of(2000, 1500)),
    shown("percentiles of monochrome1", 1 - percentiles(WHITE_IS_0), WHITE_IS_0, "percentile", **INVERTED),
    shown("stored range of signed values", (SIGNED + 2048.0) / 4095, SIGNED, "stored", **window_of(-100, 800)),
    shown("stored range of 16 bits", XA16 / 65535, XA16, "stored", 16, **window_of(2000, 1500)),
]

# --- shutters: DICOM counts rows and columns from 1, and edges belong to what is shown ---

Y, X = np.mgrid[1 : ROWS + 1, 1 : COLUMNS + 1]
RECTANGLE = {"UpperHorizontalEdge": 6, "LowerHorizontalEdge": 40, "LeftVerticalEdge": 4, "RightVerticalEdge": 33}
IN_RECTANGLE = (Y >= 6) & (Y <= 40) & (X >= 4) & (X <= 33)
IN_CIRCLE = (Y - 25) ** 2 + (X - 18) ** 2 <= 15**2
OCTAGON = [
    (4, 14),
    (4, 26),
    (14, 36),
    (34, 36),
    (44, 26),
    (44, 14),
    (34, 4),
    (14, 4),
]  # rows, columns; edges at 45 degrees
IN_OCTAGON = (
    (Y >= 4) & (Y <= 44) & (X >= 4) & (X <= 36) & (Y + X >= 18) & (Y + X <= 70) & (Y - X >= -22) & (Y - X <= 30)
)
SHAPES = {
    "RECTANGULAR": (IN_RECTANGLE, {f"{{}}{edge}": value for edge, value in RECTANGLE.items()}),
    "CIRCULAR": (IN_CIRCLE, {"CenterOfCircular{}": [25, 18], "RadiusOfCircular{}": 15}),
    "POLYGONAL": (IN_OCTAGON, {"VerticesOfThePolygonal{}": [v for vertex in OCTAGON for v in vertex]}),
}


def blades(kind: str, *shapes: str) -> dict[str, Any]:
    """Attributes of one shutter or collimator of these shapes."""
    values = {key.format(kind): value for name in shapes for key, value in SHAPES[name][1].items()}
    return {f"{kind}Shape": list(shapes), **values}


def regions(name: str, region: np.ndarray, frames: np.ndarray = XA12, **stated: Any) -> list[Case]:
    """A run of which only a region is shown: filled, cropped and kept."""
    inverted = stated.get("photometric") == "MONOCHROME1"
    write = dicom(frames, 12, **stated)
    return [
        Case(f"{name}, {border}", write, frames, border=border, region=region, inverted=inverted)
        for border in ("fill", "crop")
    ]


BORDER = np.zeros((ROWS, COLUMNS), bool)
BORDER[7:-5, 4:-6] = True
BORDERED = np.where(BORDER, XA12 // 2 + 2000, 0).astype(np.uint16)
BORDER[[7, 7, -6, -6], [4, -7, 4, -7]] = False  # the border is told without noise of one pixel: corners go with it
ALL_SHAPES = IN_RECTANGLE & IN_CIRCLE & IN_OCTAGON
ENHANCED_SHUTTER = items({"FrameDisplayShutterSequence": items(blades("Shutter", "CIRCULAR"))})
SHUTTERS = [
    *regions("rectangle", IN_RECTANGLE, **blades("Shutter", "RECTANGULAR")),
    *regions("circle", IN_CIRCLE, **blades("Shutter", "CIRCULAR")),
    *regions("polygon", IN_OCTAGON, **blades("Shutter", "POLYGONAL")),
    *regions("three shapes", ALL_SHAPES, **blades("Shutter", *SHAPES)),
    *regions("collimator", IN_RECTANGLE, **blades("Collimator", "RECTANGULAR")),
    *regions("round collimator", IN_CIRCLE, **blades("Collimator", "CIRCULAR")),
    *regions(
        "shutter and collimator",
        IN_CIRCLE & IN_OCTAGON,
        **blades("Shutter", "CIRCULAR"),
        **blades("Collimator", "POLYGONAL"),
    ),
    *regions("monochrome1", IN_CIRCLE, WHITE_IS_0, **blades("Shutter", "CIRCULAR"), **INVERTED),
    *regions("enhanced", IN_CIRCLE, SharedFunctionalGroupsSequence=ENHANCED_SHUTTER),
    *regions("black border of the pixels", BORDER, BORDERED),
    Case("rectangle, keep", dicom(XA12, 12, **blades("Shutter", "RECTANGULAR")), XA12),
]

# --- mask subtraction: DICOM counts frames from 1 ---


def subtracted(
    name: str, masks: Sequence[np.ndarray | None], *steps: dict[str, Any], relation: str | None = "LOG", **options: Any
) -> Case:
    """A run and the mask (H, W) of each frame; None: a frame that no item applies to, which shows no change."""
    is_linear = relation == "LIN"
    space, largest = (np.log1p(XA12.astype(float)), np.log1p(4095)) if is_linear else (XA12.astype(float), 4095.0)
    values = np.stack([frame - (frame if mask is None else mask) for frame, mask in zip(space, masks, strict=True)])
    attributes = {"MaskSubtractionSequence": items(*steps), "PixelIntensityRelationship": relation}
    brightness = (values + largest) / (2 * largest)
    return Case(name, dicom(XA12, 12, **attributes), XA12, values=values, brightness=brightness, **options)


def average(*frames: int, **more: Any) -> dict[str, Any]:
    return {"MaskOperation": "AVG_SUB", "MaskFrameNumbers": list(frames), **more}


LOGS = np.log1p(F)


def moved(image: np.ndarray, down: float, left: float) -> np.ndarray:
    """PS3.3 C.7.6.10.1.2, linear between pixels, edges repeated."""
    return ndimage.shift(image, (down, -left), order=1, mode="nearest")


UNCHANGED = Case("no operation", dicom(XA12, 12, MaskSubtractionSequence=items({"MaskOperation": "NONE"})), XA12)
SUBTRACTIONS = [
    subtracted("one mask frame", [F[0]] * T, average(1)),
    subtracted("several mask frames", [F[[0, 1, 4]].mean(0)] * T, average(1, 2, 5)),
    subtracted("range", [None, F[0], F[0], F[0], None], average(1, ApplicableFrameRange=[2, 4])),
    subtracted("two ranges", [F[1], None, None, F[1], F[1]], average(2, ApplicableFrameRange=[1, 1, 4, 5])),
    subtracted(
        "two items, the first that applies",
        [F[0], F[0], F[0], F[4], F[4]],
        average(1, ApplicableFrameRange=[1, 3]),
        average(5, ApplicableFrameRange=[2, 5]),
    ),
    subtracted("shift of whole pixels", [moved(F[0], 2, 3)] * T, average(1, MaskSubPixelShift=[2.0, 3.0])),
    subtracted("shift of parts of a pixel", [moved(F[0], -0.5, 1.25)] * T, average(1, MaskSubPixelShift=[-0.5, 1.25])),
    subtracted("tid", [None, *F[:4]], {"MaskOperation": "TID"}),
    subtracted("tid of 2 frames", [None, None, *F[:3]], {"MaskOperation": "TID", "TIDOffset": 2}),
    subtracted(
        "tid in a range", [None, None, F[1], F[2], None], {"MaskOperation": "TID", "ApplicableFrameRange": [3, 4]}
    ),
    subtracted("linear values, one mask frame", [LOGS[0]] * T, average(1), relation="LIN"),
    subtracted("linear values, several mask frames", [LOGS[:3].mean(0)] * T, average(1, 2, 3), relation="LIN"),
    subtracted("linear values, tid", [None, *LOGS[:4]], {"MaskOperation": "TID"}, relation="LIN"),
    subtracted("display values", [F[0]] * T, average(1), relation="DISP"),
    subtracted("relation not stated", [F[0]] * T, average(1), relation=None),
    UNCHANGED,
    Case("not asked of us", dicom(XA12, 12, MaskSubtractionSequence=items(average(1))), XA12, subtraction="none"),
]

# --- other containers ---

NAMES = tuple(f"frame{n}.png" for n in (2, 9, 10, 11, 100))  # in the order of their numbers
SHUFFLED = ("e.png", "b.png", "d.png", "a.png", "c.png")
IRREGULAR_MS = (0, 40, 140, 165, 225)
MILLISECONDS = "file,time_ms\n" + "".join(f"{SHUFFLED[t]},{7000 + IRREGULAR_MS[t]}\n" for t in (3, 0, 4, 1, 2))
IN_SECONDS = "file,elapsed_seconds\n" + "".join(f"{name},{10 + t / 4}\n" for t, name in enumerate(SHUFFLED))
OTHER_ORDER = "3 of 5 times earlier than the one of the name before"
SCALED = (XA12 * 0.5 - 10).astype(np.float32)
CONTAINERS = [
    Case("nifti", nifti(XA16, "run.nii"), XA16, 16),
    Case("nifti, compressed", nifti(XA8, "run.nii.gz"), XA8, 8),
    Case("nifti, rows upwards", nifti(XA16, "run.nii", upwards=True), XA16, 16),
    Case(
        "nifti of three axes", nifti(XA16, "run.nii", axes=3, unit="msec"), XA16, 16, warned=("the third read as time",)
    ),
    Case("nifti, signed", nifti(stored(16, True), "run.nii"), stored(16, True), 16),
    Case("nifti, scaled", nifti(XA12, "run.nii", scaling=(0.5, -10)), SCALED, brightness=XA12 / 4095),
    Case("nifti, colour", nifti(COLOUR, "run.nii"), COLOUR, 8),
    Case("folder, numbers in names", pictures(XA8, NAMES), XA8, 8, times_ms=UNKNOWN),
    Case("folder, times in ms", pictures(XA8, SHUFFLED, MILLISECONDS), XA8, 8, 0, IRREGULAR_MS, (OTHER_ORDER,)),
    Case("folder, times in seconds", pictures(XA16, SHUFFLED, IN_SECONDS), XA16, 16, 0, every(250), (OTHER_ORDER,)),
    Case("list in its order", pictures(XA16, SHUFFLED, listed=True), XA16, 16, times_ms=UNKNOWN),
    Case("folder of colour", pictures(COLOUR, NAMES), COLOUR, 8, times_ms=UNKNOWN),
    Case(
        "folder of jpeg", pictures(SMOOTH8, [f"{t}.jpg" for t in range(T)], quality=95), SMOOTH8, 8, 6, times_ms=UNKNOWN
    ),
    Case("folder of bmp", pictures(XA8, [f"{t}.bmp" for t in range(T)]), XA8, 8, times_ms=UNKNOWN),
    Case("folder of tiff", pictures(XA16, [f"{t}.tif" for t in range(T)]), XA16, 16, times_ms=UNKNOWN),
    Case("tiff of pages", pages(XA16), XA16, 16, times_ms=UNKNOWN),
    Case("tiff of pages, deflated", pages(XA8, compression="tiff_adobe_deflate"), XA8, 8, times_ms=UNKNOWN),
    Case("avi, ffv1", video(XA8, "run.avi", "ffv1"), XA8, 8),
    Case("avi, raw", video(XA8, "run.avi", "rawvideo"), XA8, 8),
    Case("mkv, ffv1 of 16 bits", video(XA16, "run.mkv", "ffv1"), XA16, 16),
    Case("mp4, h264 without loss", video(COLOUR, "run.mp4", "libx264rgb", qp="0"), COLOUR, 8),
    Case(
        "mp4, irregular times",
        video(COLOUR, "run.mp4", "libx264rgb", IRREGULAR_MS, qp="0"),
        COLOUR,
        8,
        times_ms=IRREGULAR_MS,
    ),
]

TABLE_OF_CASES = {
    "transfer syntax": SYNTAXES,
    "bits": BITS,
    "photometric": PHOTOMETRIC,
    "fragments": FRAGMENTS,
    "headless": HEADLESS,
    "times": TIMES,
    "window": WINDOWS,
    "shutter": SHUTTERS,
    "subtraction": SUBTRACTIONS,
    "container": CONTAINERS,
}
CASES = [pytest.param(case, id=f"{group}: {case.name}") for group, cases in TABLE_OF_CASES.items() for case in cases]


def luminance(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114]) if frames.ndim == 4 else frames.astype(float)


def region_of(values: np.ndarray, case: Case) -> np.ndarray:
    """Values with the darkest of the region around it, and cut to it if asked for."""
    if case.region is None or case.border == "keep":
        return values
    inside = values[:, case.region]
    filled = np.where(case.region, values, inside.max() if case.inverted else inside.min())
    rows, columns = (np.flatnonzero(case.region.any(axis)) for axis in (1, 0))
    return filled[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if case.border == "crop" else filled


def from_0_to_1(values: np.ndarray, case: Case) -> np.ndarray:
    """All that the bits hold from 0 to 1."""
    low = -(2 ** (case.bits - 1)) if case.stored.dtype.kind == "i" else 0
    share = (values - low) / (2**case.bits - 1)
    return 1 - share if case.inverted else share


@pytest.mark.parametrize("case", CASES)
def test_a_run_in_any_form_reads_back_to_the_known_truth(case, tmp_path):
    source = case.write(tmp_path)
    header = read_header(source)
    frames = read_frames(header, range(header.num_frames))
    assert (frames.shape, frames.dtype) == (case.stored.shape, case.stored.dtype)
    assert np.abs(frames.astype(float) - case.stored).max() <= case.error
    if case.error:  # each frame is nearer to its own truth than to that of any other
        distances = [[np.abs(frame.astype(float) - other).mean() for other in case.stored] for frame in frames]
        assert np.argmin(distances, axis=1).tolist() == list(range(T))
    np.testing.assert_array_equal(read_frames(header, [1, 4]), frames[[1, 4]])
    np.testing.assert_allclose(header.frame_times_ms, case.times_ms, rtol=1e-9, atol=2e-4)  # a double of 2020 in ms
    assert len(header.warnings) == len(case.warned), header.warnings
    assert all(part in warning for part, warning in zip(case.warned, header.warnings, strict=True)), header.warnings

    loaded = LoadSequenced(frame_choice="all", subtraction=case.subtraction)({IMAGE: source})
    values = luminance(case.stored) if case.values is None else case.values
    scale = float(np.abs(values).max())
    np.testing.assert_allclose(loaded[IMAGE].numpy(), values, rtol=0, atol=case.error + 1e-6 * scale)
    np.testing.assert_allclose(loaded[FRAME_TIMES].numpy(), case.times_ms, rtol=1e-6, atol=1e-3)
    assert loaded[FRAME_INDICES].tolist() == list(range(len(values)))
    assert loaded[HEADER].subtracted == (case.values is not None and case.name in {c.name for c in SUBTRACTIONS})

    inside = ShowRegiond(border=case.border)(loaded)
    np.testing.assert_allclose(inside[IMAGE].numpy(), region_of(values, case), rtol=0, atol=case.error + 1e-6 * scale)
    bright = WindowSequenced(window=case.window)(inside)[IMAGE].numpy()
    expected = case.brightness if case.brightness is not None else from_0_to_1(region_of(values, case), case)
    np.testing.assert_allclose(bright, expected, rtol=0, atol=case.error / 2**case.bits + 3e-6)
    assert bright.min() >= 0 and bright.max() <= 1


def test_the_table_has_every_group_in_full():
    assert {group: len(cases) for group, cases in TABLE_OF_CASES.items()} == {
        "transfer syntax": 20,
        "bits": 15,
        "photometric": 18,
        "fragments": 18,
        "headless": 5,
        "times": 30,
        "window": 16,
        "shutter": 21,
        "subtraction": 17,
        "container": 22,
    }
    assert len({case.id for case in CASES}) == len(CASES) == 182
    for frames in (XA8, XA12, XA16, SMOOTH8, BLOCKS12, COLOUR):
        assert all((a != b).any() for i, a in enumerate(frames) for b in frames[:i])  # an order that can be wrong


# --- damage: one error, or the true number of frames of the true shape ---

CROWDED = {  # all that the header says of time and display, for damage to fall on
    **PERSON,
    **VECTOR,
    **TABLE,
    **window_of(2000, 1500),
    **blades("Shutter", *SHAPES),
    **blades("Collimator", "RECTANGULAR"),
    "AcquisitionDateTime": "20200101120008.5",
    "CineRate": "15",
    "PixelPaddingValue": 3,
    "MaskSubtractionSequence": items(average(1, 2, MaskSubPixelShift=[0.5, 1.0]), {"MaskOperation": "TID"}),
}
WHOLE = {
    "explicit": dicom(XA12, 12, **CROWDED),
    "implicit": dicom(XA12, 12, NATIVE["implicit"], **CROWDED),
    "big endian": dicom(SIGNED, 12, BIG, **CROWDED),
    "deflated": dicom(XA12, 12, NATIVE["deflated"], **CROWDED),
    "rle": dicom(XA8, 8, RLE, **CROWDED),
    "jpeg": coded(jpegs(SMOOTH8), SMOOTH8, 8, JPEG, **CROWDED),
    "jpeg-ls": dicom(XA12, 12, JPEG_LS, **CROWDED),
    "jpeg 2000": dicom(XA12, 12, J2K, **CROWDED),
    "palette": dicom(XA8, 8, **palette(TABLES16, 16), **PERSON),
    "enhanced": dicom(XA12, 12, **enhanced(FrameReferenceDateTime=on_date(SECONDS)), **PERSON),
    "headless": headless(dicom(XA12, 12, NATIVE["implicit"], **CROWDED), meta=False),
    "series": series(XA12, moments("AcquisitionDateTime", on_date(SECONDS)), **PERSON),
    "nifti": nifti(XA16, "run.nii"),
    "nifti.gz": nifti(XA16, "run.nii.gz"),
    "png": pictures(XA16, SHUFFLED, MILLISECONDS),
    "jpeg files": pictures(SMOOTH8, [f"{t}.jpg" for t in range(T)]),
    "bmp": pictures(XA8, [f"{t}.bmp" for t in range(T)]),
    "tiff": pages(XA8, compression="tiff_adobe_deflate"),
    # Not FFV1, which has its size from the container alone; not Matroska, which states no number of frames.
    "avi": video(COLOUR, "run.avi", "png"),
    "mp4": video(COLOUR, "run.mp4", "libx264rgb", qp="0"),
}
LOAD, REGION, WINDOW = LoadSequenced(frame_choice="all"), ShowRegiond(border="fill"), WindowSequenced(window="voi")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Name and content of every file of every form."""
    found = {}
    for kind, write in WHOLE.items():
        folder = tmp_path_factory.mktemp("whole")
        write(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        found[kind] = {path.name: path.read_bytes() for path in paths}
    return found


def read_or_refuse(folder: Path, contents: dict[str, bytes]) -> bool:
    """True where the exam of these files reads to the frames it has; False where it is refused as it should be."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    source = folder if len(contents) > 1 else folder / next(iter(contents))
    try:
        out = WINDOW(REGION(LOAD({IMAGE: source})))
    except SequenceError as error:
        assert_message(error)
        assert_no_person(error)
        return False
    assert out[IMAGE].shape == (T, ROWS, COLUMNS), (out[IMAGE].shape, out[HEADER].warnings)
    assert out[FRAME_TIMES].shape == (T,)
    assert float(out[IMAGE].min()) >= 0 and float(out[IMAGE].max()) <= 1
    assert_no_person(out[HEADER])
    return True


def test_exams_are_read_before_they_are_damaged(whole, tmp_path):
    assert all(read_or_refuse(tmp_path, contents) for contents in whole.values())
    assert len(whole) == 20 and sum(len(contents) for contents in whole.values()) == 37


any_damage = settings(max_examples=500, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))


@any_damage
@given(data=st.data())
def test_an_exam_of_damaged_bytes_is_refused_or_has_all_its_frames(whole, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(list(WHOLE)), "form")
    contents = dict(whole[kind])
    name = data.draw(st.sampled_from(list(contents)), "file")
    content = bytearray(contents[name])
    for _ in range(data.draw(st.integers(1, 3), "damages")):
        last = min(len(content) - 1, data.draw(st.sampled_from([400, 2000, len(content)]), "up to"))
        at = data.draw(st.integers(0, max(last, 0)), "at")
        content[at : at + data.draw(st.integers(0, 4), "replaces")] = data.draw(st.binary(max_size=4), "bytes")
    contents[name] = bytes(content)
    read_or_refuse(damaged_folder(tmp_path_factory), contents)


PIXELS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "NumberOfFrames")
FIELDS = [keyword for keyword in (*HEADER_TAGS, *PIXELS) if dictionary_VR(keyword) != "SQ"]
TEXTS = [
    "",
    "0",
    "-1",
    "5",
    "6",
    "1e30",
    "nan",
    "inf",
    "1\\2\\3",
    "\\\\",
    "MONOCHROME1",
    "RGB",
    "TID",
    "2020",
    "x" * 70,
]


@any_damage
@given(data=st.data())
def test_an_exam_of_any_header_values_is_refused_or_has_all_its_frames(whole, tmp_path_factory, data):
    kind = data.draw(
        st.sampled_from([kind for kind in WHOLE if "run.dcm" in whole[kind] and kind != "headless"]), "form"
    )
    dataset = dcmread(io.BytesIO(whole[kind]["run.dcm"]))
    for keyword in data.draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True), "fields"):
        value = data.draw(st.sampled_from(TEXTS).map(str.encode) | st.binary(max_size=8), keyword)
        value += b" " * (len(value) % 2)
        implicit, little = dataset.original_encoding
        vr = dictionary_VR(keyword).split(" ")[0]  # "US or SS"
        dataset[keyword] = RawDataElement(Tag(keyword), vr, len(value), value, 0, implicit, little)
    content = io.BytesIO()
    dataset.save_as(content)
    read_or_refuse(damaged_folder(tmp_path_factory), {"run.dcm": content.getvalue()})


@any_damage
@given(data=st.data())
def test_a_nifti_exam_of_any_header_values_is_refused_or_has_all_its_frames(whole, tmp_path_factory, data):
    content = bytearray(whole["nifti"]["run.nii"])
    fields = nibabel.Nifti1Header.template_dtype.fields
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True), "fields"):
        dtype, at = fields[name][:2]
        content[at : at + dtype.itemsize] = data.draw(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize), name)
    read_or_refuse(damaged_folder(tmp_path_factory), {"run.nii": bytes(content)})


def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    return folder

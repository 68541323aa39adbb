"""Stored pixel values of chosen frames, checked against the header before anything is allocated."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from pydicom import uid
from pydicom.pixels import convert_color_space

from scripts.dicom.codestreams import NEXT_IMAGE, is_lossy, numeric_uid
from scripts.dicom.decoding import decode
from scripts.dicom.elements import PIXEL_DATA, UNDEFINED
from scripts.dicom.fragments import (
    DEFLATED_FRAMES,
    ENCAPSULATED_UNCOMPRESSED,
    Span,
    check_frame,
    frame_fragments,
    frame_header,
    read_frame,
)
from scripts.dicom.layout import PIXEL_DATA_NAME, YBR, PixelLayout, pixels_of
from scripts.dicom.palette import read_palette
from scripts.dicom.part10 import NATIVE, open_part10
from scripts.dicom.streams import Part10
from scripts.errors import SequenceError, bad_value

# One decoder a transfer syntax: lossy JPEG differs by decoder by one grey level, and so would features.
DECODERS: dict[str, str] = {
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "openjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "openjpeg"),
    uid.RLELossless: "rle",
    ENCAPSULATED_UNCOMPRESSED: "numpy",
    DEFLATED_FRAMES: "zlib",
}
DECODER_PACKAGES = (
    *("pydicom", "pillow", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg", "pylibjpeg-rle"),
    *("nibabel", "av"),  # NIfTI and video, in scripts/sequences
)
PALETTE = "PALETTE COLOR"
SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", PALETTE), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}


def decoder_versions() -> dict[str, str | None]:
    """Versions of the packages that decide pixel values in any container, for a store's fingerprint; None = absent."""
    return {package: installed_version(package) for package in DECODER_PACKAGES}


def installed_version(package: str) -> str | None:
    """Version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_pixel_data(path: Path, file: Part10, layout: PixelLayout, frames: int) -> list[str]:
    """What is odd in the pixel data; what is not as the header says is refused, before decoding.

    Args:
        path: for messages.
        file: of `open_part10`, at any position.
        layout: of `read_layout`.
        frames: NumberOfFrames.

    Raises:
        SequenceError: too little or too much data, or another number of frames.
    """
    if file.syntax in NATIVE:
        return _check_native(path, file, layout, frames)
    for spans in _encapsulated(path, file, layout, frames):
        check_frame(path, file, spans, layout)
    return []


def stored_bits(path: Path, file: Part10, layout: PixelLayout) -> int:
    """Bits that the values of `read_stored` in colour range over: BitsStored, or those of a palette's entries.

    Args:
        path: for messages.
        file: of `open_part10`.
        layout: of `read_layout`.

    Raises:
        SequenceError: the palette is not valid.
    """
    return read_palette(path, file).bits if layout.photometric == PALETTE else layout.stored


def read_stored(path: Path, indices: Sequence[int], transfer_syntax: str, colour: bool) -> Iterator[np.ndarray]:
    """Stored values of chosen frames, one by one, (H, W) or, in colour, (H, W, 3) as RGB; native order, C-contiguous.

    Only these frames are read and decoded. RGB of PALETTE COLOR has the type of the palette's entries, uint8 or
    uint16; `stored_bits` is its range.

    Args:
        path: of the file.
        indices: 0-based.
        transfer_syntax: as `open_part10` had it when the header was read.
        colour: False leaves PALETTE COLOR as it is stored.

    Raises:
        SequenceError: no such frame, the file changed, or the decoder broke down.
        Exception: whatever the decoder raises; the caller translates.
    """
    with open_part10(path) as file:
        if file.syntax != transfer_syntax:
            found = numeric_uid(file.syntax)
            raise SequenceError(bad_value(path, "(0002,0010) TransferSyntaxUID", found, "what it was before"))
        layout = read_layout(path, file)
        frames = _number_of_frames(file)
        outside = [index for index in indices if not 0 <= index < frames]
        if outside:
            raise SequenceError(bad_value(path, "frame", outside[0], f"0 to {frames - 1}"))
        if file.syntax in NATIVE:
            _check_native(path, file, layout, frames)
            decoded = (layout.stored_values(_native_frame(file, layout, index)) for index in indices)
        else:
            spans = _encapsulated(path, file, layout, frames)
            decoded = (_decoded_frame(path, file, layout, spans[index]) for index in indices)
        if colour and layout.photometric == PALETTE:
            yield from map(read_palette(path, file).to_rgb, decoded)
        elif colour and layout.photometric in YBR and DECODERS.get(file.syntax) != "pillow":  # which gives RGB already
            yield from (convert_color_space(frame, "YBR_FULL", "RGB") for frame in decoded)
        else:
            yield from decoded


def read_layout(path: Path, file: Part10) -> PixelLayout:
    """The Image Pixel attributes of a file, checked.

    Raises:
        SequenceError: absent, outside what DICOM allows, or a combination no image has.
    """
    if file.syntax not in NATIVE and file.syntax not in DECODERS:
        names = ", ".join(sorted(numeric_uid(known) for known in (*NATIVE, *DECODERS)))
        raise SequenceError(
            bad_value(path, "(0002,0010) TransferSyntaxUID", numeric_uid(file.syntax), f"one of {names}")
        )
    rows, columns = (_number(path, file, tag, keyword) for tag, keyword in ((0x10, "Rows"), (0x11, "Columns")))
    samples = _number(path, file, 0x02, "SamplesPerPixel", (1, 3), default=1)
    photometric = file.text(0x00280004)
    if SAMPLES.get(photometric) != samples or (photometric in ("YBR_ICT", "YBR_RCT") and file.syntax in NATIVE):
        known = photometric if photometric in SAMPLES else "another value"
        field = "(0028,0004) PhotometricInterpretation with SamplesPerPixel"
        allowed = f"one of {', '.join(f'{name} with {number}' for name, number in SAMPLES.items())}"
        raise SequenceError(bad_value(path, field, f"{known} with {samples}", allowed))
    allocated = _number(path, file, 0x100, "BitsAllocated", (8, 16))
    stored = _number(path, file, 0x101, "BitsStored", range(1, allocated + 1))
    _number(path, file, 0x102, "HighBit", (stored - 1,), default=stored - 1)
    signed = _number(path, file, 0x103, "PixelRepresentation", (0, 1), default=0) == 1
    by_plane = samples == 3 and _number(path, file, 0x06, "PlanarConfiguration", (0, 1), default=0) == 1
    if photometric in YBR and allocated != 8:
        raise SequenceError(bad_value(path, "(0028,0100) BitsAllocated", allocated, f"8 in {photometric}"))
    uncompressed = (*NATIVE, ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAMES)
    if photometric == "YBR_FULL_422" and file.syntax in uncompressed and columns % 2:
        raise SequenceError(bad_value(path, "(0028,0011) Columns", columns, "an even number in YBR_FULL_422"))
    return PixelLayout(rows, columns, samples, allocated, stored, signed, by_plane, photometric)


def _number(
    path: Path, file: Part10, element: int, keyword: str, allowed: Sequence[int] = range(1, 65536), default: int = 0
) -> int:
    """An unsigned 16 bit attribute of group 0028."""
    data = file.value(0x00280000 | element, 2**10)
    order = "big" if file.syntax == uid.ExplicitVRBigEndian else "little"
    number = int.from_bytes(data, order) if len(data) == 2 else default if not data else None  # type: ignore[arg-type]
    if number is None or number not in allowed:
        found = f"{len(data)} bytes" if number is None else number if data else "absent"
        choice = " or ".join(map(str, allowed)) if len(allowed) < 3 else f"{allowed[0]} to {allowed[-1]}"
        raise SequenceError(bad_value(path, f"(0028,{element:04X}) {keyword}", found, choice))
    return number


def _number_of_frames(file: Part10) -> int:
    text = file.text(0x00280008).removeprefix("+")
    return int(text) if text.isascii() and text.isdigit() else 1


def _check_native(path: Path, file: Part10, layout: PixelLayout, frames: int) -> list[str]:
    pixels = file.elements[PIXEL_DATA]
    left, expected = file.size - pixels.start, layout.native_bytes * frames
    if pixels.length == UNDEFINED:
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "of undefined length", f"{expected} bytes, uncompressed"))
    if pixels.length > left:
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, f"cut off after {left} bytes", f"{pixels.length} bytes"))
    if pixels.length in (expected, expected + expected % 2):
        return []
    # Some writers pad to a block. A wrong number of rows or columns would show in every frame, as a row or more.
    surplus = pixels.length - expected
    if 0 < surplus <= layout.native_bytes // layout.rows and surplus < layout.native_bytes:
        return [f"{PIXEL_DATA_NAME} has {surplus} bytes more than its frames: left out"]
    found, rest = divmod(pixels.length, layout.native_bytes)
    if found and rest <= layout.native_bytes * found % 2:
        allowed = f"{found}, the frames in the pixel data"
        raise SequenceError(bad_value(path, "(0028,0008) NumberOfFrames", frames, allowed))
    allowed = f"{expected}, which is Rows x Columns x samples x bytes x {frames} frames"
    raise SequenceError(bad_value(path, PIXEL_DATA_NAME, f"{pixels.length} bytes", allowed))


def _encapsulated(path: Path, file: Part10, layout: PixelLayout, frames: int) -> list[list[Span]]:
    pixels = file.elements[PIXEL_DATA]
    if pixels.length != UNDEFINED:
        found = f"of a stated length, {pixels.length} bytes"
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, found, "fragments, as its transfer syntax has"))
    return frame_fragments(path, file, pixels.start, layout, frames)


def _native_frame(file: Part10, layout: PixelLayout, index: int) -> np.ndarray:
    """Samples of one uncompressed frame."""
    pixels, length = file.elements[PIXEL_DATA], layout.native_bytes
    big = file.syntax == uid.ExplicitVRBigEndian
    start = index * length
    if big and layout.allocated == 8 and pixels.vr == "OW":  # PS3.5 8.1.1: bytes in words, swapped with them
        first = start % 2
        file.seek(pixels.start + start - first)
        words = np.frombuffer(file.read(first + length + (first + length) % 2), ">u2")
        return pixels_of(words.astype("<u2").tobytes()[first : first + length], layout)
    file.seek(pixels.start + start)
    return pixels_of(file.read(length), layout, ">" if big else "<")


def _decoded_frame(path: Path, file: Part10, layout: PixelLayout, spans: list[Span]) -> np.ndarray:
    """Stored values of one compressed frame."""
    check_frame(path, file, spans, layout)
    decoder = DECODERS[file.syntax]
    is_coded = decoder not in ("rle", "numpy", "zlib")
    precision = frame_header(path, file, spans).precision if is_coded else layout.allocated
    stream = read_frame(file, spans)
    if is_coded and NEXT_IMAGE.search(stream):  # decoders would show the first
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "of several images in one frame", "one image a frame"))
    samples = decode(path, decoder, stream, layout, precision)
    if samples.shape != layout.shape:
        raise SequenceError(bad_value(path, "decoded frame", samples.shape, f"{layout.shape}, as the header says"))
    return layout.stored_values(samples, precision, is_lossy(file.syntax))

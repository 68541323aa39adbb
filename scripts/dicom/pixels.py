"""Stored pixel values of chosen frames, checked against the header before anything is allocated."""

import io
import struct
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import generate_frames, parse_basic_offsets, parse_fragments
from pydicom.pixels.utils import get_j2k_parameters

from scripts.dicom.decoding import decode, decode_apart
from scripts.errors import SequenceError, bad_value

# One decoder a transfer syntax: lossy JPEG differs by decoder by one grey level, and so would features.
DECODERS = {
    uid.JPEGBaseline8Bit: "pillow",
    **dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"),
    uid.RLELossless: "pylibjpeg",
}
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
JPEG = [syntax for syntax in DECODERS if syntax in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes)]
START_OF_FRAME = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
JPEG_HEADER_BYTES = 8192  # tables before the start of frame are far smaller
MULTI_FRAGMENT_SCAN_BYTES = 256 * 2**20  # a stream without offset table is read once to count its frames


def decoder_versions() -> dict[str, str]:
    """Versions of the packages that decide pixel values, for a store's fingerprint."""
    packages = ("pydicom", "pillow", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg", "pylibjpeg-rle")
    return {package: version(package) for package in packages}


def check_pixel_data(path: Path, file: io.BufferedReader, header: Dataset, frame_bytes: int, frames: int) -> None:
    """Refuse pixel data that is not what the header says, before decoding.

    Args:
        path: for messages.
        file: open at the pixel data element, as `dcmread(stop_before_pixels=True)` leaves it.
        header: with file_meta.
        frame_bytes: decoded bytes of a frame.
        frames: NumberOfFrames.

    Raises:
        SequenceError: no pixel data, too little or too much of it, or another number of frames.
    """
    syntax = header.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)
    if syntax not in NATIVE and syntax not in DECODERS:
        names = ", ".join(sorted(uid.UID(known).name for known in (*NATIVE, *DECODERS)))
        raise SequenceError(bad_value(path, "(0002,0010) TransferSyntaxUID", uid.UID(syntax).name, f"one of {names}"))
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    start = file.read(8)
    group, element = struct.unpack(f"{order}HH", start[:4]) if len(start) == 8 else (0, 0)
    if (group, element) != (0x7FE0, 0x0010):
        raise SequenceError(bad_value(path, "(7FE0,0010) PixelData", "absent", "the pixels of an image"))
    implicit = syntax == uid.ImplicitVRLittleEndian
    length = struct.unpack(f"{order}L", start[4:] if implicit else file.read(4))[0]
    position, size = file.tell(), path.stat().st_size
    if length == 0xFFFFFFFF:
        found = _count_frames(path, file, header, frames)
    else:
        if length > size - position:
            raise SequenceError(
                bad_value(path, "(7FE0,0010) PixelData", f"cut off after {size - position} bytes", f"{length} bytes")
            )
        expected = frame_bytes * frames
        if header.get("PhotometricInterpretation") == "YBR_FULL_422":
            expected = expected // 3 * 2  # PS3.3 C.7.6.3.1.2: two chroma samples shared by two pixels
        if length not in (expected, expected + expected % 2):
            raise SequenceError(
                bad_value(
                    path,
                    "(7FE0,0010) PixelData",
                    f"{length} bytes",
                    f"{expected}, which is Rows x Columns x samples x bytes x {frames} frames",
                )
            )
        found = frames
    if found != frames:
        raise SequenceError(
            bad_value(path, "(0028,0008) NumberOfFrames", frames, f"{found}, the frames in the pixel data")
        )


def _count_frames(path: Path, file: io.BufferedReader, header: Dataset, frames: int) -> int:
    """Frames in an encapsulated stream: by its offset table, else by fragments, else by end-of-image markers."""
    offsets = parse_basic_offsets(file)
    position = file.tell()
    fragments, starts = parse_fragments(file)
    syntax = header.file_meta.TransferSyntaxUID
    for start in starts if syntax in JPEG else starts[:1]:
        file.seek(start + 8)
        if syntax in JPEG:
            _check_jpeg(path, header, file.read(JPEG_HEADER_BYTES))
        elif syntax in uid.JPEG2000TransferSyntaxes:
            _check_jpeg2000(path, header, file.read(256))
    file.seek(position)
    if offsets:
        return len(offsets) if fragments >= len(offsets) else fragments
    if fragments == frames or (frames == 1 and fragments >= 1):
        return frames
    if fragments < frames:
        return fragments
    stream = file.read(MULTI_FRAGMENT_SCAN_BYTES)
    return sum(1 for _ in generate_frames(_with_empty_table(stream), number_of_frames=frames))


def _check_jpeg(path: Path, header: Dataset, stream: bytes) -> None:
    """A JPEG or JPEG-LS stream says its size and components in the start of frame (T.81 B.2.2, T.87 C.2.2).

    Decoders go by it and not by the header, so that a stream of another size would give a sheared picture.
    """
    at = 2
    while stream.startswith(b"\xff\xd8") and at + 10 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in START_OF_FRAME:
            rows, columns = (int.from_bytes(stream[at + i : at + i + 2], "big") for i in (5, 7))
            found, stated = (rows, columns, stream[at + 9]), (header.Rows, header.Columns, header.SamplesPerPixel)
            if found != stated or stream[at + 4] > header.BitsAllocated:
                raise SequenceError(
                    bad_value(
                        path,
                        "Rows, Columns, SamplesPerPixel",
                        stated,
                        f"{found} with {stream[at + 4]} bits, as in the compressed stream",
                    )
                )
            return
        at += 1 if marker == 0xFF else 2 + length


def _check_jpeg2000(path: Path, header: Dataset, codestream: bytes) -> None:
    """The code stream carries its own sign and precision; where the header differs, one of them is wrong."""
    found = get_j2k_parameters(codestream) if codestream.startswith(b"\xff\x4f") else {}  # no JP2 boxes in DICOM
    signed = header.get("PixelRepresentation", 0) == 1
    if found and (found["is_signed"] != signed or found["precision"] > header.BitsAllocated):
        raise SequenceError(
            bad_value(
                path,
                "(0028,0103) PixelRepresentation and (0028,0100) BitsAllocated",
                f"{int(signed)} and {header.BitsAllocated}",
                f"{int(found['is_signed'])} and at least {found['precision']}, as in the JPEG 2000 code stream",
            )
        )


def _with_empty_table(stream: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0\x00\x00\x00\x00" + stream


def read_stored(path: Path, indices: Sequence[int], transfer_syntax: str, colour: bool) -> list[np.ndarray]:
    """Stored values of chosen frames, each (H, W) or, in colour, (H, W, 3) as RGB.

    Raises:
        SequenceError: the decoder broke down.
        Exception: whatever pydicom and the decoder raise; the caller translates.
    """
    plugin = DECODERS.get(transfer_syntax, "")  # type: ignore[call-overload]
    read = decode_apart if plugin == "gdcm" else decode
    decoded = read(path, list(indices), not colour, plugin)
    if len(decoded) != len(indices):
        raise SequenceError(bad_value(path, "decoded frames", len(decoded), str(len(indices))))
    return decoded

"""Stored pixel values of chosen frames, checked against the header before anything is allocated."""

import io
import struct
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import generate_frames, parse_basic_offsets, parse_fragments
from pydicom.pixels import iter_pixels
from pydicom.pixels.utils import get_j2k_parameters

from scripts.errors import SequenceError, bad_value

# One decoder a transfer syntax: lossy JPEG differs by decoder by one grey level, and so would features.
DECODERS = {
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "gdcm"),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"),
    uid.RLELossless: "pylibjpeg",
}
NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
MULTI_FRAGMENT_SCAN_BYTES = 256 * 2**20  # a stream without offset table is read once to count its frames


def decoder_versions() -> dict[str, str]:
    """Versions of the packages that decide pixel values, for a store's fingerprint."""
    packages = ("pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pylibjpeg-rle")
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
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return  # the element lies inside the deflated stream; the decoder checks its length
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
    if fragments and header.file_meta.TransferSyntaxUID in uid.JPEG2000TransferSyntaxes:
        file.seek(starts[0] + 8)
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
        SequenceError: no decoder for the transfer syntax.
        Exception: whatever pydicom and the decoder raise; the caller translates.
    """
    if transfer_syntax not in NATIVE and transfer_syntax not in DECODERS:
        names = sorted(uid.UID(known).name for known in DECODERS)
        raise SequenceError(
            bad_value(path, "(0002,0010) TransferSyntaxUID", uid.UID(transfer_syntax).name, f"one of {names}")
        )
    plugin = DECODERS.get(transfer_syntax, "")  # type: ignore[call-overload]
    decoded = list(iter_pixels(path, indices=list(indices), raw=not colour, decoding_plugin=plugin))
    if len(decoded) != len(indices):
        raise SequenceError(bad_value(path, "decoded frames", len(decoded), str(len(indices))))
    return decoded

"""A DICOM file, whatever its outer form -> a stream that pydicom reads, and pydicom's many errors as one."""

import io
import logging
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pydicom
from pydicom import uid
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import ENCODED_VR

from scripts import errors
from scripts.dicom.elements import PIXEL_DATA, UNDEFINED, walk
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, MAX_FRAME_BYTES
from scripts.dicom.streams import Inflated, Part10, Prefixed
from scripts.errors import SequenceError, bad_value

PREAMBLE_BYTES = 128
NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
MAX_META_ELEMENTS = 64  # PS3.10 7.1 knows 16
MAX_META_VALUE_BYTES = 2**20
MAX_INFLATED_HEADER_BYTES = 32 * 2**20  # overlays of hundreds of frames; a deflated file can announce any size
MAX_INFLATED_TRAILER_BYTES = 2**20  # padding and signatures after the pixel data
NOT_IMAGES = {  # SOP classes PS3.4 B.5 by their root, what they hold
    "1.2.840.10008.1.3.10": "a DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.66": "raw or spatial data",
    "1.2.840.10008.5.1.4.1.1.88": "a structured report",
}

# pydicom quotes the offending value in its warnings and log lines, and the value can be a person's.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def reading(path: object, what: str) -> AbstractContextManager[None]:
    """`errors.reading` with what pydicom raises on damaged files."""
    return errors.reading(path, what, "a complete, valid DICOM object", (InvalidDicomError, BytesLengthException))


@contextmanager
def open_part10(path: Path, max_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> Iterator[Part10]:
    """An image as a stream at its beginning that `pydicom.dcmread` reads as an ordinary Part 10 file.

    Every nesting, count and length in its header has been checked (`elements`), so that reading it is quick. A file
    without the mark DICM is taken where it proves itself: it begins with group 0002 or 0008, its elements ascend and
    fit, and its SOP class is known. A file meta group that lacks the transfer syntax, or states another native one
    than the data set has, is replaced; a deflated data set is inflated. `TransferSyntaxUID` is therefore always there.

    Args:
        path: of the file.
        max_bytes: most pixel data a deflated file may inflate to.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: no regular file, not DICOM, no image, damaged or outside the limits.
    """
    with open_object(path, max_bytes) as file:
        if PIXEL_DATA not in file.elements:
            kind = next((NOT_IMAGES[root] for root in NOT_IMAGES if _below(file.sop_class, root)), "this object")
            raise SequenceError(
                bad_value(path, "(7FE0,0010) PixelData", f"absent from {kind}", "the pixels of an image run")
            )
        yield file


@contextmanager
def open_object(path: Path, max_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> Iterator[Part10]:
    """As `open_part10`, of any DICOM object, image or not."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise SequenceError(bad_value(path, "path", "not a regular file", "a DICOM file"))
    with reading(path, "file"):
        source = path.open("rb", buffering=0)
    with source:
        with reading(path, "file"):
            file = _open(path, source, max_bytes)
            file.seek(0)
        with file:
            yield file


def is_not_image(sop_class: str) -> bool:
    """True for a SOP class known to hold no image run: a directory, document, waveform, report or state."""
    return any(_below(sop_class, root) for root in NOT_IMAGES)


def _below(sop_class: str, root: str) -> bool:
    return sop_class == root or sop_class.startswith(root + ".")


def _open(path: Path, source: BinaryIO, max_bytes: int) -> Part10:
    start = source.read(PREAMBLE_BYTES + 4)
    marked = start[PREAMBLE_BYTES:] == b"DICM"
    if not marked and start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise SequenceError(
            bad_value(path, "content", "not DICOM", "the mark DICM at byte 128 (PS3.10 7.1) or a DICOM data set")
        )
    stated, sop_class, data_start = _read_meta(path, source, PREAMBLE_BYTES + 4 if marked else 0)
    source.seek(data_start)
    if stated == uid.DeflatedExplicitVRLittleEndian:
        file = _inflate(path, source, sop_class, max_bytes)
    else:
        syntax = _found_syntax(path, source.read(8), stated)
        prefix = b"" if marked and syntax == stated else _meta(syntax)
        raw = Prefixed(prefix, source, data_start if prefix else 0)
        file = _walked(path, raw, raw.size, syntax, sop_class, len(prefix) or data_start)
    if not marked:
        _require_proof(path, file)
    return file


def _read_meta(path: Path, source: BinaryIO, start: int) -> tuple[str, str, int]:
    """The transfer syntax and SOP class of the file meta group, empty where absent, and where the data set starts."""
    found, position, size = {b"\x10\x00": "", b"\x02\x00": ""}, start, os.fstat(source.fileno()).st_size
    for _ in range(MAX_META_ELEMENTS):
        source.seek(position)
        head = source.read(12)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            return found[b"\x10\x00"], found[b"\x02\x00"], position
        long = head[4:6] in (b"OB", b"UN", b"OW", b"UT")
        length = int.from_bytes(head[8:12] if long else head[6:8], "little")
        if head[4:6] not in ENCODED_VR:  # some old writers have it implicit
            length = int.from_bytes(head[4:8], "little")
        value_start = position + (12 if long else 8)
        position = value_start + length
        if length > MAX_META_VALUE_BYTES or position > size:
            field = f"(0002,{head[3]:02X}{head[2]:02X})"
            raise SequenceError(bad_value(path, field, f"{length} bytes long", "a value inside the file"))
        if head[2:4] in found:
            source.seek(value_start)
            found[head[2:4]] = source.read(length).strip(b" \0").decode("ascii", "replace")
    raise SequenceError(bad_value(path, "file meta group", "without end", f"at most {MAX_META_ELEMENTS} elements"))


def _found_syntax(path: Path, first: bytes, stated: str) -> str:
    """The transfer syntax of the data set: as stated, or of three native ones that which its first element shows."""
    if stated and stated not in NATIVE:
        return stated
    explicit, big = first[4:6] in ENCODED_VR, first[:1] == b"\0" and first[1:2] != b"\0"
    if big and not explicit:
        raise SequenceError(bad_value(path, "content", "implicit and big endian", "a transfer syntax of DICOM"))
    return uid.ExplicitVRBigEndian if big else uid.ExplicitVRLittleEndian if explicit else uid.ImplicitVRLittleEndian


def _meta(syntax: str) -> bytes:
    """Preamble, mark and a file meta group of the transfer syntax alone."""
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value
    return bytes(PREAMBLE_BYTES) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(element)) + element


def _walked(path: Path, raw: object, size: int, syntax: str, sop_class: str, start: int) -> Part10:
    """The stream with the top-level elements that begin at `start`."""
    file = Part10(cast(io.RawIOBase, raw), size, syntax, sop_class)
    little, implicit = syntax != uid.ExplicitVRBigEndian, syntax == uid.ImplicitVRLittleEndian
    file.elements = walk(path, file, start, size, implicit, little)
    file.sop_class = file.text(0x00080016) or sop_class
    return file


def _require_proof(path: Path, file: Part10) -> None:
    tags = list(file.elements)
    if tags != sorted(tags) or uid.UID(file.sop_class).type != "SOP Class":
        raise SequenceError(
            bad_value(
                path, "content", "not proved to be DICOM", "the mark DICM, or a known SOP class and elements in order"
            )
        )


def _inflate(path: Path, file: BinaryIO, sop_class: str, max_bytes: int) -> Part10:
    """The deflated data set at the file's position (PS3.5 A.5), inflated no further than its own header announces."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    prefix = _meta(uid.ExplicitVRLittleEndian)
    data = bytearray(prefix)

    def more(limit: int) -> None:
        while len(data) < limit and not inflate.eof:
            source = inflate.unconsumed_tail or file.read(2**16)
            if not source:
                raise SequenceError(bad_value(path, "deflated data set", "cut off", "a complete stream"))
            data.extend(inflate.decompress(source, limit - len(data)))

    def stream(size: int) -> Part10:
        raw = Inflated(data, path)
        return _walked(path, raw, size, uid.ExplicitVRLittleEndian, sop_class, len(prefix))

    more(len(prefix) + MAX_INFLATED_HEADER_BYTES)
    part10 = stream(len(data))
    if not inflate.eof:
        pixels = part10.elements.get(PIXEL_DATA)
        if pixels is None or pixels.length == UNDEFINED:
            found = "without pixel data of stated length"
            raise SequenceError(bad_value(path, f"first {MAX_INFLATED_HEADER_BYTES} bytes inflated", found, "a header"))
        frame_bytes, frames = _announced(part10)
        announced = frame_bytes * frames
        if frame_bytes > MAX_FRAME_BYTES:
            raise SequenceError(bad_value(path, "frame size", f"{frame_bytes} bytes", f"at most {MAX_FRAME_BYTES}"))
        if pixels.length > min(announced + 1, max_bytes):
            allowed = f"at most {min(announced, max_bytes)}, by Rows, Columns and NumberOfFrames and the limit"
            raise SequenceError(bad_value(path, "(7FE0,0010) PixelData", f"{pixels.length} bytes deflated", allowed))
        more(pixels.start + pixels.length + MAX_INFLATED_TRAILER_BYTES)
        if not inflate.eof:
            found = f"over {MAX_INFLATED_TRAILER_BYTES} bytes longer than its pixel data"
            raise SequenceError(bad_value(path, "deflated data set", found, "the end of the object"))
        part10 = stream(len(data))
    return part10


def _announced(file: Part10) -> tuple[int, int]:
    """Bytes of a native frame and number of frames that a little endian header asks for; 0 where it does not say."""
    factors = [int.from_bytes(file.value(tag, 2), "little") for tag in (0x00280010, 0x00280011, 0x00280002, 0x00280100)]
    frames = file.text(0x00280008) or "1"
    count = int(frames) if re.fullmatch(r"[0-9]{1,9}", frames) else 0
    rows, columns, samples, bits = factors
    return rows * columns * (samples or 1) * bits // 8, count

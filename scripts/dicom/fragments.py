"""Encapsulated pixel data -> the fragments of each frame, by what the fragments hold.

PS3.5 A.4 has a basic or extended offset table say where a frame begins. Tables are often empty and sometimes wrong;
the first bytes of every frame are neither, so they alone decide and tables are skipped.
"""

from collections.abc import Sequence
from pathlib import Path

from pydicom import uid

from scripts.dicom.codestreams import (
    END_OF_IMAGE,
    HEAD_BYTES,
    LONG_HEAD_BYTES,
    StreamHeader,
    is_frame_start,
    stream_header,
)
from scripts.dicom.elements import UNDEFINED
from scripts.dicom.layout import PIXEL_DATA_NAME, PixelLayout
from scripts.dicom.streams import Part10
from scripts.errors import SequenceError, bad_value

MAX_FRAGMENTS = 2**18  # 1,000 frames of 4 MB in fragments of 16 kB; counting as many takes under a second
TAIL_BYTES = 256  # padding after the end of an image is usually a few bytes
ITEM = b"\xfe\xff\x00\xe0"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
Span = tuple[int, int]  # start and length of a fragment


def frame_fragments(path: Path, file: Part10, start: int, layout: PixelLayout, frames: int) -> list[list[Span]]:
    """The fragments of every frame.

    Args:
        path: for messages.
        file: of an encapsulated transfer syntax.
        start: of the pixel data's value.
        layout: of the frames.
        frames: NumberOfFrames.

    Raises:
        SequenceError: cut off, or another number of frames.
    """
    groups: list[list[Span]] = []
    for span in _fragments(path, file, start):
        file.seek(span[0])
        if is_frame_start(file.read(min(64, span[1])), file.syntax, layout.samples * layout.allocated // 8):
            groups.append([span])
        elif groups:
            groups[-1].append(span)
        else:
            name = uid.UID(file.syntax).name
            raise SequenceError(
                bad_value(
                    path, PIXEL_DATA_NAME, "a first fragment of another kind", f"the beginning of a frame in {name}"
                )
            )
    if len(groups) != frames:
        raise SequenceError(
            bad_value(path, "(0028,0008) NumberOfFrames", frames, f"{len(groups)}, the frames in the pixel data")
        )
    return groups


def _fragments(path: Path, file: Part10, start: int) -> list[Span]:
    """All items but the first, which is the basic offset table; a missing end delimiter is the end of the file."""
    spans: list[Span] = []
    position = start
    while len(spans) <= MAX_FRAGMENTS + 1:
        file.seek(position)
        head = file.read(8)
        if head[:4] != ITEM or len(head) < 8:
            break
        length = int.from_bytes(head[4:], "little")
        if length == UNDEFINED or position + 8 + length > file.size:
            left = file.size - position - 8
            raise SequenceError(
                bad_value(path, PIXEL_DATA_NAME, f"cut off after {left} bytes of a fragment", f"{length} bytes")
            )
        spans.append((position + 8, length))
        position += 8 + length
    if len(spans) > MAX_FRAGMENTS + 1:
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "in more fragments", f"at most {MAX_FRAGMENTS}"))
    return spans[1:]


def read_frame(file: Part10, spans: Sequence[Span], limit: int | None = None) -> bytes:
    """The fragments of a frame as one stream, or its first `limit` bytes."""
    parts, left = [], limit if limit is not None else sum(length for _, length in spans)
    for start, length in spans:
        file.seek(start)
        parts.append(file.read(min(length, left)))
        left -= len(parts[-1])
        if left <= 0:
            break
    return b"".join(parts)


def check_frame(path: Path, file: Part10, spans: Sequence[Span], layout: PixelLayout) -> None:
    """Refuse a compressed frame that has no end, or another size, precision or sign than the header says.

    Decoders go by the stream, so that one of another size would give a sheared picture, and one cut off a grey one.
    """
    if file.syntax == ENCAPSULATED_UNCOMPRESSED:
        length = sum(length for _, length in spans)
        if length not in (layout.native_bytes, layout.native_bytes + layout.native_bytes % 2):
            allowed = f"{layout.native_bytes}, by the header"
            raise SequenceError(bad_value(path, PIXEL_DATA_NAME, f"a frame of {length} bytes", allowed))
    if file.syntax in (ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAMES, uid.RLELossless):
        return
    stream = frame_header(path, file, spans)
    found = (stream.rows, stream.columns, stream.samples)
    stated = (layout.rows, layout.columns, layout.samples)
    if found != stated or stream.precision > layout.allocated:
        allowed = f"{found} with {stream.precision} bits, as in the compressed stream"
        raise SequenceError(bad_value(path, "Rows, Columns, SamplesPerPixel", stated, allowed))
    if stream.signed not in (None, layout.signed):
        allowed = f"{int(bool(stream.signed))}, as in the compressed stream"
        raise SequenceError(bad_value(path, "(0028,0103) PixelRepresentation", int(layout.signed), allowed))
    last, length = spans[-1]
    file.seek(last + max(length - TAIL_BYTES, 0))
    if END_OF_IMAGE not in file.read(min(length, TAIL_BYTES)) and END_OF_IMAGE not in read_frame(file, spans):
        raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "a frame without its end", "a complete stream"))


def frame_header(path: Path, file: Part10, spans: Sequence[Span]) -> StreamHeader:
    """What a compressed frame says of its size and precision.

    Raises:
        SequenceError: it does not.
    """
    for limit in (HEAD_BYTES, LONG_HEAD_BYTES):
        if found := stream_header(read_frame(file, spans, limit), file.syntax):
            return found
    name = uid.UID(file.syntax).name
    raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "without a usable frame header", f"a stream of {name}"))

"""The head of a compressed frame -> its size and precision, which decoders go by and the DICOM header must share."""

import re
from dataclasses import dataclass
from itertools import pairwise

from pydicom import uid

# Start of frame markers of each transfer syntax (T.81 B.1.1.3, T.87 C.1.2); progressive ones are found under .50.
JPEG_FRAMES = {
    uid.JPEGBaseline8Bit: (0xC0, 0xC1, 0xC2),
    uid.JPEGExtended12Bit: (0xC0, 0xC1, 0xC2),
    uid.JPEGLossless: (0xC3,),
    uid.JPEGLosslessSV1: (0xC3,),
    uid.JPEGLSLossless: (0xF7,),
    uid.JPEGLSNearLossless: (0xF7,),
}
SEQUENTIAL_DCT = (0xC0, 0xC1)
START_OF_SCAN = 0xDA
JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
JPEG_START, JPEG2000_START, END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\xd9"
# one image right behind another, with the few bytes of padding that writers leave
NEXT_IMAGE = re.compile(rb"\xff\xd9.{0,16}?(\xff\xd8\xff|\xff\x4f\xff\x51)", re.DOTALL)
HEAD_BYTES = 8192  # tables before the start of frame are far smaller; colour profiles up to 64 kB each
LONG_HEAD_BYTES = 2**19


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None  # JPEG and JPEG-LS do not say


def is_frame_start(head: bytes, syntax: str, segments: int) -> bool:
    """True where a fragment begins a frame, as against continuing one (PS3.5 A.4).

    Args:
        head: the first 64 bytes of the fragment, or fewer.
        syntax: its transfer syntax.
        segments: byte planes of an RLE frame, PS3.5 G.2.
    """
    if syntax == uid.RLELossless:
        words = [int.from_bytes(head[at : at + 4], "little") for at in range(0, 64, 4)]
        offsets, rest = words[1 : segments + 1], words[segments + 1 :]
        ascending = all(a < b for a, b in pairwise(offsets))
        return len(head) == 64 and words[0] == segments and offsets[0] == 64 and ascending and not any(rest)
    if syntax in JPEG_FRAMES:
        return head.startswith(JPEG_START)
    if syntax in uid.JPEG2000TransferSyntaxes:
        return head.startswith((JPEG2000_START, JP2_SIGNATURE))
    return True


def stream_header(head: bytes, syntax: str) -> StreamHeader | None:
    """The size, components and precision in the head of a JPEG, JPEG-LS or JPEG 2000 stream; None if not there."""
    if syntax in JPEG_FRAMES:
        return _jpeg(head, JPEG_FRAMES[uid.UID(syntax)])
    return _jpeg2000(head)


def _jpeg(head: bytes, frames: tuple[int, ...]) -> StreamHeader | None:
    """T.81 B.2.2 and B.2.3, T.87 C.2.2."""
    found, kind, at = None, 0, 2
    while at + 10 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in frames and found is None:
            rows, columns = (int.from_bytes(head[at + i : at + i + 2], "big") for i in (5, 7))
            found, kind = StreamHeader(rows, columns, head[at + 9], head[at + 4]), marker
        if marker == START_OF_SCAN:
            spectral = head[at + length - 1 : at + length + 2]
            # T.81 B.2.3: a sequential scan has all 64 coefficients; decoders differ in what they make of others
            return None if kind in SEQUENTIAL_DCT and spectral != b"\x00\x3f\x00" else found
        at += 2 + length
    return None


def _jpeg2000(head: bytes) -> StreamHeader | None:
    """15444-1 A.5.1: the SIZ segment, which comes first, of a code stream with or without the boxes of a JP2 file."""
    start = head.find(JPEG2000_START)
    siz = head[start + 4 : start + 4 + 2 + 36 + 3 * 3]
    if start < 0 or len(siz) < 41:
        return None
    width, height, left, top = (int.from_bytes(siz[at : at + 4], "big") for at in (4, 8, 12, 16))
    samples = int.from_bytes(siz[36:38], "big")
    components = [siz[38 + 3 * i : 41 + 3 * i] for i in range(min(samples, 3))]
    if any(component != components[0] or component[1:] != b"\1\1" for component in components) or not components:
        return None  # subsampled, or of several precisions
    depth = components[0][0]
    return StreamHeader(height - top, width - left, samples, (depth & 0x7F) + 1, depth >= 0x80)


def is_lossy(syntax: str) -> bool:
    """True for a transfer syntax whose values can overshoot their range."""
    lossy = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K)
    return syntax in lossy


def numeric_uid(text: str) -> str:
    """A UID's name or digits for a message, and nothing else that may stand there."""
    return uid.UID(text).name if re.fullmatch(r"[0-9.]{1,64}", text) else "another value"

"""Data elements -> where the top-level ones are, after a walk that bounds all that a hostile file could blow up.

pydicom follows every stated length and nests as deep as a file asks. This walk reads tags and lengths only, and goes
before it: what passes here costs pydicom little time and memory.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from pydicom.datadict import _dictionary_vr_fast as dictionary_vr
from pydicom.filereader import ENCODED_VR
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from scripts.errors import SequenceError, bad_value

MAX_DEPTH = 16  # Enhanced XA nests 5 deep, structured reports about 10
MAX_ELEMENTS = 2**17  # 1,000 frames of Enhanced XA with 130 elements each; pydicom takes 0.4 s for as many
BYTES_PER_ELEMENT = (
    256  # a larger file may have one more for so many bytes: real Enhanced MR of 1,625 frames has 194,000
)
MAX_ITEMS = 2**15  # 1,000 frames with 30 functional groups each; pydicom takes 0.5 s for as many
MAX_TEXT_BYTES = 2**20  # a FrameTimeVector of 65,000 frames; explicit VR states text in 16 bits anyway
MAX_NESTED_BYTES = 64 * 2**20  # values inside sequences are all read; functional groups of 1,000 frames hold 1 MB
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)  # float and double pixel data beside it
BULK_VR = ("OB", "OW", "OF", "OD", "OL", "OV")  # of undefined length: fragments, not data sets
TEXT_VR = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR")
VR_NAMES = {encoded: encoded.decode() for encoded in ENCODED_VR}


@dataclass(frozen=True, slots=True)
class Element:
    """A data element: its value representation, empty where implicit, and where its value lies in the stream."""

    vr: str
    start: int
    length: int  # UNDEFINED, or inside the stream


def walk(path: Path, file: BinaryIO, start: int, size: int, implicit: bool, little: bool) -> dict[int, Element]:
    """The top-level elements from `start` up to and with the pixel data, by tag.

    Args:
        path: for messages.
        file: seekable.
        start: of the first element.
        size: of the stream.
        implicit: VR, PS3.5 7.1.3.
        little: byte order.

    Raises:
        SequenceError: the elements do not fit into each other or the file, or there is more of anything than allowed.
    """
    found = _Walk(path, file, implicit, little)
    file.seek(start)
    return found.top_level(size)


class _Walk:
    def __init__(self, path: Path, file: BinaryIO, implicit: bool, little: bool) -> None:
        self.path, self.file, self.implicit = path, file, implicit
        order = "<" if little else ">"
        self.short, self.long, self.word = (Struct(order + form) for form in ("HH2sH", "HHL", "L"))
        self.most = max(MAX_ELEMENTS, file.seek(0, os.SEEK_END) // BYTES_PER_ELEMENT)
        self.elements = self.items_seen = self.nested_bytes = 0

    def refuse(self, tag: int | None, found: str, allowed: str) -> SequenceError:
        field = f"element ({tag >> 16:04X},{tag & 0xFFFF:04X})" if tag is not None else "header"
        return SequenceError(bad_value(self.path, field, found, allowed))

    def next(self, end: int, within: int) -> tuple[int, str, int, int]:
        """Tag, VR, value position and length of the element or item at the file's position."""
        start = self.file.read(8)
        position = self.file.tell()
        if len(start) < 8 or position > end:
            raise self.refuse(within or None, "cut off", "a complete element")
        self.elements += 1
        if self.elements > self.most:
            raise self.refuse(within or None, f"element number {self.elements}", f"at most {self.most} in a header")
        group, number, encoded, length = self.short.unpack(start)
        vr = VR_NAMES.get(encoded, "")
        # PS3.5 6.2.2 and some writers: data sets in sequences can be implicit; as pydicom, tell by the VR
        if self.implicit or group == 0xFFFE or (not vr and not b"AA" <= encoded <= b"ZZ"):
            group, number, length = self.long.unpack(start)
            vr = ""
        elif vr in EXPLICIT_VR_LENGTH_32:
            length = self.word.unpack(self.file.read(4).ljust(4, b"\0"))[0]
            position += 4
        tag = group << 16 | number
        if length != UNDEFINED and position + length > end and tag not in PIXEL_TAGS:
            raise self.refuse(tag, f"{length} bytes long", f"at most {max(end - position, 0)}, what is left")
        return tag, vr, position, length

    def top_level(self, size: int) -> dict[int, Element]:
        found: dict[int, Element] = {}
        while self.file.tell() < size:
            tag, vr, position, length = self.next(size, 0)
            if tag >> 16 in (0, 0xFFFE):  # commands and items have no place here
                raise self.refuse(tag, "at the top level", "a data element of an image")
            found[tag] = Element(vr, position, length)
            if tag in PIXEL_TAGS:
                break
            self.value(tag, vr, position, length, size, 0)
        return found

    def value(self, tag: int, vr: str, position: int, length: int, end: int, depth: int) -> None:
        """Step over a value, through its items if it is a sequence."""
        if not vr or vr == "UN":
            try:
                vr = dictionary_vr(tag) if length > MAX_TEXT_BYTES or self.at_item(length) else vr
            except KeyError:  # private
                vr = "SQ" if length == UNDEFINED else vr
        if length != UNDEFINED and vr in TEXT_VR and length > MAX_TEXT_BYTES:
            raise self.refuse(tag, f"text of {length} bytes", f"at most {MAX_TEXT_BYTES}")
        if length == UNDEFINED or vr == "SQ":
            if depth >= MAX_DEPTH:
                raise self.refuse(tag, f"nested {depth + 1} deep", f"at most {MAX_DEPTH}")
            self.items(tag, vr in BULK_VR, end if length == UNDEFINED else position + length, length, depth)
            return
        if depth:
            self.nested_bytes += length
            if self.nested_bytes > MAX_NESTED_BYTES:
                raise self.refuse(tag, f"{self.nested_bytes} bytes in sequences", f"at most {MAX_NESTED_BYTES}")
        self.file.seek(position + length)

    def at_item(self, length: int) -> bool:
        if length < 8:
            return False
        here = self.file.tell()
        first = self.file.read(4)
        self.file.seek(here)
        return first in (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00", b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd")

    def items(self, tag: int, bulk: bool, end: int, length: int, depth: int) -> None:
        while length == UNDEFINED or self.file.tell() < end:
            item, _, position, item_length = self.next(end, tag)
            if item == SEQUENCE_END and length == UNDEFINED:
                return
            if item != ITEM or (bulk and item_length == UNDEFINED):
                raise self.refuse(tag, "a sequence without items", "items and their delimiters (PS3.5 7.5)")
            self.items_seen += 1
            if self.items_seen > MAX_ITEMS:
                raise self.refuse(tag, f"item number {self.items_seen}", f"at most {MAX_ITEMS} in a header")
            if bulk:
                self.nested_bytes += item_length
                self.file.seek(position + item_length)
            else:
                self.item(tag, end if item_length == UNDEFINED else position + item_length, item_length, depth)

    def item(self, within: int, end: int, length: int, depth: int) -> None:
        while length == UNDEFINED or self.file.tell() < end:
            tag, vr, position, value_length = self.next(end, within)
            if tag == ITEM_END:
                return
            if tag >> 16 in (0, 0xFFFE):
                raise self.refuse(within, "an item without its end", "items and their delimiters (PS3.5 7.5)")
            self.value(tag, vr, position, value_length, end, depth + 1)

"""The outer forms of a DICOM file as one: a seekable stream that knows where its top-level elements are."""

import io
import os
from pathlib import Path
from typing import BinaryIO

from scripts.dicom.elements import UNDEFINED, Element
from scripts.errors import SequenceError, bad_value


class Part10(io.BufferedReader):
    """A DICOM object as an ordinary Part 10 file, with its top-level elements already found and bounded."""

    def __init__(self, raw: io.RawIOBase, size: int, syntax: str, sop_class: str = "") -> None:
        super().__init__(raw)
        self.size = size
        self.syntax = syntax  # always that of the stream: a deflated file is explicit little endian here
        self.sop_class = sop_class
        self.elements: dict[int, Element] = {}  # by tag, up to and with the pixel data

    def value(self, tag: int, limit: int) -> bytes:
        """A top-level value; empty if the element is absent.

        Raises:
            SequenceError: it is longer than `limit` bytes.
        """
        element = self.elements.get(tag)
        if element is None or element.length == UNDEFINED:
            return b""
        if element.length > limit:
            name = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
            raise SequenceError(bad_value(self.name, name, f"{element.length} bytes", f"at most {limit}"))
        self.seek(element.start)
        return self.read(element.length)

    def text(self, tag: int) -> str:
        """A top-level code or UID without its padding; empty if absent."""
        return self.value(tag, 2**16).strip(b" \0").decode("ascii", "replace")


class Prefixed(io.RawIOBase):
    """Some bytes, then a file from one position on, as one seekable file."""

    def __init__(self, prefix: bytes, file: BinaryIO, start: int) -> None:
        self.prefix, self.file, self.shift, self.position = prefix, file, start - len(prefix), 0
        self.size = os.fstat(file.fileno()).st_size - self.shift
        self.name = file.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence] + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self.position < len(self.prefix):
            data = self.prefix[self.position : self.position + len(buffer)]
            buffer[: len(data)] = data
            count = len(data)
        else:
            self.file.seek(self.position + self.shift)
            count = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self.position += count
        return count


class Inflated(io.BytesIO):
    """A deflated data set as one seekable file."""

    def __init__(self, data: bytearray, path: Path) -> None:
        super().__init__(data)
        self.name = path

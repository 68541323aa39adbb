"""PALETTE COLOR: stored values -> RGB by the lookup tables of the image (PS3.3 C.7.6.3.1.5, C.7.6.3.1.6, C.7.9)."""

from pathlib import Path

import numpy as np
from pydicom import uid

from scripts.dicom.streams import Part10
from scripts.errors import SequenceError, bad_value

COLOURS = ("Red", "Green", "Blue")
DESCRIPTORS, TABLES, SEGMENTED = (range(first, first + 3) for first in (0x00281101, 0x00281201, 0x00281221))
MAX_TABLE_BYTES = 4 * 65536  # 65,536 entries of 16 bits, in segments that save nothing
DISCRETE, LINEAR, INDIRECT = 0, 1, 2


class Palette:
    """Three lookup tables of one image."""

    def __init__(self, tables: np.ndarray, first: int, bits: int) -> None:
        self.tables = tables  # (3, entries), uint8 or uint16
        self.first = first  # stored value of the first entry; those below share it, those above the last one
        self.bits = bits  # of an entry, 8 or 16

    def to_rgb(self, stored: np.ndarray) -> np.ndarray:
        """RGB (H, W, 3) of stored values (H, W), in the type of the entries."""
        index = (stored.astype(np.int32) - self.first).clip(0, self.tables.shape[1] - 1)
        return np.stack([table[index] for table in self.tables], axis=-1)


def read_palette(path: Path, file: Part10) -> Palette:
    """The tables of a PALETTE COLOR image.

    Raises:
        SequenceError: one is absent, or not as its descriptor says.
    """
    order = ">" if file.syntax == uid.ExplicitVRBigEndian else "<"
    descriptors = []
    for colour, tag in zip(COLOURS, DESCRIPTORS, strict=True):
        value = np.frombuffer(file.value(tag, 6).ljust(6, b"\0"), f"{order}u2")
        if file.elements.get(tag) is None:
            raise _refuse(path, tag, colour, "Descriptor", "absent", "the three lookup tables of PALETTE COLOR")
        descriptors.append(value.tolist())
        if descriptors[0] != descriptors[-1] or value[2] not in (8, 16):
            allowed = "entries, first value and 8 or 16 bits, alike in the three tables"
            raise _refuse(path, tag, colour, "Descriptor", tuple(descriptors[-1]), allowed)
    entries, first, bits = descriptors[0]
    if file.value(0x00280103, 2) not in (b"", b"\0\0") and first > 32767:  # PixelRepresentation 1: first is signed
        first -= 65536
    tables = [_table(path, file, i, entries or 65536, bits, order) for i in range(3)]
    return Palette(np.stack(tables), first, bits)


def _table(path: Path, file: Part10, i: int, entries: int, bits: int, order: str) -> np.ndarray:
    plain = TABLES[i] in file.elements
    tag = TABLES[i] if plain else SEGMENTED[i]
    name = "Data" if plain else "Data or its segmented form"
    if tag not in file.elements:
        raise _refuse(path, tag, COLOURS[i], name, "absent", f"{entries} entries of {bits} bits")
    data = file.value(tag, MAX_TABLE_BYTES)
    if order == ">" and file.elements[tag].vr != "OB":  # words: bytes of 8 bit entries come swapped too
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    # C.7.6.3.1.5, note: 8 bit entries also come one a word
    words = bits == 16 or (plain and len(data) == 2 * entries > 2)
    values = np.frombuffer(data[: len(data) // 2 * 2] if words else data, "<u2" if words else "u1")
    table = values[:entries] if plain else _expand(values, entries)
    if len(table) != entries or (plain and len(values) > entries + 1) or table.max(initial=0) >> bits:
        raise _refuse(path, tag, COLOURS[i], name, f"{len(data)} bytes", f"{entries} entries of {bits} bits")
    return table.astype(np.uint8 if bits == 8 else np.uint16)


def _expand(values: np.ndarray, entries: int) -> np.ndarray:
    """The entries that segments stand for (C.7.9.2); fewer, or none, where the segments are not valid."""
    words = values.tolist()
    halves = 4 // values.itemsize  # an indirect segment's byte offset takes 32 bits
    out: list[int] = []

    def segments(at: int, count: int | None, nested: bool) -> bool:
        """Append `count` segments from `at`, or all to the end."""
        while (at + 2 <= len(words)) if count is None else count > 0:
            count = None if count is None else count - 1
            kind, length = words[at : at + 2] if at + 2 <= len(words) else (INDIRECT, 0)
            body = words[at + 2 : at + 2 + {DISCRETE: length, LINEAR: 1, INDIRECT: halves}.get(kind, 0)]
            if kind == DISCRETE and len(body) == length:
                out.extend(body)
            elif kind == LINEAR and body and out:
                start = out[-1]
                out.extend(round(start + (body[0] - start) * (step + 1) / length) for step in range(length))
            elif kind == INDIRECT and len(body) == halves and not nested:
                offset = sum(word << 8 * values.itemsize * i for i, word in enumerate(body)) // values.itemsize
                if not segments(offset, length, nested=True):
                    return False
            else:
                return count is None and len(out) == entries  # a padding byte or word may follow
            at += 2 + len(body)
            if len(out) > entries:
                return False
        return True

    return np.array(out if segments(0, None, nested=False) else [], values.dtype)


def _refuse(path: Path, tag: int, colour: str, what: str, found: object, allowed: str) -> SequenceError:
    field = f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {colour} Palette Color Lookup Table {what}"
    return SequenceError(bad_value(path, field, found, allowed))

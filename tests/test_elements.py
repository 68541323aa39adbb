"""A header is walked before pydicom parses it: what is sound passes unchanged, what would blow up ends at once."""

import io
import struct
import time
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, uid
from pydicom.sequence import Sequence

from scripts.dicom.elements import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_ITEMS,
    MAX_NESTED_BYTES,
    MAX_TEXT_BYTES,
    PIXEL_DATA,
    UNDEFINED,
    walk,
)
from scripts.errors import SequenceError
from tests.conftest import assert_message

NATIVE = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
}
SQ, ITEM, ITEM_END, SQ_END = b"\x08\x00\x06\x00SQ\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
OPEN, NOTHING = b"\xff\xff\xff\xff", b"\0\0\0\0"
PIXELS = b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0\0\0"


def explicit(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def walked(data: bytes, implicit: bool = False) -> dict:
    return walk(Path("run.dcm"), io.BytesIO(data), 0, len(data), implicit, True)


def refused(data: bytes, *parts: object, implicit: bool = False) -> None:
    started = time.process_time()
    with pytest.raises(SequenceError) as error:
        walked(data, implicit)
    assert time.process_time() - started < 2
    assert_message(error.value, "run.dcm", *parts)


def nested(depth: int, undefined: bool) -> bytes:
    """Explicit little endian: a sequence in a sequence, `depth` times."""
    value = explicit(0x00080016, b"UI", b"1.2\0")
    for _ in range(depth):
        if undefined:
            value = SQ + OPEN + ITEM + OPEN + value + ITEM_END + NOTHING + SQ_END + NOTHING
        else:
            item = ITEM + struct.pack("<L", len(value)) + value
            value = SQ + struct.pack("<L", len(item)) + item
    return value


@pytest.mark.parametrize("undefined", [False, True], ids=["stated lengths", "undefined lengths"])
@pytest.mark.parametrize("syntax", NATIVE.values(), ids=NATIVE)
def test_walk_finds_the_top_level_elements_that_pydicom_finds(save, syntax, undefined):
    path: Path = save(syntax=syntax)
    dataset = pydicom.dcmread(path)
    group, content = Dataset(), Dataset()
    content.FrameAcquisitionDuration, content.FrameComments = 40.0, "x" * 7001
    group.FrameContentSequence = Sequence([content, Dataset()])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group] * 3)
    dataset.add_new(0x00091001, "UN", b"\1" * 11 + b"\0")
    dataset.add_new(0x00091002, "SQ", [content])
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    for item in (*dataset.PerFrameFunctionalGroupsSequence, group):
        item.is_undefined_length_sequence_item = undefined
    dataset.save_as(path)
    data = path.read_bytes()
    little, implicit = syntax != uid.ExplicitVRBigEndian, syntax == uid.ImplicitVRLittleEndian
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    found = walk(path, io.BytesIO(data), start, len(data), implicit, little)
    assert list(found) == [int(element.tag) for element in pydicom.dcmread(path)]
    pixels = found[PIXEL_DATA]
    assert data[pixels.start : pixels.start + pixels.length] == dataset.PixelData
    assert (found[0x52009230].length == UNDEFINED) == undefined


def test_walk_reads_an_implicit_data_set_in_a_sequence_of_unknown_vr():
    inner = struct.pack("<HHL", 0x0008, 0x0060, 2) + b"XA"
    data = b"\x09\x00\x10\x10UN\0\0" + OPEN + ITEM + OPEN + inner + ITEM_END + NOTHING + SQ_END + NOTHING
    assert list(walked(data + PIXELS)) == [0x00091010, PIXEL_DATA]


def test_walk_steps_over_an_icon_in_fragments():
    icon = b"\xe0\x7f\x10\x00OB\0\0" + OPEN + ITEM + NOTHING + ITEM + b"\4\0\0\0" + ITEM + SQ_END + NOTHING
    data = b"\x88\x00\x00\x02SQ\0\0" + OPEN + ITEM + OPEN + icon + ITEM_END + NOTHING + SQ_END + NOTHING
    assert list(walked(data + PIXELS)) == [0x00880200, PIXEL_DATA]


@pytest.mark.parametrize("undefined", [False, True], ids=["stated lengths", "undefined lengths"])
def test_walk_bounds_the_nesting(undefined):
    assert list(walked(nested(MAX_DEPTH, undefined) + PIXELS)) == [0x00080006, PIXEL_DATA]
    for depth in (MAX_DEPTH + 1, 3000):
        refused(nested(depth, undefined) + PIXELS, "(0008,0006)", MAX_DEPTH + 1, MAX_DEPTH)


def test_walk_bounds_the_number_of_elements():
    element = explicit(0x00110001, b"CS", b"AB")
    assert list(walked(element * (MAX_ELEMENTS - 1) + PIXELS)) == [0x00110001, PIXEL_DATA]
    refused(element * MAX_ELEMENTS + PIXELS, "element", MAX_ELEMENTS + 1, MAX_ELEMENTS)
    refused(SQ + OPEN + ITEM + OPEN + element * MAX_ELEMENTS, "(0008,0006)", MAX_ELEMENTS)


@pytest.mark.parametrize("item", [ITEM + NOTHING, ITEM + OPEN + ITEM_END + NOTHING], ids=["stated", "undefined"])
def test_walk_bounds_the_number_of_items(item):
    assert walked(SQ + OPEN + item * MAX_ITEMS + SQ_END + NOTHING + PIXELS)
    refused(SQ + OPEN + item * (MAX_ITEMS + 1) + SQ_END + NOTHING, "(0008,0006)", MAX_ITEMS + 1, MAX_ITEMS)


@pytest.mark.parametrize("tag", [0x00100010, 0x00080060, 0x00181065], ids=["PN", "CS", "DS"])
def test_walk_bounds_the_length_of_text_in_implicit_vr(tag):
    def element(length: int) -> bytes:
        return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, length) + bytes(length)

    assert list(walked(element(MAX_TEXT_BYTES), implicit=True)) == [tag]
    refused(element(MAX_TEXT_BYTES + 2), f"({tag >> 16:04X},{tag & 0xFFFF:04X})", MAX_TEXT_BYTES + 2, implicit=True)


def test_walk_bounds_the_bytes_inside_sequences():
    step = MAX_NESTED_BYTES // 4
    value = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<L", step) + bytes(step)
    assert walked(SQ + OPEN + ITEM + OPEN + value * 4 + ITEM_END + NOTHING + SQ_END + NOTHING + PIXELS)
    refused(SQ + OPEN + ITEM + OPEN + value * 5 + ITEM_END + NOTHING + SQ_END + NOTHING, "bytes in sequences")
    assert walked(value * 5 + PIXELS)  # at the top level they are stepped over


DAMAGED = {
    "cut off in a tag": explicit(0x00080016, b"UI", b"1.2\0") + b"\x08\x00\x60",
    "longer than the file": b"\x08\x00\x60\x00CS\x04\x00XA",
    "4 GB long": b"\x09\x00\x10\x10OB\0\0\xfe\xff\xff\xff" + bytes(40),
    "sequence without end": SQ + OPEN + ITEM + OPEN + explicit(0x00080016, b"UI", b"1.2\0"),
    "sequence of no items": SQ + OPEN + explicit(0x00080016, b"UI", b"1.2\0") * 3,
    "item longer than its sequence": SQ + b"\x0c\0\0\0" + ITEM + b"\xff\0\0\0" + bytes(300),
    "element longer than its item": SQ + OPEN + ITEM + b"\x08\0\0\0" + b"\x08\x00\x60\x00CS\x08\x00" + bytes(300),
    "item at the top level": ITEM + NOTHING + PIXELS,
    "delimiter at the top level": ITEM_END + NOTHING + PIXELS,
    "zeros": bytes(4000),
    "undefined fragments": b"\x09\x00\x10\x10OB\0\0" + OPEN + ITEM + OPEN + bytes(300),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_walk_refuses_elements_that_do_not_fit(damage):
    refused(DAMAGED[damage], "header" if damage == "cut off in a tag" else "element (")


def test_walk_of_a_thousand_frames_takes_little_beside_what_pydicom_takes(save):
    path: Path = save(syntax=uid.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(path)
    content = Dataset()
    content.FrameAcquisitionDateTime, content.FrameAcquisitionDuration = "20200101", 40.0
    group = Dataset()
    for keyword in ("FrameContentSequence", "FrameVOILUTSequence", "PixelMeasuresSequence", "FrameAnatomySequence"):
        setattr(group, keyword, Sequence([content]))
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group] * 1000)
    dataset.save_as(path)
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    times = []
    for read in (
        lambda: walk(path, io.BytesIO(data), start, len(data), False, True),
        lambda: [item.FrameContentSequence[0].FrameAcquisitionDuration for item in groups(path)],
    ):
        began = time.process_time()
        assert len(read()) in (len(dataset), 1000)
        times.append(time.process_time() - began)
    assert times[0] < 2 * times[1]


def groups(path: Path) -> Sequence:
    return pydicom.dcmread(path).PerFrameFunctionalGroupsSequence

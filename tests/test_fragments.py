"""Frames are found by what fragments hold: no fragment, offset table or end of the data shows another frame."""

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import generate_frames

from scripts.dicom.fragments import DEFLATED_FRAMES, MAX_FRAGMENTS
from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
from tests.conftest import assert_message, jpeg, ramp
from tests.encodings import CODED, noise, save_encoded, save_streams

SPLIT = {
    "rle": uid.RLELossless,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg 2000": uid.JPEG2000Lossless,
    "jpeg lossless": uid.JPEGLosslessSV1,
}


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(data)) + data


def streams_of(path: Path) -> list[bytes]:
    dataset = pydicom.dcmread(path)
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))


def pieces(stream: bytes, count: int) -> list[bytes]:
    step = max(len(stream) // count // 2 * 2, 2)
    return [stream[at : at + step] for at in range(0, step * (count - 1), step)] + [stream[step * (count - 1) :]]


def offsets_of(groups: list[list[bytes]]) -> list[int]:
    at, found = 0, []
    for group in groups:
        found.append(at)
        at += sum(len(piece) + 8 for piece in group)
    return found


TABLES: dict[str, Callable[[list[int]], bytes]] = {
    "empty": lambda _: b"",
    "right": lambda offsets: struct.pack(f"<{len(offsets)}L", *offsets),
    "all zero": lambda offsets: bytes(4 * len(offsets)),
    "shifted": lambda offsets: struct.pack(f"<{len(offsets)}L", *(offset + 8 for offset in offsets)),
    "backwards": lambda offsets: struct.pack(f"<{len(offsets)}L", *reversed(offsets)),
    "of fewer frames": lambda offsets: struct.pack("<L", offsets[0]),
    "of more frames": lambda offsets: struct.pack(f"<{len(offsets) + 2}L", *offsets, 7, 2**32 - 1),
    "of odd length": lambda offsets: struct.pack(f"<{len(offsets)}L", *offsets) + b"\1\2",
}
ENDS = {
    "delimiter": b"\xfe\xff\xdd\xe0\0\0\0\0",
    "no delimiter": b"",
    "junk after it": b"\xfe\xff\xdd\xe0\0\0\0\0" + b"junk" * 40,
    "trailing padding": b"\xfe\xff\xdd\xe0\0\0\0\0" + b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0",
    "padding without delimiter": b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0",
}


def replace_pixels(path: Path, data: bytes) -> Path:
    """The value of PixelData and all behind it replaced."""
    content = path.read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    path.write_bytes(content[:start] + data)
    return path


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("syntax", SPLIT.values(), ids=SPLIT)
def test_frames_are_found_whatever_fragments_and_offset_table_they_come_in(tmp_path, syntax, count, table):
    frames = noise((3, 40, 36), np.uint16, 12)
    path = save_encoded(tmp_path / "a", frames, syntax, 12)
    groups = [pieces(stream + b"\0" * (len(stream) % 2), count) for stream in streams_of(path)]
    data = item(TABLES[table](offsets_of(groups))) + b"".join(item(piece) for group in groups for piece in group)
    header = read_header(replace_pixels(path, data + ENDS["delimiter"]))
    np.testing.assert_array_equal(read_frames(header, [2]), frames[[2]])
    np.testing.assert_array_equal(read_frames(header, range(3)), frames)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff" * 6, b"\0" * 700, b"\xff\xd9" * 3])
@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEGBaseline8Bit])
def test_frames_are_found_whatever_stands_behind_them(tmp_path, syntax, padding, end):
    frames = ramp(2, 40, 36)
    path = tmp_path / "a"
    if syntax == uid.JPEGBaseline8Bit:
        save_streams(path, [jpeg(frame) for frame in frames], frames, syntax, 8)
    else:
        save_encoded(path, frames, syntax, 8)
    before = read_frames(read_header(path), [0, 1])
    data = item(b"") + b"".join(item(stream + padding) for stream in streams_of(path))
    after = read_frames(read_header(replace_pixels(path, data + ENDS[end])), [0, 1])
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("end", ["delimiter", "no delimiter"])
@pytest.mark.parametrize("syntax", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize("stated", [1, 2, 4, 9])
def test_another_number_of_frames_than_stated_is_refused_with_both(tmp_path, syntax, stated, end):
    frames = noise((3, 40, 36), np.uint16, 12)
    path = save_encoded(tmp_path / "a", frames, syntax, 12, NumberOfFrames=stated)
    groups = [pieces(stream, 2) for stream in generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=3)]
    for table in (TABLES["empty"], TABLES["right"]):
        data = item(table(offsets_of(groups))) + b"".join(item(piece) for group in groups for piece in group)
        replace_pixels(path, data + ENDS[end])
        with pytest.raises(SequenceError) as error:
            read_header(path)
        assert_message(error.value, path, "(0028,0008) NumberOfFrames", stated, "3, the frames in the pixel data")


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_a_frame_that_lost_its_last_fragments_is_refused(tmp_path, syntax):
    frames = noise((1, 40, 36), np.uint16, 12)
    path = save_encoded(tmp_path / "a", frames, syntax, 12)
    whole = pieces(streams_of(path)[0], 6)
    for kept in (5, 3, 1):
        replace_pixels(path, item(b"") + b"".join(map(item, whole[:kept])))
        with pytest.raises(SequenceError) as error:
            read_header(path)
        assert_message(error.value, path, "PixelData", "without its end")


@pytest.mark.parametrize("padding", [b"", b"\0\0", b"\x12\x34" * 5])
@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_several_images_in_one_fragment_are_refused(tmp_path, syntax, padding):
    path = save_encoded(tmp_path / "a", noise((2, 40, 36), np.uint16, 12), syntax, 12)
    both = padding.join(stream + b"\0" * (len(stream) % 2) for stream in streams_of(path))
    save_encoded(path, noise((1, 40, 36), np.uint16, 12), syntax, 12)
    header = read_header(replace_pixels(path, item(b"") + item(both)))
    with pytest.raises(SequenceError) as error:
        read_frames(header, [0])
    assert_message(error.value, path, "PixelData", "several images")


def test_pixel_data_in_too_many_fragments_is_refused_in_time(tmp_path):
    frames = noise((1, 40, 36), np.uint16, 12)
    path = save_encoded(tmp_path / "a", frames, uid.JPEG2000Lossless, 12)
    replace_pixels(path, item(b"") + item(streams_of(path)[0]) + item(b"") * (MAX_FRAGMENTS + 10))
    started = time.process_time()
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert time.process_time() - started < 2
    assert_message(error.value, path, "PixelData", MAX_FRAGMENTS)


@pytest.mark.parametrize("field", ["Rows", "Columns"])
@pytest.mark.parametrize("syntax", [s for name, s in CODED.items() if name not in ("rle", "deflated frames")])
def test_a_stream_of_another_size_than_the_header_says_is_refused_before_decoding(tmp_path, syntax, field):
    path = save_encoded(tmp_path / "a", noise((1, 40, 36), np.uint16, 12), syntax, 12, **{field: 34})
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path)


@pytest.mark.parametrize("syntax", [uid.RLELossless, DEFLATED_FRAMES])
def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path, syntax):
    for columns in (34, 38):
        path = save_encoded(tmp_path / "a", noise((1, 40, 36), np.uint16, 12), syntax, 12, Columns=columns)
        with pytest.raises(SequenceError) as error:
            read_frames(read_header(path), [0])
        assert_message(error.value, path)


def test_a_deflated_frame_that_would_blow_up_is_refused(tmp_path):
    frames = noise((1, 40, 36), np.uint8, 8)
    stream = zlib.compress(bytes(2**26))[2:-4]
    path = save_streams(tmp_path / "a", [stream], frames, DEFLATED_FRAMES, 8)
    with pytest.raises(SequenceError):
        read_frames(read_header(path), [0])

"""Whatever outer form an image has, the same stream comes out; what proves no DICOM, or would blow up, is refused."""

import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import uid

from scripts.dicom.elements import MAX_DEPTH, PIXEL_DATA
from scripts.dicom.header import MAX_FRAME_BYTES
from scripts.dicom.part10 import MAX_META_ELEMENTS, open_object, open_part10, reading
from scripts.errors import SequenceError
from tests.conftest import PERSON, assert_message, assert_no_person, ramp
from tests.test_elements import ITEM, OPEN, SQ, explicit, nested

DEFLATED = uid.DeflatedExplicitVRLittleEndian
NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
ROOT = Path(__file__).parents[1]


def meta_end(data: bytes) -> int:
    return 132 + 12 + int.from_bytes(data[140:144], "little")


def without_mark(data: bytes) -> bytes:
    return data[132:]


def without_meta(data: bytes) -> bytes:
    return data[meta_end(data) :]


def mark_alone(data: bytes) -> bytes:
    return data[:132] + data[meta_end(data) :]


def without_syntax(data: bytes) -> bytes:
    """The element TransferSyntaxUID cut out of the file meta group, whose length is then wrong."""
    start = data.index(b"\x02\x00\x10\x00UI")
    return data[:start] + data[start + 8 + int.from_bytes(data[start + 6 : start + 8], "little") :]


def opened(path: Path, max_bytes: int = 2**31) -> tuple[pydicom.Dataset, str]:
    with open_part10(path, max_bytes) as file:
        assert file.tell() == 0
        return pydicom.dcmread(file), file.syntax


def refused(path: Path, *parts: object) -> None:
    started = time.process_time()
    with pytest.raises(SequenceError) as error:
        opened(path)
    assert time.process_time() - started < 2
    assert_message(error.value, path, *parts)


@pytest.mark.parametrize("form", [None, without_mark, without_meta, mark_alone, without_syntax])
@pytest.mark.parametrize("syntax", NATIVE)
def test_open_part10_gives_pydicom_the_same_image_in_every_outer_form(save, syntax, form):
    path: Path = save(syntax=syntax)
    expected = pydicom.dcmread(path)
    if form is not None:
        path.write_bytes(form(path.read_bytes()))
    dataset, found = opened(path)
    assert found == dataset.file_meta.TransferSyntaxUID == syntax
    assert dataset.PixelData == expected.PixelData
    assert dataset == expected


@pytest.mark.parametrize("stated", NATIVE)
@pytest.mark.parametrize("real", NATIVE)
def test_open_part10_goes_by_the_data_set_where_it_contradicts_the_stated_syntax(save, real, stated):
    path: Path = save(syntax=real)
    expected, data = pydicom.dcmread(path), path.read_bytes()
    start = data.index(b"\x02\x00\x10\x00UI") + 8
    length = int.from_bytes(data[start - 2 : start], "little")
    value = stated.encode() + b"\0" * (len(stated) % 2)
    data = data[: start - 2] + struct.pack("<H", len(value)) + value + data[start + length :]
    path.write_bytes(
        data[:140] + struct.pack("<L", meta_end(path.read_bytes()) - 144 + len(value) - length) + data[144:]
    )
    dataset, found = opened(path)
    assert found == dataset.file_meta.TransferSyntaxUID == real
    assert dataset.PixelData == expected.PixelData


def test_open_part10_inflates_a_deflated_file(save):
    path: Path = save(syntax=DEFLATED, frames=ramp(40, 64, 64))
    expected = pydicom.dcmread(path)
    dataset, found = opened(path)
    assert found == dataset.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert dataset.PixelData == expected.PixelData
    path.write_bytes(without_mark(path.read_bytes()))
    assert opened(path)[0].PixelData == expected.PixelData


def deflate(path: Path, data_set: bytes, zero_mb: int) -> Path:
    """The data set of a deflated file replaced by another and then zeros, 1 kB for each MB."""
    data = path.read_bytes()
    parts = []
    for part in (data_set, bytes(2**20)):
        compress = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        parts.append(compress.compress(part) + compress.flush(zlib.Z_FULL_FLUSH))
    path.write_bytes(data[: meta_end(data)] + parts[0] + parts[1] * zero_mb + b"\x03\x00")
    return path


def inflated(path: Path) -> bytes:
    data = path.read_bytes()
    return zlib.decompress(data[meta_end(data) :], -zlib.MAX_WBITS)


GB = struct.pack("<L", 2**30)
BOMBS: dict[str, Callable[[bytes], bytes]] = {  # what stands before 1 GB of zeros
    "zeros": lambda _: b"",
    "pixel data beyond the header": lambda data: data[: data.index(b"\xe0\x7f\x10\x00OB") + 8] + GB,
    "trailing padding": lambda data: data + b"\xfc\xff\xfc\xffOB\0\0" + GB,
    "private element before the pixels": lambda _: explicit(0x00080016, b"UI", b"1.2\0") + b"\x09\0\x10\x10OB\0\0" + GB,
    "fragments": lambda _: b"\xe0\x7f\x10\x00OB\0\0" + OPEN + ITEM + GB,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_open_part10_refuses_a_deflate_bomb_in_little_time_and_memory(save, bomb):
    path: Path = save(syntax=DEFLATED)
    deflate(path, BOMBS[bomb](inflated(path)), 1024)
    assert path.stat().st_size < 1_100_000
    code = (
        "import resource, sys, time; from pathlib import Path\n"
        "from scripts.dicom.part10 import open_part10; from scripts.errors import SequenceError\n"
        "before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "try:\n    with open_part10(Path(sys.argv[1])): pass\n"
        "except SequenceError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, check=True)
    message, used = done.stdout.splitlines()
    kilobytes, seconds = map(float, used.split())
    assert str(path) in message
    assert kilobytes < 200_000
    assert seconds < 2


def test_open_part10_inflates_no_more_pixel_data_than_allowed(save):
    path: Path = save(syntax=DEFLATED, frames=ramp(200, 512, 512))
    with pytest.raises(SequenceError) as error:
        opened(path, 50_000_000)
    assert_message(error.value, path, "PixelData", 200 * 512 * 512, 50_000_000)
    assert len(opened(path, 60_000_000)[0].PixelData) == 200 * 512 * 512


def test_open_part10_inflates_no_frame_larger_than_any_detector(save):
    path: Path = save(syntax=DEFLATED, frames=ramp(1, 64, 64))
    header = inflated(path)
    header = header[: header.index(b"\xe0\x7f\x10\x00")].replace(b"US\x02\x00\x40\x00", b"US\x02\x00\x20\x4e")
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<L", 20_000**2)
    refused(deflate(path, header + pixels, 400), "frame size", 20_000**2, MAX_FRAME_BYTES)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "pipe behind a link"])
def test_open_part10_refuses_what_is_no_regular_file_without_waiting(tmp_path, kind):
    path = tmp_path / "run.dcm"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe"
        if kind.endswith("link"):
            path = tmp_path / "run.dcm"
            path.symlink_to("pipe")
    refused(path, "not a regular file")


def test_open_part10_of_a_path_with_nothing_is_a_callers_mistake(tmp_path):
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "absent.dcm")


NOT_DICOM = {
    "empty": b"",
    "short": b"\x08\x00",
    "text": b"Readme of a DICOM viewer\n" * 40,
    "text at group 0008": b"\x08\x00\x16\x00 is how a data set begins" * 40,
    "gzip": gzip.compress(bytes(128) + b"DICM"),
    "zip": b"PK\x03\x04" + bytes(400),
    "mark alone": bytes(128) + b"DICM",
    "mark and zeros": bytes(128) + b"DICM" + bytes(4000),
    "mark and text": bytes(128) + b"DICM" + b"no data set" * 99,
    "group 0008 of unknown class": explicit(0x00080016, b"UI", b"1.2.3\0") + explicit(0x00280010, b"US", b"\4\0"),
}


@pytest.mark.parametrize("content", NOT_DICOM)
def test_open_part10_refuses_what_is_not_dicom(tmp_path, content):
    path = tmp_path / "run.dcm"
    path.write_bytes(NOT_DICOM[content])
    refused(path, "needs")


@pytest.mark.parametrize("damage", ["unknown class", "elements out of order", "a byte lost"])
def test_open_part10_takes_no_headless_file_that_does_not_prove_itself(save, damage):
    path: Path = save(SOPClassUID="1.2.3.4" if damage == "unknown class" else None, PixelRepresentation=0)
    data = bytearray(without_meta(path.read_bytes()))
    if damage == "unknown class":
        refusal = "not proved"
    elif damage == "elements out of order":
        data, refusal = data[:16] + explicit(0x00040000, b"UL", bytes(4)) + data[16:], "needs"
    else:
        del data[9]
        refusal = "needs"
    path.write_bytes(data)
    refused(path, refusal)


def test_open_part10_bounds_the_file_meta_group(save):
    path: Path = save()
    data = path.read_bytes()
    more = explicit(0x00020100, b"UI", b"1.2\0") * MAX_META_ELEMENTS
    path.write_bytes(data[: meta_end(data)] + more + data[meta_end(data) :])
    refused(path, "file meta group", MAX_META_ELEMENTS)
    path.write_bytes(data[:144] + b"\x02\x00\x01\x00OB\0\0" + struct.pack("<L", 2**31) + data[144:])
    refused(path, "(0002,0001)", 2**31)


def test_open_part10_of_a_hostile_header_ends_before_pydicom_sees_it(save):
    path: Path = save()
    data = path.read_bytes()
    path.write_bytes(data[: meta_end(data)] + nested(1000, undefined=True) + data[meta_end(data) :])
    refused(path, "(0008,0006)", MAX_DEPTH)
    path.write_bytes(data[: meta_end(data)] + SQ + b"\xfe\xff\xff\xff" + data[meta_end(data) :])
    refused(path, "(0008,0006)", 2**32 - 2)


def test_open_part10_refuses_objects_that_are_no_image_but_open_object_opens_them(shared_data):
    kinds = {
        "fodicom_DICOMDIR": "a DICOMDIR",
        "orthanc_encapsulated_pdf.dcm": "an encapsulated document",
        "pydicom_waveform_ecg.dcm": "a waveform",
        "orthanc_24f_no_pixel_data.dcm": "this object",
    }
    for name, kind in kinds.items():
        path = shared_data / "malformed" / name
        refused(path, "(7FE0,0010) PixelData", f"absent from {kind}")
        with open_object(path) as file:
            assert file.elements and PIXEL_DATA not in file.elements
    assert len(kinds) == 4


def test_errors_name_no_person(save):
    path: Path = save(**PERSON)
    data = path.read_bytes()
    messages = []
    for cut in range(meta_end(data) + 1, data.index(b"\xe0\x7f\x10\x00"), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(SequenceError) as error:
            opened(path)
        messages.append(str(error.value).replace(str(path), ""))
    assert len(messages) > 50
    assert_no_person(*messages)


def test_reading_turns_what_decoders_raise_into_one_error_and_leaves_a_callers_mistake():
    for error in (ValueError("Quarzel"), StopIteration(), RecursionError(), OSError(5, "Quarzel"), struct.error("x")):
        with pytest.raises(SequenceError) as found, reading("run.dcm", "header"):
            raise error
        assert_message(found.value, "run.dcm", "header", type(error).__name__)
        assert_no_person(str(found.value))
    with pytest.raises(FileNotFoundError), reading("run.dcm", "header"):
        raise FileNotFoundError("run.dcm")


MALFORMED_CODE = """
import json, resource, sys, time
from pathlib import Path
from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for path in map(Path, sys.argv[1:]):
    start = time.process_time()
    try:
        header = read_header(path)
        read_frames(header, range(header.num_frames))
        outcome = "accept"
    except SequenceError:
        outcome = "refused"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([path.name, outcome, time.process_time() - start, used]))
"""


def test_every_malformed_sample_ends_as_its_index_says_in_little_time_and_memory(shared_data):
    folder = shared_data / "malformed"
    index = {item["file"]: item["expect"] for item in json.loads((folder / "INDEX.json").read_text())["files"]}

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))

    paths = [str(folder / name) for name in index]
    done = subprocess.run(
        [sys.executable, "-c", MALFORMED_CODE, *paths],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        preexec_fn=limited,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(index) == 16
    for name, outcome, seconds, kilobytes in rows:
        assert outcome == ("accept" if index[name] == "accept" else "refused"), name
        assert seconds < 2 and kilobytes < 300_000, name

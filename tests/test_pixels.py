"""Pixel data is compared with the header before decoding; then exactly the chosen frames are decoded."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from scripts.dicom.decoding import DECODE
from scripts.dicom.pixels import DECODERS, NATIVE, decoder_versions
from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
from tests.conftest import assert_message, jpeg, ramp

LOSSLESS = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "rle": uid.RLELossless,
}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
def test_read_frames_of_a_lossless_file_are_the_values_written(save, syntax, bits):
    frames = ramp(5, 13, 11, bits)  # odd sizes, so that 8 bit pixel data has a padding byte
    header = read_header(save(frames=frames, bits=bits, syntax=syntax))
    stored = read_frames(header, range(5))
    assert stored.dtype == frames.dtype
    assert header.bits_stored == bits
    np.testing.assert_array_equal(stored, frames)


@pytest.mark.parametrize("offset_table", ["basic", "empty", "extended"])
def test_read_frames_of_baseline_jpeg_are_close_to_the_values_written(save, offset_table):
    frames = ramp(4, 24, 16)
    header = read_header(save(frames=frames, syntax=uid.JPEGBaseline8Bit, offset_table=offset_table))
    stored = read_frames(header, range(4))
    assert stored.dtype == np.uint8 and stored.shape == frames.shape
    assert np.abs(stored.astype(int) - frames).max() <= 8
    assert np.diff(stored.mean(axis=(1, 2))).min() > 10  # in their order


def test_read_frames_of_rgb_are_the_values_written(save):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3)).astype(np.uint8)
    for name, syntax in LOSSLESS.items():
        header = read_header(save(f"{name}.dcm", frames, syntax=syntax))
        np.testing.assert_array_equal(read_frames(header, [0, 2]), frames[[0, 2]])
    assert len(LOSSLESS) == 4


def test_read_frames_of_colour_jpeg_come_back_as_rgb(save):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 2] = 200, 200  # a red frame, a blue one
    path = save(frames=frames, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    stored = read_frames(read_header(path), [0, 1])
    assert np.abs(stored.astype(int) - frames).max() <= 6


@pytest.mark.parametrize("syntax", [*LOSSLESS.values(), uid.JPEGBaseline8Bit], ids=[*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("indices", [[0], [3], [1, 2], [0, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_read_frames_of_chosen_indices_equal_those_of_all_frames(save, syntax, indices):
    header = read_header(save(frames=ramp(6), syntax=syntax))
    every = read_frames(header, range(6))
    np.testing.assert_array_equal(read_frames(header, indices), every[indices])


@pytest.mark.parametrize("offset_table", ["basic", "empty", "extended"])
def test_read_frames_decodes_only_the_chosen_frames(save, offset_table):
    frames = ramp(6, 24, 16)
    path = save(frames=frames, syntax=uid.JPEGBaseline8Bit, offset_table=offset_table)
    header = read_header(path)
    others = [0, 1, 3, 4, 5]
    before = read_frames(header, others)
    data, stream = path.read_bytes(), jpeg(frames[2])
    assert data.count(stream) == 1
    table = stream.index(b"\xff\xc4") + 5  # code counts of the first Huffman table: more codes than there can be
    path.write_bytes(data.replace(stream, stream[:table] + b"\xff" * 16 + stream[table + 16 :]))
    header = read_header(path)
    np.testing.assert_array_equal(read_frames(header, others), before)
    with pytest.raises(SequenceError) as refused:
        read_frames(header, [2])
    assert_message(refused.value, path, "PixelData", "unreadable")


@pytest.mark.parametrize("indices", [[4], [0, 9]])
def test_read_frames_outside_the_sequence_are_refused(save, indices):
    header = read_header(save())
    with pytest.raises(SequenceError):
        read_frames(header, indices)


@pytest.mark.parametrize("syntax", [*LOSSLESS.values(), uid.JPEGBaseline8Bit], ids=[*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("stated", [1, 3, 5, 400])
def test_read_header_of_a_wrong_number_of_frames_is_refused(save, syntax, stated):
    path = save(syntax=syntax, NumberOfFrames=stated)
    with pytest.raises(SequenceError) as refused:
        read_header(path)
    assert_message(refused.value, path, str(stated))


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGBaseline8Bit])
def test_reading_one_frame_of_a_stream_of_four_never_returns_a_wrong_picture_silently(save, syntax):
    path = save(syntax=syntax, NumberOfFrames=1, offset_table="empty")
    try:
        stored = read_frames(read_header(path), [0])
    except SequenceError as error:
        assert_message(error, path)
    else:
        assert stored.shape == (1, 12, 10)
        assert np.abs(stored[0].astype(int) - ramp()[0]).max() <= 8


def test_read_header_of_a_deflated_file_with_a_wrong_number_of_frames_is_refused(save):
    for stated in (2, 5):
        path = save(syntax=uid.DeflatedExplicitVRLittleEndian, NumberOfFrames=stated)
        with pytest.raises(SequenceError):
            read_header(path)


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_read_header_of_a_damaged_deflated_file_is_refused(save, damage):
    path = save(syntax=uid.DeflatedExplicitVRLittleEndian)
    data = path.read_bytes()[:-60]
    path.write_bytes(data if damage == "cut" else data + bytes(60))
    with pytest.raises(SequenceError) as refused:
        read_header(path)
    assert_message(refused.value, path)


@pytest.mark.parametrize("syntax", [*LOSSLESS.values(), uid.JPEGBaseline8Bit], ids=[*LOSSLESS, "jpeg"])
@pytest.mark.parametrize("kept", [0.98, 0.9, 0.6, 0.3])
def test_reading_a_truncated_file_is_refused(save, syntax, kept):
    path = save(frames=ramp(8, 32, 32), syntax=syntax)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(SequenceError) as refused:
        read_frames(read_header(path), range(8))
    assert_message(refused.value, path)


def test_read_header_without_pixel_data_is_refused(save):
    with pytest.raises(SequenceError) as refused:
        read_header(save(PixelData=None))
    assert_message(refused.value, "run.dcm", "(7FE0,0010) PixelData", "absent")


def test_read_frames_of_another_size_than_the_header_says_are_refused(save):
    path = save(frames=ramp(2, 24, 16), syntax=uid.JPEGBaseline8Bit, Rows=16, Columns=24)
    with pytest.raises(SequenceError) as refused:
        read_frames(read_header(path), [0])
    assert_message(refused.value, path)


def test_reading_an_unknown_transfer_syntax_names_those_known(save):
    path = save(syntax=uid.JPEGBaseline8Bit)
    path.write_bytes(path.read_bytes().replace(uid.JPEGBaseline8Bit.encode(), b"1.2.840.10008.1.2.4.97"))
    with pytest.raises(SequenceError) as refused:
        read_header(path)
    assert_message(refused.value, "TransferSyntaxUID", "1.2.840.10008.1.2.4.97", "RLE Lossless")


def test_every_transfer_syntax_has_one_decoder():
    assert set(DECODERS.values()) == set(DECODE)
    assert len(DECODERS) == 14
    assert not set(DECODERS) & set(NATIVE)


def test_decoder_versions_are_those_installed():
    versions = decoder_versions()
    assert versions == {package: version(package) for package in versions}
    assert versions.keys() >= {"pydicom", "pillow", "python-gdcm", "pyjpegls", "pylibjpeg-openjpeg", "pylibjpeg-rle"}


DAMAGES = {
    "marker": (2, 0x00),
    "frame header": (5, 0x00),
    "precision": (93, 0x88),
}  # offset in the stream, byte


@pytest.mark.parametrize("damage", [*DAMAGES, "7 bits stored"])
def test_read_frames_of_a_damaged_jpeg_file_does_not_end_the_process(save, damage):
    frames = ramp(1)
    path = save(frames=frames, syntax=uid.JPEGBaseline8Bit, bits=8 if damage in DAMAGES else 7)
    data = bytearray(path.read_bytes())
    if damage in DAMAGES:
        offset, value = DAMAGES[damage]
        data[data.index(jpeg(frames[0])) + offset] = value
    path.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from scripts.dicom.sequence import *\n"
        "try: read_frames(read_header(Path(sys.argv[1])), [0])\n"
        "except SequenceError: pass"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-500:]

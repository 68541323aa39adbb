"""Pixel data is compared with the header before decoding; then exactly the chosen frames are decoded."""

import hashlib
import json
import struct
import subprocess
import sys
import time
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder

from scripts.dicom.decoding import DECODE
from scripts.dicom.fragments import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from scripts.dicom.part10 import NATIVE as NATIVE_SYNTAXES
from scripts.dicom.pixels import DECODERS, decoder_versions, read_stored
from scripts.dicom.sequence import read_frames, read_header
from scripts.dicom.streams import Part10
from scripts.errors import SequenceError
from tests.conftest import assert_message, jpeg, ramp
from tests.encodings import (
    HTJ2K_FRAME,
    HTJ2K_STREAM,
    LOSSLESS,
    NATIVE,
    extended_jpeg,
    noise,
    save_encoded,
    save_streams,
)

SAVED = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "rle": uid.RLELossless,
}


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("syntax", SAVED.values(), ids=SAVED)
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
    for name, syntax in SAVED.items():
        header = read_header(save(f"{name}.dcm", frames, syntax=syntax))
        np.testing.assert_array_equal(read_frames(header, [0, 2]), frames[[0, 2]])
    assert len(SAVED) == 4


def test_read_frames_of_colour_jpeg_come_back_as_rgb(save):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[0, ..., 0], frames[1, ..., 2] = 200, 200  # a red frame, a blue one
    path = save(frames=frames, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422")
    stored = read_frames(read_header(path), [0, 1])
    assert np.abs(stored.astype(int) - frames).max() <= 6


@pytest.mark.parametrize("syntax", [*SAVED.values(), uid.JPEGBaseline8Bit], ids=[*SAVED, "jpeg"])
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


@pytest.mark.parametrize("syntax", [*SAVED.values(), uid.JPEGBaseline8Bit], ids=[*SAVED, "jpeg"])
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


@pytest.mark.parametrize("syntax", [*SAVED.values(), uid.JPEGBaseline8Bit], ids=[*SAVED, "jpeg"])
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
    assert not set(DECODERS) & set(NATIVE_SYNTAXES)


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


LAYOUTS = {
    "8 bits": (np.uint8, 8),
    "7 of 8 bits": (np.uint8, 7),
    "10 of 16 bits": (np.uint16, 10),
    "12 of 16 bits": (np.uint16, 12),
    "16 bits": (np.uint16, 16),
    "signed 8 bits": (np.int8, 8),
    "signed 12 of 16 bits": (np.int16, 12),
    "signed 16 bits": (np.int16, 16),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
def test_stored_values_of_every_syntax_and_layout_are_those_written(tmp_path, syntax, layout):
    frames = noise((3, 37, 33), *layout)
    header = read_header(save_encoded(tmp_path / "run.dcm", frames, syntax, layout[1]))
    stored = read_frames(header, [0, 2])
    assert stored.dtype == frames.dtype and stored.dtype.isnative and stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, frames[[0, 2]])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_stored_values_are_not_inverted_by_the_photometric_interpretation(tmp_path, photometric):
    frames = noise((1, 9, 7), np.uint16, 12)
    path = save_encoded(tmp_path / "a", frames, uid.RLELossless, 12, PhotometricInterpretation=photometric)
    np.testing.assert_array_equal(read_frames(read_header(path), [0]), frames)


@pytest.mark.parametrize("by_plane", [False, True], ids=["by pixel", "by plane"])
@pytest.mark.parametrize("syntax", LOSSLESS.values(), ids=LOSSLESS)
def test_rgb_of_every_syntax_is_what_was_written(tmp_path, syntax, by_plane):
    frames = noise((2, 35, 33, 3), np.uint8, 8)
    stored = read_frames(read_header(save_encoded(tmp_path / "run.dcm", frames, syntax, 8, by_plane)), [0, 1])
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, frames)


@pytest.mark.parametrize("syntax", [*NATIVE.values(), uid.RLELossless, uid.JPEGLSLossless, uid.JPEGLosslessSV1])
def test_ybr_full_becomes_rgb_by_the_standards_matrix(tmp_path, syntax):
    ybr = noise((1, 36, 34, 3), np.uint8, 8)
    path = save_encoded(tmp_path / "run.dcm", ybr, syntax, 8, PhotometricInterpretation="YBR_FULL")
    y, cb, cr = (ybr[..., i].astype(float) - (128 if i else 0) for i in range(3))  # PS3.3 C.7.6.3.1.2
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)
    assert np.abs(read_frames(read_header(path), [0]) - rgb).max() <= 0.51


@pytest.mark.parametrize("syntax", [*NATIVE.values(), ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAMES])
def test_ybr_full_422_shares_colour_between_two_pixels(tmp_path, syntax):
    pairs = noise((2, 6, 5, 4), np.uint8, 8)  # Y1 Y2 Cb Cr
    full = np.zeros((2, 6, 10, 3), np.uint8)
    full[:, :, ::2, 0], full[:, :, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    full[..., 1:] = pairs[..., 2:].repeat(2, axis=2)
    whole = save_encoded(tmp_path / "full", full, uid.RLELossless, 8, PhotometricInterpretation="YBR_FULL")
    colour = {"PhotometricInterpretation": "YBR_FULL_422"}
    if syntax in NATIVE.values():
        half = save_encoded(tmp_path / "half", full, syntax, 8, **colour)
        dataset = pydicom.dcmread(half)
        dataset.PixelData = pairs.tobytes()
        dataset.save_as(half)
    else:
        compress = zlib.compressobj(9, zlib.DEFLATED, -15)
        coded = [compress.compress(frame.tobytes()) + compress.flush(zlib.Z_FULL_FLUSH) for frame in pairs]
        streams = coded if syntax == DEFLATED_FRAMES else [frame.tobytes() for frame in pairs]
        half = save_streams(tmp_path / "half", streams, full, syntax, 8, **colour)
    np.testing.assert_array_equal(read_frames(read_header(half), [0, 1]), read_frames(read_header(whole), [0, 1]))


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, ENCAPSULATED_UNCOMPRESSED])
def test_ybr_full_422_of_odd_columns_is_refused(tmp_path, syntax):
    frames = noise((1, 6, 5, 3), np.uint8, 8)
    path = save_encoded(tmp_path / "run.dcm", frames, syntax, 8, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "(0028,0011) Columns", 5, "an even number")


def test_bytes_of_words_are_swapped_in_big_endian_only_where_they_are_words(tmp_path):
    frames = noise((3, 5, 3), np.uint8, 8)  # odd frames begin in the middle of a word
    path = save_encoded(tmp_path / "run.dcm", frames, uid.ExplicitVRBigEndian, 8)
    np.testing.assert_array_equal(read_frames(read_header(path), range(3)), frames)
    dataset = pydicom.dcmread(path)
    data = frames.tobytes() + b"\0"
    dataset.PixelData = np.frombuffer(data, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path)
    np.testing.assert_array_equal(read_frames(read_header(path), range(3)), frames)
    np.testing.assert_array_equal(read_frames(read_header(path), [1]), frames[1:2])


@pytest.mark.parametrize("syntax", [*NATIVE.values(), uid.RLELossless, uid.JPEGLosslessSV1])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_bits_above_those_stored_are_no_part_of_the_value(tmp_path, syntax, dtype):
    frames = noise((2, 9, 7), dtype, 12)
    overlay = noise((2, 9, 7), np.uint16, 16) & 0xF000  # PS3.5 8.1.1: where old files have one
    raw = (frames.view(np.uint16) & 0x0FFF) | overlay
    path = save_encoded(
        tmp_path / "run.dcm", raw, syntax, 16, BitsStored=12, HighBit=11, PixelRepresentation=int(dtype is np.int16)
    )
    np.testing.assert_array_equal(read_frames(read_header(path), [0, 1]), frames)


def test_jpeg_extended_of_12_bits_is_exact_where_its_transform_is(tmp_path):
    blocks = noise((5, 4), np.uint16, 12)
    frame = blocks.repeat(8, axis=0).repeat(8, axis=1)
    path = save_streams(tmp_path / "a", [extended_jpeg(blocks)] * 2, np.stack([frame] * 2), uid.JPEGExtended12Bit, 12)
    np.testing.assert_array_equal(read_frames(read_header(path), [1])[0], frame)


def test_jpeg_extended_of_8_bits_is_read_as_baseline_is(save, tmp_path):
    frames = ramp(2, 24, 16)
    path = save_streams(tmp_path / "a", [jpeg(frame) for frame in frames], frames, uid.JPEGExtended12Bit, 8)
    baseline = read_frames(read_header(save(frames=frames, syntax=uid.JPEGBaseline8Bit)), [0, 1])
    assert np.abs(read_frames(read_header(path), [0, 1]).astype(int) - baseline).max() <= 1


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_htj2k_is_read(tmp_path, syntax):
    path = save_streams(tmp_path / "a", [HTJ2K_STREAM], HTJ2K_FRAME[None], syntax, 12)
    np.testing.assert_array_equal(read_frames(read_header(path), [0])[0], HTJ2K_FRAME)


@pytest.mark.parametrize("syntax", [uid.JPEG2000, uid.JPEGLSNearLossless])
def test_lossy_values_stay_in_the_range_of_bits_stored(tmp_path, syntax):
    blocks = np.where(noise((1, 8, 8), np.uint16, 12) > 2048, 4095, 0).astype(np.uint16)
    frames = blocks.repeat(8, axis=1).repeat(8, axis=2)  # codecs overshoot at such edges
    options = {"j2k_cr": [12]} if syntax == uid.JPEG2000 else {"jls_error": 9}
    plugin = "pylibjpeg" if syntax == uid.JPEG2000 else "pyjpegls"
    described = {"rows": 64, "columns": 64, "number_of_frames": 1, "samples_per_pixel": 1, "bits_allocated": 16}
    described |= {"bits_stored": 16, "pixel_representation": 0, "photometric_interpretation": "MONOCHROME2"}
    stream = get_encoder(syntax).encode(frames[0], encoding_plugin=plugin, **described, **options)
    stored = read_frames(read_header(save_streams(tmp_path / "a", [stream], frames, syntax, 12)), [0])
    assert stored.min() >= 0 and stored.max() <= 4095
    assert np.abs(stored.astype(int) - frames).mean() < 600


def test_colour_jpeg_is_rgb_whatever_header_and_markers_say_of_it(tmp_path):
    """Pillow writes YCbCr with a JFIF marker; without the marker the header decides, as PS3.5 8.2.1 has it."""
    rgb = np.zeros((1, 16, 16, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 200, 90
    stream = jpeg(rgb[0])
    app0 = int.from_bytes(stream[4:6], "big") + 2
    bare = stream[:2] + stream[2 + app0 :]
    tried = 0
    for photometric, data, raw in (
        ("YBR_FULL_422", stream, False),
        ("YBR_FULL", stream, False),
        ("RGB", stream, False),  # a common mistake: the stream knows better
        ("YBR_FULL_422", bare, False),
        ("RGB", bare, True),  # really RGB components then
    ):
        path = save_streams(tmp_path / "a", [data], rgb, uid.JPEGBaseline8Bit, 8, PhotometricInterpretation=photometric)
        stored = read_frames(read_header(path), [0]).astype(int)
        expected = [113, 64, 190] if raw else [200, 90, 0]  # Y, Cb, Cr of that colour
        assert np.abs(stored - expected).max() <= 4, (photometric, raw)
        tried += 1
    assert tried == 5


@pytest.mark.parametrize("high_bit", [15, 12, 10, 0])
def test_a_high_bit_that_is_not_the_last_stored_is_refused(save, high_bit):
    path = save(frames=ramp(bits=16), bits=12, HighBit=high_bit)
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "(0028,0102) HighBit", high_bit, 11)


@pytest.mark.parametrize("encapsulated", [False, True])
def test_pixel_data_in_the_form_of_another_syntax_is_refused(save, encapsulated):
    old, new = uid.ExplicitVRLittleEndian, uid.RLELossless
    path = save(syntax=new if encapsulated else old)
    dataset = pydicom.dcmread(path)
    data = path.read_bytes()
    stated = dataset.file_meta.TransferSyntaxUID.encode() + b"\0" * (len(dataset.file_meta.TransferSyntaxUID) % 2)
    other = (old if encapsulated else new).encode() + b"\0" * (len(old if encapsulated else new) % 2)
    head = b"\x02\x00\x10\x00UI"
    grown = struct.pack("<L", int.from_bytes(data[140:144], "little") + len(other) - len(stated))
    data = data.replace(head + struct.pack("<H", len(stated)) + stated, head + struct.pack("<H", len(other)) + other)
    path.write_bytes(data[:140] + grown + data[144:])
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "(7FE0,0010) PixelData", "length")


def test_read_stored_of_a_file_changed_since_its_header_was_read_is_refused(save):
    header = read_header(save())
    save(syntax=uid.RLELossless)
    with pytest.raises(SequenceError) as error:
        read_frames(header, [0])
    assert_message(error.value, "TransferSyntaxUID", "RLE Lossless")


def test_read_stored_reads_only_the_chosen_frames(save, monkeypatch):
    path: Path = save(frames=ramp(50, 64, 64))
    read = []
    original = Part10.read

    def counted(self: Part10, size: int = -1) -> bytes:
        data = original(self, size)
        read.append(len(data))
        return data

    monkeypatch.setattr(Part10, "read", counted)
    assert len(list(read_stored(path, [3, 49], uid.ExplicitVRLittleEndian, colour=False))) == 2
    assert 2 * 64 * 64 <= sum(read) < 3 * 64 * 64


def test_a_real_image_in_nine_encodings_has_one_hash(shared_data, tmp_path):
    name = "xa_nema_wg04_XA1_UNC.dcm"
    index = json.loads((shared_data / "real_xa" / "INDEX.json").read_text())["files"]
    expected = next(entry["array_sha256"] for entry in index if entry["file"] == name)
    frames = read_frames(read_header(shared_data / "real_xa" / name), [0])
    assert hashlib.sha256(frames.tobytes()).hexdigest() == expected
    tried = 0
    for syntax in LOSSLESS.values():
        path = save_encoded(tmp_path / "a", frames, syntax, 10)
        stored = read_frames(read_header(path), [0])
        assert hashlib.sha256(stored.tobytes()).hexdigest() == expected, syntax
        tried += 1
    assert tried == 11


PHANTOMS = {**LOSSLESS, "jpeg": uid.JPEGBaseline8Bit}
_PHANTOMS: dict[str, bytes] = {}


def phantom(name: str, folder: Path) -> bytes:
    """A small file of three frames; made once."""
    if name not in _PHANTOMS:
        frames, path = ramp(3, 40, 36), folder / "phantom.dcm"
        if name == "jpeg":
            save_streams(path, [jpeg(frame) for frame in frames], frames, uid.JPEGBaseline8Bit, 8)
        else:
            save_encoded(path, frames, PHANTOMS[name], 8)
        assert read_header(path).num_frames == 3
        _PHANTOMS[name] = path.read_bytes()
    return _PHANTOMS[name]


@pytest.mark.parametrize("name", PHANTOMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_damaged_files_are_refused_or_keep_their_number_of_frames(name, tmp_path, data):
    content = bytearray(phantom(name, tmp_path))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(128, len(content) - 1), st.integers(128, min(900, len(content) - 1))))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "end", "fill"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        elif kind == "end":
            del content[max(at, 200) :]
        else:
            content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"]))
        if len(content) < 200:
            break
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content)
    started = time.process_time()
    try:
        header = read_header(path, 2**26)
        stored = read_frames(header, range(header.num_frames))
    except SequenceError as error:
        assert_message(error, path)
    else:
        assert len(stored) == header.num_frames == 3
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", ["xa_nema_wg04_XA1_JPLL.dcm", "xa_siemens_rubo0002_96f_jpegbaseline.dcm"])
@pytest.mark.parametrize("percent", [5, 50, 95])
def test_a_scan_cut_short_before_its_end_marker_is_refused(shared_data, tmp_path, name, percent):
    dataset = pydicom.dcmread(shared_data / "real_xa" / name)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
    scan, end = frame.find(b"\xff\xda") + 14, frame.rfind(b"\xff\xd9")
    cut = frame[: scan + (end - scan) * percent // 100] + b"\xff\xd9"
    dataset.PixelData, dataset.NumberOfFrames = encapsulate([cut + b"\0" * (len(cut) % 2)]), 1
    dataset.save_as(tmp_path / "cut.dcm")
    with pytest.raises(SequenceError) as error:
        read_frames(read_header(tmp_path / "cut.dcm"), [0])
    assert_message(error.value, "cut.dcm", "(7FE0,0010) PixelData", "cut off inside a frame")


@pytest.mark.parametrize("rows", [6000, 30000])
def test_a_frame_larger_than_any_detector_is_refused_before_a_decoder_sees_it(save, rows):
    path = save(frames=ramp(1, 64, 64, bits=12), bits=12)
    dataset = pydicom.dcmread(path)
    dataset.compress(uid.JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    dataset.Rows = dataset.Columns = rows
    dataset.save_as(path)
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "frame size", 2 * rows * rows, 64 * 2**20)


def test_native_data_padded_by_less_than_a_row_is_read_with_a_warning_and_more_is_refused(save):
    path = save(frames=ramp(3, 12, 10))
    data = path.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00OB") + 8
    for surplus, read in ((2, True), (10, True), (12, False)):
        path.write_bytes(data[:at] + (360 + surplus).to_bytes(4, "little") + data[at + 4 :] + bytes(surplus))
        if read:
            header = read_header(path)
            assert header.warnings == (f"(7FE0,0010) PixelData has {surplus} bytes more than its frames: left out",)
            np.testing.assert_array_equal(read_frames(header, [0, 1, 2]), ramp(3, 12, 10))
        else:
            with pytest.raises(SequenceError, match="372 bytes, needs 360"):
                read_header(path)

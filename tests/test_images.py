"""Folders, lists and pages of images are frames in the order of time, or one SequenceError."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from scripts.errors import SequenceError
from scripts.sequences.images import read_frames, read_header
from tests.conftest import PERSON, assert_message, assert_no_person, ramp

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
LOSSLESS = [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8), ("tif", np.uint16), ("bmp", np.uint8)]


def save_folder(folder: Path, frames: np.ndarray, names: list[str] | None = None, times: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    names = names or [f"{i}.png" for i in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(folder / name)
    if times is not None:
        (folder / "times.csv").write_text(times)
    return folder


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, columns: int, depth: int, colour_type: int, pixels: bytes) -> bytes:
    """A PNG whose header says what it is told to."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, depth, colour_type, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


# --- values ---


@pytest.mark.parametrize(("suffix", "dtype"), LOSSLESS)
def test_grey_frames_come_back_as_they_were(tmp_path, suffix, dtype):
    frames = ramp(4, bits=8 if dtype == np.uint8 else 12)
    header = read_header(save_folder(tmp_path / "run", frames, [f"{i}.{suffix}" for i in range(4)]))
    stored = read_frames(header, [0, 2, 3])
    np.testing.assert_array_equal(stored, frames[[0, 2, 3]])
    assert stored.dtype == dtype
    assert (header.container, header.num_frames, header.rows, header.columns) == ("images", 4, 12, 10)
    assert (header.photometric, header.bits_stored) == ("MONOCHROME2", 8 * np.dtype(dtype).itemsize)
    assert header.facts == {} and header.warnings == ()


def test_jpeg_frames_are_those_pillow_decodes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (16, 24), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(tmp_path / f"c{i}.jpeg")
    grey, colour = sorted(tmp_path.glob("*.jpg")), sorted(tmp_path.glob("*.jpeg"))
    assert len(grey) == len(colour) == 3
    for files, photometric in ((grey, "MONOCHROME2"), (colour, "RGB")):
        header = read_header(files)
        assert header.photometric == photometric
        expected = np.stack([np.asarray(Image.open(file)) for file in files])
        np.testing.assert_array_equal(read_frames(header, range(3)), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colour_frames_come_back_as_rgb(tmp_path, suffix):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    header = read_header(save_folder(tmp_path / "run", frames, [f"{i}.{suffix}" for i in range(3)]))
    assert (header.photometric, header.bits_stored) == ("RGB", 8)
    np.testing.assert_array_equal(read_frames(header, range(3)), frames)


def test_palette_becomes_the_colours_it_names(tmp_path):
    indices = np.arange(30, dtype=np.uint8).reshape(6, 5)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png", transparency=bytes(range(30)))
    header = read_header(tmp_path / "p.png")
    np.testing.assert_array_equal(read_frames(header, [0])[0], palette[indices])
    assert header.warnings == ("alpha channel left out: 1 of 1 frames",)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_left_out_with_a_warning(tmp_path, channels):
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 5, channels), dtype=np.uint8)
    header = read_header(save_folder(tmp_path / "run", frames))
    colours = frames[..., :3] if channels == 4 else frames[..., 0]
    np.testing.assert_array_equal(read_frames(header, [0, 1]), colours)
    assert header.warnings == ("alpha channel left out: 2 of 2 frames",)


def test_grey_and_colour_frames_of_one_size_become_rgb(tmp_path):
    """A retinal sequence often begins with a colour photograph."""
    colour = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "0.png")
    Image.fromarray(ramp(1)[0]).save(tmp_path / "1.png")
    header = read_header(tmp_path)
    stored = read_frames(header, [0, 1])
    np.testing.assert_array_equal(stored[0], colour)
    np.testing.assert_array_equal(stored[1], np.repeat(ramp(1)[0][..., None], 3, axis=-1))


def test_colour_of_16_bits_is_read_with_8_and_said_so(tmp_path):
    values = np.full((4, 5, 3), 0xABCD, ">u2")
    pixels = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "deep.png").write_bytes(png(4, 5, 16, 2, pixels))
    header = read_header(tmp_path / "deep.png")
    assert (read_frames(header, [0]) == 0xAB).all()
    assert header.warnings == ("16 bit colour read with 8 bits: 1 of 1 frames",)


def test_white_is_zero_tiff_is_shown_with_zero_as_white(tmp_path):
    """Pillow turns 8 bit frames itself and leaves those of 16 bits; MONOCHROME1 says that they are to be turned."""
    for bits, dtype in ((8, np.uint8), (16, np.uint16)):
        frame = ramp(1, bits=bits)[0].astype(dtype)
        Image.fromarray(frame).save(tmp_path / f"{bits}.tif")
        data = (tmp_path / f"{bits}.tif").read_bytes()
        entry = data.index(struct.pack("<HHI", 262, 3, 1))
        (tmp_path / f"{bits}.tif").write_bytes(data[: entry + 8] + b"\0\0" + data[entry + 10 :])
        header = read_header(tmp_path / f"{bits}.tif")
        shown = read_frames(header, [0])[0].astype(int)
        if header.photometric == "MONOCHROME1":
            shown = 2**header.bits_stored - 1 - shown
        first, last = shown[0, 0], shown[0, -1]
        assert first > last, bits  # the ramp rises from 0, and 0 is white
        assert header.photometric == ("MONOCHROME1" if bits == 16 else "MONOCHROME2")


def test_cmyk_is_refused(tmp_path):
    Image.new("CMYK", (5, 6)).save(tmp_path / "a.jpg")
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "a.jpg")
    assert_message(error.value, tmp_path / "a.jpg", "kind of pixel is CMYK", "grey, palette or RGB")


def test_exif_orientation_is_not_applied_and_no_metadata_leaves(tmp_path):
    frame = ramp(1)[0]
    exif = Image.Exif()
    exif[274] = 6  # Orientation: turned by 90 degrees
    exif[270] = PERSON["PatientName"]  # ImageDescription
    exif[315] = PERSON["ReferringPhysicianName"]  # Artist
    Image.fromarray(frame).save(tmp_path / "a.png", exif=exif)
    assert PERSON["PatientName"].encode() in (tmp_path / "a.png").read_bytes()
    header = read_header(tmp_path / "a.png")
    np.testing.assert_array_equal(read_frames(header, [0])[0], frame)
    assert_no_person(header, header.facts, header.warnings)


# --- order and times ---


def test_folder_is_ordered_by_the_numbers_in_its_names(tmp_path):
    frames = ramp(12)
    names = [f"frame{i}_FA.png" for i in range(1, 13)]
    header = read_header(save_folder(tmp_path / "run", frames, names))
    assert [file.name for file in header.files] == names
    np.testing.assert_array_equal(read_frames(header, range(12)), frames)
    np.testing.assert_array_equal(header.frame_times_ms, [0.0] + [np.nan] * 11)


def test_list_keeps_its_order(tmp_path):
    frames = ramp(3)
    folder = save_folder(tmp_path / "run", frames, times="file,time_ms\n0.png,0\n1.png,5\n2.png,9\n")
    header = read_header([folder / "2.png", folder / "0.png", folder / "1.png"])
    np.testing.assert_array_equal(read_frames(header, range(3)), frames[[2, 0, 1]])
    np.testing.assert_array_equal(header.frame_times_ms, [0, np.nan, np.nan])


def test_other_files_of_a_folder_are_left_out(tmp_path):
    folder = save_folder(tmp_path / "run", ramp(2))
    (folder / "labels.csv").write_text("a,b\n")
    (folder / ".hidden.png").write_text("no image")
    (folder / "more.png").mkdir()
    assert read_header(folder).num_frames == 2


def test_pages_of_a_tiff_are_frames(tmp_path):
    frames = ramp(9, bits=12)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(tmp_path / "run.tif", save_all=True, append_images=images[1:])
    header = read_header(tmp_path / "run.tif")
    assert header.num_frames == 9
    np.testing.assert_array_equal(read_frames(header, [0, 4, 8]), frames[[0, 4, 8]])


def test_one_image_is_a_sequence_of_one_frame(tmp_path):
    Image.fromarray(ramp(1)[0]).save(tmp_path / "a.png")
    header = read_header(tmp_path / "a.png")
    assert header.num_frames == 1 and header.frame_times_ms.tolist() == [0.0]


@pytest.mark.parametrize(("column", "unit"), [("time_ms", 1.0), ("elapsed_seconds", 1000.0)])
def test_times_file_orders_the_frames_and_starts_at_0(tmp_path, column, unit):
    frames = ramp(4)
    times = f"eye,file,{column}\nR,0.png,31.5\nR,1.png,12.5\nR,2.png,100\nR,3.png,14\n"
    header = read_header(save_folder(tmp_path / "run", frames, times="\ufeff" + times))
    np.testing.assert_allclose(header.frame_times_ms, np.array([0, 1.5, 19, 87.5]) * unit)
    np.testing.assert_array_equal(read_frames(header, range(4)), frames[[1, 3, 0, 2]])
    assert header.warnings == ("times.csv: 2 of 4 times earlier than the one of the name before",)


def test_dirty_times_are_unknown_counted_and_keep_their_frame_in_place(tmp_path):
    frames = ramp(9)
    rows = ["0.png,10", "1.png,", "2.png,n/a", "3.png,-4", "4.png,12", "5.png,12", "6.png,nan", "7.png,1e400"]
    rows += ["0.png,99", "gone.png,3", f"{PERSON['PatientName']},5"]  # 8.png has no row
    header = read_header(save_folder(tmp_path / "run", frames, times="\n".join(["file,time_ms", *rows])))
    nan = np.nan
    np.testing.assert_array_equal(header.frame_times_ms, [0, nan, nan, nan, 2, 2, nan, nan, nan])
    np.testing.assert_array_equal(read_frames(header, range(9)), frames)
    assert header.warnings == (
        "times.csv: 6 of 9 times unknown",
        "times.csv: 1 of 9 times equal to the one before",
        "times.csv: 1 of 9 times given again, the first of them kept",
        "times.csv: 2 of 9 times of files that are absent",
    )
    assert_no_person(header.warnings)


def test_equal_times_keep_the_order_of_names(tmp_path):
    frames = ramp(12)
    times = "\n".join(["file,time_ms", *(f"{i}.png,7" for i in range(12))])
    header = read_header(save_folder(tmp_path / "run", frames, times=times))
    np.testing.assert_array_equal(read_frames(header, range(12)), frames)
    assert header.frame_times_ms.tolist() == [0.0] * 12


def test_times_file_without_any_time_leaves_them_unknown(tmp_path):
    header = read_header(save_folder(tmp_path / "run", ramp(3), times="file,time_ms\n0.png,\n"))
    np.testing.assert_array_equal(header.frame_times_ms, [0, np.nan, np.nan])
    assert header.warnings == ("times.csv: 3 of 3 times unknown",)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("name,seconds\n0.png,1\n", "columns is others"),
        ("", "columns is others"),
        ("file,time_ms\n" + '"' * 3 + "x" * 200_000 + "\n", "content is unreadable"),
        ("file,time_ms\n" + "0.png,1\n" * 2_200_000, "file size is"),
    ],
)
def test_a_times_file_that_is_none_is_refused(tmp_path, content, field):
    folder = save_folder(tmp_path / "run", ramp(2), times=content)
    with pytest.raises(SequenceError) as error:
        read_header(folder)
    assert_message(error.value, folder / "times.csv", field)


def test_a_times_file_in_another_encoding_is_refused(tmp_path):
    folder = save_folder(tmp_path / "run", ramp(2))
    (folder / "times.csv").write_bytes("file,time_ms\n0.png,1\nGrün.png,2\n".encode("latin-1"))
    with pytest.raises(SequenceError) as error:
        read_header(folder)
    assert_message(error.value, folder / "times.csv", "content is unreadable", "UTF-8")


# --- what is refused ---


def test_frames_of_several_sizes_are_refused_by_name(tmp_path):
    folder = save_folder(tmp_path / "run", ramp(3))
    Image.fromarray(ramp(1, rows=12, columns=11)[0]).save(folder / "2.png")
    with pytest.raises(SequenceError) as error:
        read_header(folder)
    assert_message(error.value, folder, "size of 2.png is 12 x 11", "12 x 10 with 8 bits, as 0.png")


def test_frames_of_several_depths_are_refused_by_name(tmp_path):
    folder = save_folder(tmp_path / "run", ramp(3))
    Image.fromarray(ramp(1, bits=16)[0]).save(folder / "1.png")
    with pytest.raises(SequenceError) as error:
        read_header(folder)
    assert_message(error.value, folder, "size of 1.png is 12 x 10 with 16 bits", "with 8 bits")


def test_pages_of_several_sizes_are_refused_by_number(tmp_path):
    images = [Image.new("L", (10, 12)), Image.new("L", (10, 12)), Image.new("L", (5, 6))]
    images[0].save(tmp_path / "run.tif", save_all=True, append_images=images[1:])
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "run.tif")
    assert_message(error.value, tmp_path / "run.tif", "size of page 2 is 6 x 5", "as page 0")


def test_several_pages_in_one_of_several_files_are_refused(tmp_path):
    images = [Image.fromarray(frame) for frame in ramp(3)]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "b.tif")
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path)
    assert_message(error.value, tmp_path / "a.tif", "frames is 3", "one picture in each file")


def test_an_animated_png_is_refused(tmp_path):
    images = [Image.fromarray(frame) for frame in ramp(3)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:])
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "a.png")
    assert_message(error.value, tmp_path / "a.png", "frames is 3", "one TIFF")


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(tmp_path, mode):
    Image.new(mode, (5, 6)).save(tmp_path / "a.tif")
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "a.tif")
    assert_message(error.value, tmp_path / "a.tif", f"kind of pixel is {mode} ", "8 or 16 bit grey")


@pytest.mark.parametrize("side", [10_000, 12_000, 30_000])
def test_a_small_file_that_claims_a_huge_picture_is_refused_before_decoding(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, bytes(1000)))
    tracemalloc.start()
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "bomb.png", max_sequence_bytes=2**28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_message(error.value, tmp_path / "bomb.png", "is", "needs")
    assert peak < 2**22


def test_a_sequence_over_the_limit_is_refused_by_its_decoded_size(tmp_path):
    folder = save_folder(tmp_path / "run", ramp(4))
    assert read_header(folder, 4 * 120).num_frames == 4
    with pytest.raises(SequenceError) as error:
        read_header(folder, 4 * 120 - 1)
    assert_message(error.value, folder, "decoded size is 480 bytes", "at most 479")


def test_absent_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_header([tmp_path / "none.png", tmp_path / "no.png"])
    assert_message(error.value, tmp_path / "none.png", "path is absent")
    for source, part in ((tmp_path, "folder is without images"), ([], "image is empty")):
        with pytest.raises(SequenceError) as refused:
            read_header(source)
        assert_message(refused.value, part)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_a_file_cut_short_is_refused_by_name_wherever_it_ends(tmp_path, suffix):
    rng = np.random.default_rng(0)
    folder = save_folder(tmp_path / "run", ramp(2, 64, 48), [f"0.{suffix}", f"1.{suffix}"])
    Image.fromarray(rng.integers(0, 256, (64, 48), dtype=np.uint8)).save(folder / f"1.{suffix}")
    whole = (folder / f"1.{suffix}").read_bytes()
    ends = [0, 3, 20, len(whole) // 3, len(whole) * 2 // 3]
    for end in ends:
        (folder / f"1.{suffix}").write_bytes(whole[:end])
        with pytest.raises(SequenceError) as error:
            read_frames(read_header(folder), [0, 1])
        assert_message(error.value, folder / f"1.{suffix}", "needs")
    assert len(ends) == 5


# --- only what is asked for; damage ---


def test_only_chosen_frames_are_decoded(tmp_path):
    frames = ramp(6)
    folder = save_folder(tmp_path / "run", frames)
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[:60] + bytes(len(whole) - 60))  # header good, pixels not
    header = read_header(folder)
    np.testing.assert_array_equal(read_frames(header, [0, 2, 4, 5]), frames[[0, 2, 4, 5]])
    with pytest.raises(SequenceError) as error:
        read_frames(header, [2, 3])
    assert_message(error.value, folder / "3.png", "pixels is unreadable")


def encoded(suffix: str) -> bytes:
    images = [Image.fromarray(frame) for frame in ramp(2)]
    stream = io.BytesIO()
    pages = {"save_all": True, "append_images": images[1:]} if suffix == "tiff" else {}
    images[0].save(stream, suffix, **pages)
    return stream.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["png", "jpeg", "tiff", "bmp"]))
def test_any_damage_is_one_error_or_frames_as_the_header_says(tmp_path, data, suffix):
    content = bytearray(encoded(suffix))
    position = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.binary(min_size=1, max_size=6))
    content[position : position + len(value)] = value
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        header = read_header(path, max_sequence_bytes=2**24)
        stored = read_frames(header, range(header.num_frames))
    except SequenceError as error:
        assert_message(error, path, "needs")
        return
    assert stored.shape[:3] == (header.num_frames, header.rows, header.columns)
    assert len(header.frame_times_ms) == header.num_frames


def test_a_stack_of_more_pages_than_any_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.sequences.images.MAX_PAGES", 20)
    page = Image.new("L", (2, 2))
    for pages in (20, 21):
        page.save(tmp_path / f"{pages}.tif", save_all=True, append_images=[page] * (pages - 1))
    assert read_header(tmp_path / "20.tif").num_frames == 20
    with pytest.raises(SequenceError) as error:
        read_header(tmp_path / "21.tif")
    assert_message(error.value, "21.tif", "frames", 21, 20)

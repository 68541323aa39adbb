"""Chosen frames of a video are exactly those that decoding all of it gives; damage is one SequenceError."""

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from scripts.errors import SequenceError
from scripts.sequences import video
from scripts.sequences.video import read_frames, read_header
from tests.conftest import PERSON, assert_message, assert_no_person

av = pytest.importorskip("av")

ROWS, COLUMNS, NUM_FRAMES = 48, 64, 30
# name, codec, pixel format, frames stored out of order between two others
KINDS = [
    ("h264.mp4", "libx264", "yuv420p", 3),
    ("h264.mov", "libx264", "yuv444p", 0),
    ("h264.mkv", "libx264", "yuv420p", 3),
    ("h264.avi", "libx264", "yuv420p", 3),  # AVI has no presentation times: frames carry each other's
    ("mpeg4.m4v", "mpeg4", "yuv420p", 2),
    ("mpeg4.avi", "mpeg4", "yuv420p", 2),
    ("mjpeg.avi", "mjpeg", "yuvj420p", 0),
    ("raw.avi", "rawvideo", "gray", 0),
    ("ffv1.avi", "ffv1", "gray", 0),
    ("ffv1_16.mkv", "ffv1", "gray16le", 0),
]


def pictures(num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Frames (T, H, W) uint8: a white bar of two columns that moves two columns a frame."""
    frames = np.full((num_frames, ROWS, COLUMNS), 40, np.uint8)
    for t in range(num_frames):
        frames[t, :, 2 * t % COLUMNS : 2 * t % COLUMNS + 2] = 230
    return frames


def bars(frames: np.ndarray) -> list[int]:
    """Where the bar stands in each frame, in steps from the left."""
    grey = frames[..., 0] if frames.ndim == 4 else frames
    return [int(frame.reshape(ROWS, COLUMNS // 2, 2).mean((0, 2)).argmax()) for frame in grey.astype(float)]


def save_video(
    path: Path, codec: str, pixel_format: str, reordered: int = 0, times_ms: Sequence[int] | None = None, gop: int = 12
) -> Path:
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4v" else None) as container:
        container.metadata["title"] = PERSON["PatientName"]
        stream = container.add_stream(codec, rate=15)
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, pixel_format
        context = stream.codec_context
        context.gop_size, context.max_b_frames = gop, reordered
        unit = Fraction(1, 1000) if times_ms is not None else Fraction(1, 15)
        context.time_base = unit
        for t, picture in enumerate(pictures(len(times_ms) if times_ms is not None else NUM_FRAMES)):
            frame = av.VideoFrame.from_ndarray(picture, "gray").reformat(format=pixel_format)
            frame.pts, frame.time_base = times_ms[t] if times_ms is not None else t, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: save_video(folder / name, codec, kind, b) for name, codec, kind, b in KINDS}


@pytest.mark.parametrize("name", [name for name, *_ in KINDS])
def test_chosen_frames_are_those_of_decoding_all(videos, name):
    path = videos[name]
    header = read_header(path)
    assert (header.container, header.num_frames, header.rows, header.columns) == ("video", NUM_FRAMES, ROWS, COLUMNS)
    kind = {"RGB": "rgb24", "MONOCHROME2": "gray" if header.bits_stored == 8 else "gray16le"}[header.photometric]
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format=kind) for frame in container.decode(video=0)])
    assert bars(expected) == [t % (COLUMNS // 2) for t in range(NUM_FRAMES)]  # in the order of display
    choices = [range(NUM_FRAMES), [0], [29], [11, 12, 13], [5, 23], [0, 7, 14, 21, 28], [24, 25]]
    for indices in choices:
        stored = read_frames(header, indices)
        np.testing.assert_array_equal(stored, expected[list(indices)])
    assert len(choices) == 7
    np.testing.assert_allclose(header.frame_times_ms, np.arange(NUM_FRAMES) * 1000 / 15, atol=0.5)  # MKV: whole ms
    assert header.frame_times_ms[0] == 0.0 and header.warnings == () and header.facts == {}


@pytest.mark.parametrize(("name", "bits"), [("raw.avi", 8), ("ffv1.avi", 8), ("ffv1_16.mkv", 16)])
def test_grey_lossless_video_gives_its_grey_values(videos, name, bits):
    header = read_header(videos[name])
    assert (header.photometric, header.bits_stored) == ("MONOCHROME2", bits)
    stored = read_frames(header, [0, 9])
    assert stored.dtype == (np.uint8 if bits == 8 else np.uint16)
    scale = 1 if bits == 8 else 257
    np.testing.assert_allclose(stored, pictures()[[0, 9]].astype(int) * scale, atol=scale)


@pytest.mark.parametrize("name", ["run.mp4", "run.mkv", "run.mov"])
def test_irregular_times_are_those_of_presentation(tmp_path, name):
    times = [500, 540, 620, 1000, 1040, 3000, 3033, 3500, 3540, 9000]
    header = read_header(save_video(tmp_path / name, "libx264", "yuv420p", 2, times, gop=4))
    np.testing.assert_allclose(header.frame_times_ms, np.array(times) - times[0], atol=1e-6)
    assert bars(read_frames(header, [2, 5, 6, 9])) == [2, 5, 6, 9]


def test_decoding_starts_at_the_key_frame_before_a_chosen_one(videos):
    header = read_header(videos["h264.mp4"])
    decoded = []
    taken = video._taken

    def counted(path, wanted, frames):
        return taken(path, wanted, ((mark, frame) for mark, frame in frames if decoded.append(mark) is None))

    with mock.patch.object(video, "_taken", counted):
        assert bars(read_frames(header, [13, 25])) == [13, 25]
    assert len(decoded) <= 8  # of 26: from 12 and from 24, the key frames, and a few that are shown just before them


def test_runs_of_chosen_frames_start_at_a_key_frame_and_join_where_they_meet():
    keys = [0, 10, 20]
    assert video._runs([3, 5], keys) == [(0, [3, 5])]
    assert video._runs([3, 9, 10, 25], keys) == [(0, [3, 9, 10]), (20, [25])]
    assert video._runs([3, 15], keys) == [(0, [3]), (10, [15])]
    assert video._runs([0, 1, 2, 4], [0, 1, 2, 3, 4]) == [(0, [0, 1, 2]), (4, [4])]
    assert video._runs([2, 12], []) == [(0, [2, 12])]


def test_counting_frames_decodes_none(videos):
    with mock.patch.object(video, "_chosen", side_effect=AssertionError):
        assert [read_header(path).num_frames for path in videos.values()] == [NUM_FRAMES] * len(KINDS)


def test_a_sequence_over_the_limit_is_refused_by_its_decoded_size(videos):
    size = NUM_FRAMES * ROWS * COLUMNS * 3
    assert read_header(videos["h264.mp4"], size).num_frames == NUM_FRAMES
    with pytest.raises(SequenceError) as error:
        read_header(videos["h264.mp4"], size - 1)
    assert_message(error.value, videos["h264.mp4"], f"decoded size is {size} bytes", f"at most {size - 1}")


def test_titles_in_a_video_stay_behind(videos):
    assert PERSON["PatientName"].encode() in videos["h264.mp4"].read_bytes()
    header = read_header(videos["h264.mp4"])
    assert_no_person(header, header.facts, header.warnings)


# --- what is refused ---


def test_without_the_package_the_error_names_it(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        read_header(videos["h264.mp4"])


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 500, b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", b"ffconcat version 1.0\nfile other.mp4\n"]
)
def test_a_file_that_is_no_video_is_refused_whatever_its_name(tmp_path, content):
    path = tmp_path / "run.mp4"
    path.write_bytes(content)
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "content is no video", "MP4, MOV, AVI or MKV")


def test_a_video_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "content is without pictures", "video")


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mov", "mpeg4.avi", "raw.avi"])
def test_a_video_cut_short_is_refused(tmp_path, videos, name):
    whole = videos[name].read_bytes()
    path = tmp_path / name
    for share in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SequenceError) as error:
            read_header(path)
        assert_message(error.value, path, "needs")


def test_an_mkv_cut_short_is_warned_of_as_it_does_not_count_its_frames(tmp_path, videos):
    whole = videos["h264.mkv"].read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: int(len(whole) * 0.8)])
    header = read_header(path)
    assert header.num_frames < NUM_FRAMES
    assert len(header.warnings) == 1 and header.warnings[0].startswith("duration: 2000 ms stated, the last frame is at")


def test_damaged_pixels_are_refused_when_they_are_read(tmp_path, videos):
    data = bytearray(videos["mpeg4.avi"].read_bytes())
    start = data.index(b"movi")
    data[start + 60 : start + 200] = b"\x55" * 140
    path = tmp_path / "damaged.avi"
    path.write_bytes(data)
    header = read_header(path)
    with pytest.raises(SequenceError) as error:
        read_frames(header, range(header.num_frames))
    assert_message(error.value, path, "needs")


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4.avi", "mjpeg.avi", "ffv1.avi"])
def test_any_damage_is_one_error_or_frames_as_the_header_says(tmp_path, videos, name):
    rng = np.random.default_rng(0)
    whole = videos[name].read_bytes()
    outcomes = []
    for _ in range(60):
        data = bytearray(whole)
        position = int(rng.integers(0, min(len(data), int(rng.choice([200, 2000, 10**6])))))
        data[position : position + 4] = rng.bytes(4)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            header = read_header(path, max_sequence_bytes=2**24)
            stored = read_frames(header, range(header.num_frames))
        except SequenceError as error:
            assert_message(error, path, "needs")
            outcomes.append("refused")
        else:
            assert stored.shape[:3] == (header.num_frames, header.rows, header.columns)
            outcomes.append("read")
    assert len(outcomes) == 60 and set(outcomes) == {"refused", "read"}


def test_an_absent_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_header(tmp_path / "none.mp4")
    assert_message(error.value, tmp_path / "none.mp4", "path is absent")

"""A video (MP4, MOV, M4V, AVI, MKV) -> the header of one sequence, and the pixels of the frames chosen from it.

Through PyAV, which is optional: its own code is BSD-3, but its wheels carry FFmpeg (LGPL-3 as it reports itself) and
with it x264 and x265, which are GPL-2. So it is imported here alone, when a video is read, and never passed on.

Of a video only size, kind of pixel and presentation times are read; titles, places and dates in it stay behind.
"""

import importlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader, check_decoded_size
from scripts.errors import SequenceError, bad_value, reading

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv")
VALID = "a complete, valid MP4, MOV, AVI or MKV video"
MARKS = {  # FFmpeg's demuxer -> what stands at which byte. Named, so that no playlist can make it open other files.
    "mov": (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    "avi": (8, (b"AVI ",)),
    "matroska": (0, (b"\x1a\x45\xdf\xa3",)),
}
MAX_FRAME_PIXELS = 2**26  # 8192 x 8192; FFmpeg decodes a frame or two to find out what a stream holds


def read_header(path: Path, max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> SequenceHeader:
    """The header of the sequence in a video's first stream of pictures.

    The packets are counted and none is decoded. Times are those of presentation, so the rate may vary.

    Args:
        path: of the file.
        max_sequence_bytes: largest decoded size accepted, checked before anything is decoded.

    Raises:
        FileNotFoundError: nothing at the path.
        ImportError: PyAV is not installed.
        SequenceError: no pictures, damaged, incomplete or too large.
    """
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    with _opened(path) as (container, stream):
        context = stream.codec_context
        rows, columns, pixel_format = context.height, context.width, context.pix_fmt
        if not (rows and columns and pixel_format):
            raise SequenceError(bad_value(path, "video stream", "without a size or kind of pixel", VALID))
        stamps, _ = _stamps(path, container, stream)
        times = (np.array(stamps) - stamps[0]) * float(stream.time_base) * 1000.0
        frame_ms = float(1000 / stream.average_rate) if stream.average_rate else 0.0
        stated_ms = 0.0 if stream.frames else (container.duration or 0) / 1000.0  # FFmpeg counts microseconds
    bits = 16 if _grey(pixel_format) == "gray16le" else 8
    warnings = []
    if stated_ms > times[-1] + 1.5 * np.diff(times).max(initial=frame_ms):  # an MKV cut short says no more than this
        warnings.append(f"duration: {stated_ms:.0f} ms stated, the last frame is at {times[-1]:.0f} ms")
    frame_bytes = rows * columns * (bits // 8 if _grey(pixel_format) else 3)
    check_decoded_size(path, len(stamps), frame_bytes, f"{rows} x {columns}", max_sequence_bytes)
    return SequenceHeader(
        container="video",
        files=(path,),
        num_frames=len(stamps),
        rows=rows,
        columns=columns,
        frame_times_ms=times,
        photometric="MONOCHROME2" if _grey(pixel_format) else "RGB",
        bits_stored=bits,
        warnings=tuple(warnings),
    )


def read_frames(header: SequenceHeader, indices: Sequence[int]) -> np.ndarray:
    """Pixels of chosen frames: (T, H, W, 3) RGB uint8, or (T, H, W) uint8 or uint16 where the stream is grey.

    Decoding starts at the key frame before each chosen frame.

    Args:
        header: of `read_header`.
        indices: 0-based, ascending.

    Raises:
        SequenceError: the pixels cannot be decoded, or are not what the header says.
    """
    path = header.files[0]
    colour = header.photometric == "RGB"
    shape = (header.rows, header.columns, 3) if colour else (header.rows, header.columns)
    kind = "rgb24" if colour else "gray" if header.bits_stored == 8 else "gray16le"
    frames = np.empty((len(indices), *shape), np.uint8 if header.bits_stored == 8 else np.uint16)
    with _opened(path) as (container, stream):
        for position, frame in enumerate(_chosen(path, container, stream, list(indices))):
            if frame.is_corrupt or (frame.height, frame.width) != shape[:2]:
                found = "damaged" if frame.is_corrupt else f"{frame.height} x {frame.width}"
                needs = f"{header.rows} x {header.columns}, whole"
                raise SequenceError(bad_value(path, f"frame {indices[position]}", found, needs))
            frames[position] = frame.to_ndarray(format=kind)
    return frames


def _grey(pixel_format: str) -> str:
    """The pixel format a grey stream is read as, empty for any other; 9 to 16 bits become 16."""
    if not pixel_format.startswith("gray") or "f" in pixel_format:
        return ""
    return "gray" if pixel_format == "gray" else "gray16le"


def _library() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ImportError("Reading a video needs the package av (PyAV): pip install av") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and its best stream of pictures; whatever FFmpeg raises becomes a SequenceError."""
    av = _library()
    with path.open("rb") as file:
        start = file.read(16)
    formats = [name for name, (at, marks) in MARKS.items() if start[at:].startswith(marks)]
    if not formats:
        raise SequenceError(bad_value(path, "content", "no video", VALID))
    limit = {"max_pixels": str(MAX_FRAME_PIXELS)}
    with (
        reading(path, "content", VALID, (av.FFmpegError,)),
        av.open(
            str(path.resolve()), format=formats[0], stream_options=[limit] * 8, metadata_errors="ignore"
        ) as container,
    ):
        stream = container.streams.best("video")
        if stream is None:
            raise SequenceError(bad_value(path, "content", "without pictures", VALID))
        stream.codec_context.options = {**limit, "err_detect": "explode"}  # an error, and no guessed pixels
        stream.codec_context.thread_count = 1  # exams are read side by side already
        yield container, stream


def _stamps(path: Path, container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Presentation time stamps of all frames, ascending, in the stream's time base; which of them are key frames."""
    kept, found, whole = [], 0, True
    for packet in container.demux(stream):
        if packet.size:  # the last has none
            found, whole = found + 1, whole and not packet.is_corrupt
            if not packet.is_discard:  # outside an edit list: never shown
                kept.append((packet.pts, packet.is_keyframe))
    stated = stream.frames  # 0 where the container does not say
    if not kept or found < stated or not whole:
        raise SequenceError(bad_value(path, "frames", found, f"{stated or 'at least 1'}, all of them whole"))
    known = {stamp for stamp, _ in kept if stamp is not None}
    if len(known) < len(kept):
        differ = f"known and different for {len(known)} of {len(kept)} frames"
        raise SequenceError(bad_value(path, "presentation times", differ, "one of its own for each frame"))
    kept.sort()
    return [stamp for stamp, _ in kept], [i for i, (_, is_key) in enumerate(kept) if is_key]


def _chosen(path: Path, container: Any, stream: Any, indices: list[int]) -> Iterator[Any]:
    """Decoded frames at the ascending indices, each told by its presentation time."""
    stamps, keys = _stamps(path, container, stream)
    if indices[-1] >= len(stamps):
        raise SequenceError(bad_value(path, "frames", len(stamps), f"at least {indices[-1] + 1}, as its header said"))
    if container.format.name == "avi" and len(keys) < len(stamps):
        # AVI holds decoding times alone, so that frames stored out of order carry each other's: count them instead.
        container.seek(stamps[0], stream=stream)
        yield from _taken(path, indices, enumerate(container.decode(stream)))
        return
    for start, run in _runs(indices, keys):
        container.seek(stamps[start], stream=stream)
        wanted = [stamps[index] for index in run]
        yield from _taken(path, wanted, ((frame.pts, frame) for frame in container.decode(stream)))


def _runs(indices: list[int], keys: list[int]) -> list[tuple[int, list[int]]]:
    """Chosen frames that are decoded in one go, each run with the key frame it starts at."""
    runs: list[tuple[int, list[int]]] = []
    for index in indices:
        key = keys[max(bisect_right(keys, index) - 1, 0)] if keys else 0
        if runs and key <= runs[-1][1][-1] + 1:
            runs[-1][1].append(index)  # decoding arrives there anyway
        else:
            runs.append((key, [index]))
    return runs


def _taken(path: Path, wanted: list[int], decoded: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """The frames whose marks are wanted, in the order of both; decoding stops at the last."""
    remaining = wanted[::-1]
    for mark, frame in decoded:
        if mark == remaining[-1]:
            yield frame
            remaining.pop()
        if not remaining:
            return
    raise SequenceError(bad_value(path, "content", "without a frame that its index lists", VALID))

"""When each frame was taken: DICOM timing attributes -> milliseconds since the first frame."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag

TIMING_TAGS = (
    "FrameIncrementPointer",
    "FrameTime",
    "FrameTimeVector",
    "CineRate",
    "RecommendedDisplayFrameRate",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
)


def frame_times(header: Dataset, num_frames: int) -> np.ndarray:
    """Milliseconds since the first frame of a multi-frame instance, (T,) float64, NaN = unknown.

    FrameIncrementPointer (0028,0009) says which attribute carries the time (PS3.3 C.7.6.6); where it is absent or
    points to nothing usable, FrameTime, FrameTimeVector, CineRate and RecommendedDisplayFrameRate are tried in
    this order.
    """
    pointer = header.get("FrameIncrementPointer")
    pointers = [] if pointer is None else pointer if isinstance(pointer, Sequence) else [pointer]
    order = [tag for tag in map(Tag, pointers) if tag in _READERS] + list(_READERS)
    for tag in order:
        times = _READERS[tag](header, num_frames)
        if times is not None:
            return times
    times = np.full(num_frames, np.nan)
    times[0] = 0.0
    return times


def _from_interval(keyword: str, scale: float, power: int):  # type: ignore[no-untyped-def]
    def read(header: Dataset, num_frames: int) -> np.ndarray | None:
        value = number(header.get(keyword))
        if value is None or not 1e-3 <= value <= 1e7:  # ms or frames a second; beyond, a mistake
            return None
        return np.arange(num_frames) * (scale * value**power)

    return read


def _from_vector(header: Dataset, num_frames: int) -> np.ndarray | None:
    """FrameTimeVector (0018,1065): increments in ms, the first 0 (PS3.3 C.7.6.5.1.2)."""
    vector = header.get("FrameTimeVector")
    increments = [number(v) for v in (vector if isinstance(vector, Sequence) else [vector])]
    if len(increments) != num_frames or any(v is None or v < 0 for v in increments[1:]):
        return None
    return np.cumsum([0.0, *increments[1:]])  # type: ignore[list-item]


_READERS = {
    Tag("FrameTime"): _from_interval("FrameTime", 1.0, 1),
    Tag("FrameTimeVector"): _from_vector,
    Tag("CineRate"): _from_interval("CineRate", 1000.0, -1),
    Tag("RecommendedDisplayFrameRate"): _from_interval("RecommendedDisplayFrameRate", 1000.0, -1),
}


def number(value: object) -> float | None:
    """The value as a finite number, or None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def acquisition_ms(header: Dataset) -> float | None:
    """Milliseconds since 1970 of one single-frame file, from its acquisition, else its content, date and time.

    The zone is left out: frames of a sequence share it. A fraction of more than six digits is not valid (PS3.5
    6.2); exporters that write one count microseconds past the second, and so it is read.
    """
    text = str(header.get("AcquisitionDateTime") or "")
    for day, hour in (("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime")):
        if not text and header.get(hour):
            text = str(header.get(day) or "19700101") + str(header.get(hour))
    whole, _, fraction = text.strip().replace(":", "").partition(".")
    whole = whole.split("+")[0].split("-")[0]
    fraction = fraction.split("+")[0].split("-")[0].strip()
    try:
        moment = datetime.strptime(whole.ljust(14, "0"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    microseconds = int(fraction.ljust(6, "0")) if fraction.isdigit() and len(fraction) < 12 else 0
    return moment.timestamp() * 1000.0 + microseconds / 1000.0


def temporal_order(acquired_ms: Sequence[float | None], instance_numbers: Sequence[int | None]) -> list[int] | None:
    """The order in time of single-frame files, or None if the headers do not tell it.

    By acquisition time, ties broken by InstanceNumber; by InstanceNumber alone where a time is missing or where
    every file has the same one.
    """
    positions = range(len(acquired_ms))
    numbered = None not in instance_numbers and len(set(instance_numbers)) == len(instance_numbers)
    timed = None not in acquired_ms and len(set(acquired_ms)) > 1
    if timed and (numbered or len(set(acquired_ms)) == len(acquired_ms)):
        return sorted(positions, key=lambda i: (acquired_ms[i], instance_numbers[i] or 0))
    if numbered:
        return sorted(positions, key=lambda i: instance_numbers[i])  # type: ignore[arg-type, return-value]
    return [0] if len(acquired_ms) == 1 else None

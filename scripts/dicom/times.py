"""When each frame was taken: DICOM timing attributes -> milliseconds since the first frame.

Every function returns times with what is odd about them, one line a finding.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.tag import Tag

from scripts.dicom.values import field_name, first, number, numbers, shown, value_of

RATES = ("CineRate", "RecommendedDisplayFrameRate")  # frames a second
INTERVALS = ("FrameTime", *RATES, "ActualFrameDuration")
CLOCKS = (("AcquisitionDateTime",), ("AcquisitionDate", "AcquisitionTime"), ("ContentDate", "ContentTime"))
TIMING_TAGS = (
    "FrameIncrementPointer",
    "FrameTimeVector",
    *INTERVALS,
    *(keyword for clock in CLOCKS for keyword in clock),
    "TimezoneOffsetFromUTC",
)
MIN_INTERVAL_MS, MAX_INTERVAL_MS = 1e-4, 1e7  # beyond, a mistake: under a microsecond, over two hours
MAX_VECTOR_BYTES = 2**18  # 15,000 frames; explicit VR ends at 2**16
RATE_TOLERANCE = 0.03  # a FrameTime in whole milliseconds is 2 % off at 60 frames/s
DAY_MS = 86_400_000.0
DATE_TIME = re.compile(r"(\d{8})(\d\d)(\d\d)?(\d\d)?(?:\.(\d{0,11}))?\s*([+-]\d{4})?")  # PS3.5 6.2, hours at least


class Moment(NamedTuple):
    """One reading of a clock."""

    local_ms: float  # since 1970, or since midnight where the date is unknown
    offset_ms: float | None  # of local time from UTC
    digits: int  # of the fraction of a second
    dated: bool


class Clock(NamedTuple):
    """Moments of several frames or files in milliseconds, None where unknown, and the attribute they come from."""

    keyword: str
    moments_ms: list[float | None]
    warnings: list[str]


def frame_times(header: Dataset, num_frames: int, measured: Clock | None = None) -> tuple[np.ndarray, list[str]]:
    """Milliseconds since the first frame of a multi-frame instance, (T,) float64, NaN = unknown; and warnings.

    FrameIncrementPointer (0028,0009) says which attribute carries the time (PS3.3 C.7.6.6). Where it is absent or
    points to nothing usable, the moments measured for each frame are taken, then FrameTime, FrameTimeVector,
    CineRate, RecommendedDisplayFrameRate and ActualFrameDuration, the first that is there.

    Args:
        header: with TIMING_TAGS.
        num_frames: T.
        measured: the clock of each frame, of an enhanced object.
    """
    found, warnings = _stated_intervals(header, num_frames)
    _add_vector(header, num_frames, found, warnings)
    pointers = [int(p) for p in numbers(value_of(header, "FrameIncrementPointer")) if p is not None]
    timing = {int(Tag(keyword)): keyword for keyword in ("FrameTimeVector", *INTERVALS)}
    pointed = [timing[tag] for tag in pointers if tag in timing]
    return _first_usable(num_frames, found, warnings, measured, pointed)


def series_times(header: Dataset, num_frames: int, clock: Clock) -> tuple[np.ndarray, list[str]]:
    """As `frame_times` for single-frame files in their order: by their clock, else by a stated constant rate."""
    found, warnings = _stated_intervals(header, num_frames)
    return _first_usable(num_frames, found, warnings, clock, [])


def _first_usable(
    num_frames: int, found: dict[str, np.ndarray], warnings: list[str], clock: Clock | None, pointed: list[str]
) -> tuple[np.ndarray, list[str]]:
    order = [*pointed, "FrameTime", "FrameTimeVector", *INTERVALS]
    if clock is not None and num_frames > 1:
        warnings += clock.warnings
        moments = np.array([np.nan if m is None else m for m in clock.moments_ms], dtype=np.float64)
        since_first = moments - moments[0]
        if np.nanmax(np.abs(since_first), initial=0.0) > 0:  # a clock that stands still tells nothing
            found[clock.keyword] = since_first
            at = len(order) if np.isnan(moments).any() else len(pointed)  # with holes only where no rate is stated
            order.insert(at, clock.keyword)
    keyword = next((keyword for keyword in order if keyword in found), None)
    if keyword is None:
        times = np.full(num_frames, np.nan)
        times[0] = 0.0
        return times, warnings
    times, gaps = without_negative_gaps(field_name(keyword), found[keyword])
    if keyword == "ActualFrameDuration":
        warnings.append(f"{field_name(keyword)} is {shown(times[1])} ms: taken as the time between frames")
    return times, warnings + gaps + _disagreements(keyword, found)


def _stated_intervals(header: Dataset, num_frames: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Times (T,) of each attribute that states a constant rate, and which state none."""
    found: dict[str, np.ndarray] = {}
    warnings = []
    for keyword in INTERVALS if num_frames > 1 else ():
        value = value_of(header, keyword)
        stated = number(value)
        interval = None if not stated else 1000.0 / stated if keyword in RATES else stated
        if interval is not None and MIN_INTERVAL_MS <= interval <= MAX_INTERVAL_MS:
            found[keyword] = np.arange(num_frames) * interval
        elif value is not None:
            warnings.append(f"{field_name(keyword)} is {shown(value)}: not used, it gives no time between frames")
    return found, warnings


def _add_vector(header: Dataset, num_frames: int, found: dict[str, np.ndarray], warnings: list[str]) -> None:
    """FrameTimeVector (0018,1065): increments in ms, the first 0 (PS3.3 C.7.6.5.1.2), whatever is written there."""
    field, increments = field_name("FrameTimeVector"), numbers(value_of(header, "FrameTimeVector", MAX_VECTOR_BYTES))
    if not increments or num_frames == 1:
        return
    if any(v is None or abs(v) > MAX_INTERVAL_MS for v in increments[1:] or increments):
        warnings.append(f"{field} is another value: not used, it needs milliseconds")
    elif len(increments) != num_frames:
        frames = f"{field_name('NumberOfFrames')} is {num_frames}"
        warnings.append(f"{field} has {len(increments)} values but {frames}: not used")
    else:
        found["FrameTimeVector"] = np.cumsum([0.0, *increments[1:]])  # type: ignore[list-item]


def _disagreements(used: str, found: dict[str, np.ndarray]) -> list[str]:
    """Attributes whose mean time between frames differs from the one used by more than RATE_TOLERANCE."""
    mean_ms = {keyword: np.nanmax(times) / (np.flatnonzero(~np.isnan(times))[-1]) for keyword, times in found.items()}
    others = [keyword for keyword in found if keyword not in (used, "ActualFrameDuration")]
    return [
        f"{field_name(used)} gives {_stated(used, mean_ms[used])} but {field_name(other)} "
        f"{_stated(other, mean_ms[other])}: the first is used"
        for other in others
        if abs(mean_ms[other] - mean_ms[used]) > RATE_TOLERANCE * mean_ms[used]
    ]


def _stated(keyword: str, interval_ms: float) -> str:
    if keyword in RATES:
        return f"{1000.0 / interval_ms:.6g} frames/s"
    return f"{interval_ms:.6g} ms" + ("" if keyword in INTERVALS else " on average")


def without_negative_gaps(field: str, times: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Times that never decrease: a frame before its predecessor is put at the latest moment until then.

    Args:
        field: what the warnings call the source.
        times: (T,) milliseconds, NaN = unknown.
    """
    gaps = np.diff(times[~np.isnan(times)])
    counts = {"zero": int((gaps == 0).sum()), "negative": int((gaps < 0).sum())}
    warnings = [f"{field} has {count} {kind} gaps" for kind, count in counts.items() if count]
    latest = np.fmax.accumulate(times)
    return np.where(np.isnan(times), np.nan, latest), warnings


def moment(date_time: object, timezone: object = None, counted: bool = True) -> Moment | None:
    """A DICOM date-time (PS3.5 6.2 DT) as a number; None if it is not one or has no hours.

    A fraction of more than six digits is not valid; exporters that write one count microseconds past the second,
    and so it is read if `counted`.

    Args:
        date_time: text; a date 00000000 means an unknown one.
        timezone: TimezoneOffsetFromUTC (0008,0201), for a date-time without an offset of its own.
        counted: whether a long fraction is a count of microseconds.
    """
    match = DATE_TIME.fullmatch(str(date_time).strip())
    if match is None:
        return None
    date, hours, minutes, seconds, fraction, offset = (group or "" for group in match.groups())
    dated = date != "00000000"
    clock = [int(hours), int(minutes or 0), int(seconds or 0)]
    if clock[0] > 23 or clock[1] > 59 or clock[2] > 60:  # 60: a leap second
        return None
    try:
        days = (datetime.strptime(date, "%Y%m%d") - datetime(1970, 1, 1)).days if dated else 0
    except ValueError:
        return None
    whole = days * DAY_MS + (clock[0] * 3600 + clock[1] * 60 + clock[2]) * 1000.0
    part = int(fraction) / 1000.0 if counted and len(fraction) > 6 else float(f"0.{fraction or 0}") * 1000.0
    zone = re.fullmatch(r"([+-])(\d\d)(\d\d)", offset or str(timezone or "").strip())
    ahead = None if zone is None else float(f"{zone[1]}1") * (int(zone[2]) * 60 + int(zone[3])) * 60_000.0
    return Moment(whole + part, ahead, len(fraction), dated)


def acquisition_clock(headers: Sequence[Dataset]) -> Clock:
    """Moments of the single-frame files of one sequence, all read from the same attribute.

    That is the first of CLOCKS which all files have and which tells them apart, else the first that any has.
    """
    known = {clock[-1]: [_read_clock(header, clock) for header in headers] for clock in CLOCKS}
    known = {keyword: moments for keyword, moments in known.items() if any(moments)}
    if len(known) > 1:
        known.pop("ContentTime", None)  # of the image object, written whenever: only where nothing better is there
    told = [key for key, moments in known.items() if None not in moments and len(set(moments)) > 1]
    keyword = (told or [key for key, moments in known.items() if None not in moments] or [*known, ""])[0]
    if not keyword:
        return Clock("AcquisitionDateTime", [None] * len(headers), [])
    moments = known[keyword]
    if all(m is None or m.digits == 7 for m in moments):  # of one length: a fraction, as .NET writes it
        clock = next(clock for clock in CLOCKS if clock[-1] == keyword)
        moments = [_read_clock(header, clock, counted=False) for header in headers]
    return comparable(keyword, moments)


def comparable(keyword: str, moments: Sequence[Moment | None]) -> Clock:
    """Moments on one axis: in UTC if every one tells its zone, over midnight if none tells its date."""
    known = [m for m in moments if m is not None]
    zones = [m.offset_ms for m in known if m.offset_ms is not None]
    warnings = []
    if 0 < len(zones) < len(known):
        warnings.append(f"{field_name(keyword)} tells its time zone {len(zones)} of {len(known)} times: zones not used")
    use_zones = len(zones) == len(known)
    times = [None if m is None else m.local_ms - (m.offset_ms if use_zones else 0.0) for m in moments]  # type: ignore[operator]
    there = [t for t in times if t is not None]
    if not any(m.dated for m in known) and max(there, default=0.0) - min(there, default=0.0) > DAY_MS / 2:
        middle = (max(there) + min(there)) / 2
        times = [t if t is None or t > middle else t + DAY_MS for t in times]
        warnings.append(f"{field_name(keyword)} has no date and spans more than 12 h: read as passing midnight")
    return Clock(keyword, times, warnings)


def _read_clock(header: Dataset, clock: tuple[str, ...], counted: bool = True) -> Moment | None:
    text = first(value_of(header, clock[-1]))
    if text is None:
        return None
    if len(clock) == 2:  # ACR-NEMA wrote 2020.01.01 and 10:00:08
        date = str(first(value_of(header, clock[0])) or "").strip().replace(".", "")
        text = (date or "00000000") + str(text).strip().replace(":", "")
    return moment(text, first(value_of(header, "TimezoneOffsetFromUTC")), counted)


def temporal_order(acquired_ms: Sequence[float | None], instance_numbers: Sequence[int | None]) -> list[int] | None:
    """The order in time of single-frame files, or None if the headers do not tell it.

    By acquisition time, ties by InstanceNumber and then as they came; by InstanceNumber alone where a time is missing
    or where every file has the same one.
    """
    positions = range(len(acquired_ms))
    if None not in acquired_ms and len(set(acquired_ms)) > 1:
        return sorted(positions, key=lambda i: (acquired_ms[i], instance_numbers[i] or 0))
    if None not in instance_numbers and len(set(instance_numbers)) == len(instance_numbers):
        return sorted(positions, key=lambda i: instance_numbers[i])  # type: ignore[arg-type, return-value]
    return [0] if len(acquired_ms) == 1 else None

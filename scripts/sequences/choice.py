"""Which frames of a sequence are decoded: times of all, and a bolus curve where asked for -> indices."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from scripts.errors import SequenceError, bad_value

FRAME_CHOICES = ("all", "uniform", "last", "every_ms", "contrast", "phase_stratified", "one_per_phase")
NEED_TIMES = ("every_ms", "phase_stratified", "one_per_phase")
# This project's bounds of the early, middle and late phase of retinal sequences, in seconds since the first frame. No
# published standard fixes them, so they are a setting that is recorded with the features.
PHASE_BOUNDS_S = (103.0, 518.0)
ROUNDING = 0.01  # of a step: headers round their times, and the last frame is not to be missed for it


@dataclass(frozen=True)
class FrameChoice:
    """How frames are chosen; a setting out of range is told when this is made, before the first exam is read.

    Args:
        kind: of `FRAME_CHOICES`.
            all: every frame, whatever `max_frames` says.
            uniform: spread evenly over the frames, first and last included.
            last: the last ones.
            every_ms: the frame nearest to each multiple of `every_ms` since the first frame, each once. Where these
                are too many, the run's end is cut: the first ones stay, in equal steps from the same moment.
            contrast: consecutive ones around the peak of the bolus curve.
            phase_stratified: shared as evenly as possible among the phases that hold frames, uniform in each.
            one_per_phase: the middle frame in time of each phase that holds frames, whatever `max_frames` says.
        max_frames: at most so many, at least 1.
        every_ms: step of `every_ms` in ms, above 0.
        phase_bounds_s: where phases end, in seconds since the first frame, ascending, above 0. A frame on a bound
            belongs to the later phase.

    Raises:
        ValueError: a setting is none of these.
    """

    kind: str = "uniform"
    max_frames: int = 20
    every_ms: float = 1000.0
    phase_bounds_s: tuple[float, ...] = PHASE_BOUNDS_S

    def __post_init__(self) -> None:
        if self.kind not in FRAME_CHOICES:
            raise ValueError(bad_value("configuration", "frame_choice", self.kind, f"one of {FRAME_CHOICES}"))
        if isinstance(self.max_frames, bool) or not isinstance(self.max_frames, int) or self.max_frames < 1:
            raise ValueError(bad_value("configuration", "max_frames", self.max_frames, "a whole number of at least 1"))
        if not _is_positive(self.every_ms):
            raise ValueError(bad_value("configuration", "every_ms", self.every_ms, "a number of ms above 0"))
        bounds = self.phase_bounds_s
        listed = isinstance(bounds, (list, tuple)) and len(bounds) > 0 and all(map(_is_positive, bounds))
        if not listed or any(later <= earlier for earlier, later in itertools.pairwise(bounds)):
            raise ValueError(
                bad_value("configuration", "phase_bounds_s", bounds, "seconds above 0, ascending, at least one")
            )
        object.__setattr__(self, "phase_bounds_s", tuple(float(bound) for bound in bounds))  # a list, from YAML

    def needs_curve(self, num_frames: int) -> bool:
        """True where the choice among so many frames depends on the bolus curve."""
        return self.kind == "contrast" and num_frames > self.max_frames


def _is_positive(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]


def choose_frames(
    frame_times_ms: np.ndarray,
    choice: FrameChoice,
    curve: np.ndarray | None = None,
    item: object = "sequence",
) -> np.ndarray:
    """0-based indices of the frames to read, ascending, each once, at least one, (n,) int64.

    A choice that goes by times is made among the frames whose time is known.

    Args:
        frame_times_ms: of all frames, (T,) float64, never decreasing, NaN = unknown; T at least 1.
        choice: how.
        curve: contrast of each frame, (T,), as `bolus.read_curve` has it; where `choice.needs_curve(T)`.
        item: what is being read, for messages.

    Raises:
        SequenceError: the choice goes by times, and they are unknown.
        ValueError: a curve is needed and does not fit the frames.
    """
    num_frames = len(frame_times_ms)
    known = np.flatnonzero(np.isfinite(frame_times_ms))
    if choice.kind in NEED_TIMES and len(known) < min(2, num_frames):
        raise SequenceError(
            bad_value(
                item,
                "frame_times_ms",
                f"unknown for {num_frames - len(known)} of {num_frames} frames",
                f"known times for frame_choice {choice.kind}",
                "Choose another frame_choice, or give frame_times_ms in the datalist.",
            )
        )
    if choice.kind in NEED_TIMES and len(known) < num_frames:
        return known[choose_frames(frame_times_ms[known], choice, item=item)]
    if choice.needs_curve(num_frames) and (curve is None or np.shape(curve) != (num_frames,)):
        found = "absent" if curve is None else f"of shape {np.shape(curve)}"
        raise ValueError(bad_value(item, "bolus curve", found, f"one value for each of {num_frames} frames"))
    match choice.kind:
        case "every_ms":
            return _nearest_to_multiples(frame_times_ms, choice.every_ms)[: choice.max_frames]
        case "one_per_phase":
            phases = _phases(frame_times_ms, choice.phase_bounds_s)
            return np.concatenate([_spread(frames, 1, frame_times_ms) for frames in phases])
    if choice.kind == "all" or num_frames <= choice.max_frames:
        return np.arange(num_frames)
    match choice.kind:
        case "last":
            return np.arange(num_frames - choice.max_frames, num_frames)
        case "contrast":
            first = int(np.argmax(curve)) - choice.max_frames // 2  # type: ignore[arg-type]
            first = min(max(first, 0), num_frames - choice.max_frames)
            return np.arange(first, first + choice.max_frames)
        case "phase_stratified":
            phases = _phases(frame_times_ms, choice.phase_bounds_s)
            counts = _even_shares([len(frames) for frames in phases], choice.max_frames)
            chosen = [_spread(frames, count, frame_times_ms) for frames, count in zip(phases, counts, strict=True)]
            return np.concatenate(chosen)
    return _evenly(num_frames, choice.max_frames)


def _evenly(num_frames: int, count: int) -> np.ndarray:
    return np.linspace(0, num_frames - 1, count).round().astype(np.int64)


def _nearest_to_multiples(frame_times_ms: np.ndarray, every_ms: float) -> np.ndarray:
    """First of the frames nearest to each multiple that the run reaches, (n,) int64.

    A frame is chosen if a multiple lies between the middles of the gaps to its neighbours. So the work is that of the
    frames, and not of the multiples, which are without number for a tiny step.
    """
    times, frames = np.unique(frame_times_ms - frame_times_ms[0], return_index=True)
    cell_ends = np.append((times[:-1] + times[1:]) / 2, times[-1] + ROUNDING * every_ms)  # the middle: the earlier
    multiples = np.floor(cell_ends / every_ms)  # the last one up to the end of each cell
    return frames[np.diff(multiples, prepend=-1.0) > 0].astype(np.int64)


def _phases(frame_times_ms: np.ndarray, bounds_s: tuple[float, ...]) -> list[np.ndarray]:
    """Indices of the frames of each phase that holds any, in the order of time."""
    seconds = (frame_times_ms - frame_times_ms[0]) / 1000
    phase = np.searchsorted(bounds_s, seconds, side="right")
    return [np.flatnonzero(phase == number) for number in np.unique(phase)]


def _spread(frames: np.ndarray, count: int, frame_times_ms: np.ndarray) -> np.ndarray:
    """`count` of the frames of one phase: spread evenly, or the one nearest to the middle of its time."""
    if count != 1:
        return frames[_evenly(len(frames), count)]
    times = frame_times_ms[frames]
    return frames[[np.abs(times - (times[0] + times[-1]) / 2).argmin()]]


def _even_shares(sizes: list[int], total: int) -> list[int]:
    """How many of `total` each phase gives: as even as the sizes allow, the earlier phase first."""
    shares = [0] * len(sizes)
    for _ in range(min(total, sum(sizes))):
        open_phases = [phase for phase, size in enumerate(sizes) if shares[phase] < size]
        shares[min(open_phases, key=lambda phase: shares[phase])] += 1
    return shares


def jitter(
    indices: np.ndarray, num_frames: int, amount: float, rng: np.random.RandomState | np.random.Generator
) -> np.ndarray:
    """The chosen frames moved at random in time, each within its own share, (n,) int64, ascending, each once.

    The share of a frame ends half-way to its neighbours, and as far away on the side where it has none. A frame alone
    stays where it is. The same state of `rng` gives the same frames.

    Args:
        indices: ascending, each once, (n,).
        num_frames: T.
        amount: 0 leaves the frames, 1 uses the whole share.
        rng: source of the randomness; `n` numbers are drawn.

    Raises:
        ValueError: `amount` is outside [0, 1].
    """
    if not 0 <= amount <= 1:
        raise ValueError(bad_value("configuration", "temporal jitter", amount, "a number in [0, 1]"))
    draws = rng.random(len(indices))
    if len(indices) < 2:
        return np.array(indices, dtype=np.int64)
    gaps = np.diff(indices)
    before = np.concatenate(([gaps[0] // 2], (gaps - 1) // 2))  # the two shares of a gap never meet
    after = np.append(gaps // 2, gaps[-1] // 2)
    lowest = np.maximum(indices - np.round(amount * before), 0)
    highest = np.minimum(indices + np.round(amount * after), num_frames - 1)
    return (lowest + np.floor(draws * (highest - lowest + 1))).astype(np.int64)

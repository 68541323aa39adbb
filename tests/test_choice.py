"""Frame choice: which frames, for any times and any number of them; settings and unknown times that are refused."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.errors import SequenceError
from scripts.sequences.choice import FRAME_CHOICES, FrameChoice, choose_frames, jitter
from tests.conftest import assert_message

UNKNOWN = np.full(30, np.nan)
GAPS_MS = st.lists(st.sampled_from([0, 0, 1, 3, 40, 133, 7_000, 90_000, 400_000]), max_size=120)


def at(*times_ms: float) -> np.ndarray:
    return np.array(times_ms, dtype=np.float64)


def times_of(gaps_ms: list[int]) -> np.ndarray:
    return np.cumsum([0, *gaps_ms]).astype(np.float64)


def phase_of(frame_times_ms: np.ndarray, bounds_s: tuple[float, ...] = (103.0, 518.0)) -> list[int]:
    return [sum(time / 1000 >= bound for bound in bounds_s) for time in frame_times_ms]


@given(
    kind=st.sampled_from(FRAME_CHOICES),
    gaps_ms=GAPS_MS,
    max_frames=st.integers(1, 40),
    every_ms=st.sampled_from([0.001, 1.0, 33.3, 1000.0, 1e9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=500, deadline=None)
def test_every_choice_gives_ascending_frames_of_the_sequence_each_once(kind, gaps_ms, max_frames, every_ms, seed):
    times = times_of(gaps_ms)
    before = times.copy()
    choice = FrameChoice(kind, max_frames, every_ms)
    curve = np.random.default_rng(seed).random(len(times))
    chosen = choose_frames(times, choice, curve)
    assert chosen.dtype == np.int64 and chosen.ndim == 1 and len(chosen) >= 1
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0 and chosen[-1] < len(times)
    if kind not in ("all", "one_per_phase"):
        assert len(chosen) <= max_frames
    if kind in ("uniform", "last", "contrast", "phase_stratified"):
        assert len(chosen) == min(max_frames, len(times))
    np.testing.assert_array_equal(choose_frames(times, choice, curve), chosen)
    np.testing.assert_array_equal(times, before)


@pytest.mark.parametrize("kind", ["all", "uniform", "last", "contrast"])
def test_choices_by_position_take_unknown_times(kind):
    chosen = choose_frames(UNKNOWN, FrameChoice(kind, 5), curve=np.arange(30.0))
    assert len(chosen) == (30 if kind == "all" else 5)


@pytest.mark.parametrize("kind", ["every_ms", "phase_stratified", "one_per_phase"])
@pytest.mark.parametrize("unknown", [[0], [17], [3, 4, 29]])
def test_choices_by_time_are_made_among_the_frames_of_known_time(kind, unknown):
    times = np.arange(30.0) * 40_000
    known = np.delete(np.arange(30), unknown)
    choice = FrameChoice(kind, max_frames=7, every_ms=90_000)
    expected = known[choose_frames(times[known], choice)]
    times[unknown] = np.nan
    assert len(expected) > 2
    assert choose_frames(times, choice).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["every_ms", "phase_stratified", "one_per_phase"])
@pytest.mark.parametrize("unknown", [list(range(1, 30)), list(range(30))])
def test_choices_by_time_refuse_unknown_times_and_say_the_way_out(kind, unknown):
    times = np.arange(30.0)
    times[unknown] = np.nan
    with pytest.raises(SequenceError) as refused:
        choose_frames(times, FrameChoice(kind, 40), item="exam/run.dcm")
    assert_message(
        refused.value,
        "exam/run.dcm",
        "frame_times_ms",
        f"{len(unknown)} of 30",
        kind,
        "another frame_choice",
        "datalist",
    )


# --- all, uniform, last ---


@pytest.mark.parametrize("num_frames", [1, 7, 200])
def test_all_ignores_max_frames(num_frames):
    np.testing.assert_array_equal(choose_frames(np.zeros(num_frames), FrameChoice("all", 3)), np.arange(num_frames))


@given(num_frames=st.integers(1, 2000), max_frames=st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_uniform_keeps_first_and_last_and_even_steps(num_frames, max_frames):
    chosen = choose_frames(np.full(num_frames, np.nan), FrameChoice("uniform", max_frames))
    assert len(chosen) == min(num_frames, max_frames)
    assert chosen[0] == 0
    assert max_frames == 1 or chosen[-1] == num_frames - 1
    steps = np.diff(chosen)
    assert (steps >= 1).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_last_is_the_end_of_the_sequence():
    assert choose_frames(UNKNOWN, FrameChoice("last", 3)).tolist() == [27, 28, 29]
    assert choose_frames(UNKNOWN[:2], FrameChoice("last", 3)).tolist() == [0, 1]


# --- every_ms ---


@pytest.mark.parametrize(
    ("times_ms", "every_ms", "expected"),
    [
        ([0, 10, 20, 30, 40], 20, [0, 2, 4]),
        ([0, 10, 20, 30, 40], 10, [0, 1, 2, 3, 4]),
        ([0, 10, 20, 30, 40], 3, [0, 1, 2, 3, 4]),  # more multiples than frames: each frame once
        ([0, 10, 20, 30, 40], 1000, [0]),
        ([0, 10, 20, 30, 40], 25, [0, 2]),  # 25 is as near to 20 as to 30: the earlier
        ([0, 1, 2, 100, 101, 200], 100, [0, 3, 5]),
        ([0, 0, 50, 50, 100, 100], 50, [0, 2, 4]),  # of equal times the first
        ([0, 0, 0], 10, [0]),
        ([500, 510, 520], 20, [0, 2]),  # since the first frame
        ([0], 33, [0]),
        (np.arange(20) * 33.3, 33.3, list(range(20))),
        ([0, 66.66, 133.32, 199.98], 66.67, [0, 1, 2, 3]),  # times rounded down
        ([0, 1000], 300, [0, 1]),  # 300 is nearest to 0; 600 and 900 to 1000
    ],
)
def test_every_ms_takes_the_frame_nearest_to_each_multiple(times_ms, every_ms, expected):
    assert choose_frames(at(*times_ms), FrameChoice("every_ms", 20, every_ms)).tolist() == expected


@given(gaps_ms=st.lists(st.integers(0, 60), max_size=60), every_ms=st.integers(1, 90))
@settings(max_examples=300, deadline=None)
def test_every_ms_agrees_with_a_search_over_all_multiples(gaps_ms, every_ms):
    times = times_of(gaps_ms)
    multiples = np.arange(0, times[-1] + 1, every_ms)
    expected = sorted({int(np.abs(times - multiple).argmin()) for multiple in multiples})
    assert choose_frames(times, FrameChoice("every_ms", 1000, float(every_ms))).tolist() == expected


def test_every_ms_with_too_many_frames_cuts_the_end():
    times = np.arange(100) * 10.0
    assert choose_frames(times, FrameChoice("every_ms", 4, 20.0)).tolist() == [0, 2, 4, 6]


def test_every_ms_of_a_tiny_step_over_an_hour_is_quick():
    times = np.linspace(0, 3.6e6, 200)
    assert len(choose_frames(times, FrameChoice("every_ms", 300, 1e-6))) == 200


# --- contrast ---


@pytest.mark.parametrize(
    ("peak", "expected"), [(50, [48, 49, 50, 51]), (0, [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (99, [96, 97, 98, 99])]
)
def test_contrast_is_consecutive_around_the_peak_and_inside(peak, expected):
    curve = -np.abs(np.arange(100.0) - peak)
    assert choose_frames(np.full(100, np.nan), FrameChoice("contrast", 4), curve).tolist() == expected


@given(num_frames=st.integers(1, 200), max_frames=st.integers(1, 60), peak=st.integers(0, 199))
@settings(max_examples=200, deadline=None)
def test_contrast_always_holds_the_peak(num_frames, max_frames, peak):
    peak = min(peak, num_frames - 1)
    curve = -np.abs(np.arange(num_frames) - float(peak))
    chosen = choose_frames(np.full(num_frames, np.nan), FrameChoice("contrast", max_frames), curve)
    assert peak in chosen
    assert (np.diff(chosen) == 1).all()
    assert len(chosen) == min(num_frames, max_frames)


@pytest.mark.parametrize(("curve", "found"), [(None, "absent"), (np.zeros(29), "of shape (29,)")])
def test_contrast_without_a_fitting_curve_is_refused(curve, found):
    with pytest.raises(ValueError) as refused:
        choose_frames(UNKNOWN, FrameChoice("contrast", 5), curve, item="exam/run.dcm")
    assert_message(refused.value, "exam/run.dcm", "bolus curve", found, "30 frames")


def test_contrast_of_a_short_sequence_needs_no_curve():
    choice = FrameChoice("contrast", 5)
    assert not choice.needs_curve(5) and choice.needs_curve(6)
    assert choose_frames(UNKNOWN[:5], choice).tolist() == [0, 1, 2, 3, 4]
    assert not FrameChoice("uniform", 5).needs_curve(6)


# --- phases ---


def test_phase_stratified_shares_frames_evenly_and_spreads_them_in_each_phase():
    times = np.concatenate([np.linspace(0, 60, 60), np.linspace(110, 300, 12), [600, 700, 800]]) * 1000
    chosen = choose_frames(times, FrameChoice("phase_stratified", 12))
    phases = np.array(phase_of(times))[chosen]
    assert [(phases == phase).sum() for phase in range(3)] == [5, 4, 3]  # the late phase has no fourth
    assert chosen[:5].tolist() == [0, 15, 30, 44, 59]
    assert chosen[5:].tolist() == [60, 64, 67, 71, 72, 73, 74]


@given(gaps_ms=GAPS_MS, max_frames=st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_phase_stratified_is_as_even_as_the_phases_allow(gaps_ms, max_frames):
    times = times_of(gaps_ms)
    phases = np.array(phase_of(times))
    chosen = choose_frames(times, FrameChoice("phase_stratified", max_frames))
    sizes = {phase: int((phases == phase).sum()) for phase in set(phases.tolist())}
    given_frames = {phase: int((phases[chosen] == phase).sum()) for phase in sizes}
    assert sum(given_frames.values()) == min(max_frames, len(times))
    for poor, rich in itertools.permutations(sizes, 2):  # who has two fewer has no more to give
        assert given_frames[rich] - given_frames[poor] <= 1 or given_frames[poor] == sizes[poor]


@given(gaps_ms=GAPS_MS)
@settings(max_examples=300, deadline=None)
def test_one_per_phase_is_the_frame_nearest_to_the_middle_of_each_phase(gaps_ms):
    times = times_of(gaps_ms)
    phases = np.array(phase_of(times))
    chosen = choose_frames(times, FrameChoice("one_per_phase", 1)).tolist()
    assert phases[chosen].tolist() == sorted(set(phases.tolist()))
    for frame in chosen:
        members = times[phases == phases[frame]]
        distances = np.abs(members - (members[0] + members[-1]) / 2)
        assert abs(times[frame] - (members[0] + members[-1]) / 2) == distances.min()


@pytest.mark.parametrize(
    ("bounds_s", "expected"),
    [((103.0, 518.0), [1, 4, 6]), ((1000.0,), [4]), ((60.0, 103.0, 518.0), [0, 2, 4, 6])],
)
def test_one_per_phase_follows_the_bounds_and_a_frame_on_one_is_of_the_later_phase(bounds_s, expected):
    times = at(5, 45, 65, 108, 250, 400, 523) * 1000  # 0, 40, 60, 103, 245, 395 and 518 s since the first
    assert choose_frames(times, FrameChoice("one_per_phase", phase_bounds_s=bounds_s)).tolist() == expected


# --- settings ---


@pytest.mark.parametrize(
    ("field", "knob", "values"),
    [
        ("kind", "frame_choice", ["random", "", None, "Uniform"]),
        ("max_frames", "max_frames", [0, -1, 2.0, "20", None, True]),
        ("every_ms", "every_ms", [0, -1.0, float("nan"), float("inf"), "33", None, True]),
        (
            "phase_bounds_s",
            "phase_bounds_s",
            [(), (0.0, 5.0), (5.0, 5.0), (518.0, 103.0), (-1.0,), (float("nan"),), ("103", "518"), 103.0, None, "ab"],
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_when_it_is_made(field, knob, values):
    for value in values:
        with pytest.raises(ValueError) as refused:
            FrameChoice(**{field: value})
        assert_message(refused.value, "configuration", knob, str(value) or "empty", "needs")


def test_a_choice_is_fixed_and_equal_settings_are_equal():
    choice = FrameChoice("phase_stratified", phase_bounds_s=[60, 300])  # type: ignore[arg-type]  # a list, from YAML
    assert choice == FrameChoice("phase_stratified", phase_bounds_s=(60.0, 300.0))
    assert hash(choice) == hash(FrameChoice("phase_stratified", phase_bounds_s=(60.0, 300.0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice.max_frames = 3  # type: ignore[misc]


# --- jitter ---


@st.composite
def chosen_frames(draw):
    num_frames = draw(st.integers(1, 200))
    return num_frames, np.array(sorted(draw(st.sets(st.integers(0, num_frames - 1), min_size=1))))


@given(chosen=chosen_frames(), amount=st.floats(0, 1), seed=st.integers(0, 2**32 - 1), legacy=st.booleans())
@settings(max_examples=500, deadline=None)
def test_jitter_keeps_count_order_and_each_frame_in_its_share(chosen, amount, seed, legacy):
    num_frames, indices = chosen
    new_rng = np.random.RandomState if legacy else np.random.default_rng  # MONAI's state is a RandomState
    before = indices.copy()
    moved = jitter(indices, num_frames, amount, new_rng(seed))
    assert moved.dtype == np.int64 and len(moved) == len(indices)
    assert (np.diff(moved) > 0).all()
    assert moved[0] >= 0 and moved[-1] < num_frames
    half_gaps = np.diff(indices) / 2
    if len(indices) > 1:
        assert (
            np.abs(moved - indices)
            <= np.maximum(np.append(half_gaps, half_gaps[-1]), np.insert(half_gaps, 0, half_gaps[0]))
        ).all()
    np.testing.assert_array_equal(jitter(indices, num_frames, amount, new_rng(seed)), moved)
    np.testing.assert_array_equal(indices, before)


def test_jitter_of_amount_zero_or_of_a_frame_alone_moves_nothing():
    rng = np.random.default_rng(0)
    indices = np.array([0, 7, 20, 96])
    np.testing.assert_array_equal(jitter(indices, 100, 0.0, rng), indices)
    assert jitter(np.array([13]), 100, 1.0, rng).tolist() == [13]


@pytest.mark.parametrize("num_frames", [1, 2, 19, 20, 200])
def test_jitter_of_all_frames_moves_nothing(num_frames):
    indices = np.arange(num_frames)
    np.testing.assert_array_equal(jitter(indices, num_frames, 1.0, np.random.default_rng(1)), indices)


def test_jitter_reaches_every_frame_of_a_share_equally_often():
    rng = np.random.default_rng(0)
    indices = np.array([2, 8, 14])  # shares 0-5, 6-11, 12-17: three frames before and two or three after
    moved = np.stack([jitter(indices, 18, 1.0, rng) for _ in range(6000)])
    for column, (first, last) in enumerate([(0, 5), (6, 11), (12, 17)]):
        frames, counts = np.unique(moved[:, column], return_counts=True)
        assert frames.tolist() == list(range(max(first, indices[column] - 3), last + 1))
        assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()


def test_jitter_of_half_the_amount_goes_half_as_far():
    indices = np.array([0, 20, 40, 60])
    draws = [jitter(indices, 61, 0.5, np.random.default_rng(seed)) for seed in range(500)]
    assert np.abs(np.stack(draws) - indices).max() == 5


def test_jitter_of_consecutive_frames_inside_a_run_stays_with_them():
    indices = np.arange(40, 60)
    np.testing.assert_array_equal(np.clip(jitter(indices, 200, 1.0, np.random.default_rng(0)), 39, 60), indices)


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan")])
def test_jitter_of_an_impossible_amount_is_refused(amount):
    with pytest.raises(ValueError) as refused:
        jitter(np.array([0, 5]), 6, amount, np.random.default_rng(0))
    assert_message(refused.value, "temporal jitter", amount, "[0, 1]")

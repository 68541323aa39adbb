"""Elapsed time as numbers: irregular gaps, unknown times, padding."""

import torch

from scripts.networks.time_encoding import NUM_PERIODS, TIME_FEATURES, encode_times, real_frames, waves


def test_encoded_times_are_logs_flags_and_phases_and_zero_where_unknown_or_padded():
    times = torch.tensor([[0.0, 100.0, torch.nan, 1000.0, 5000.0, 7000.0]])
    found = encode_times(times, torch.tensor([[True] * 5 + [False]]))[0]
    assert found.shape == (6, TIME_FEATURES)
    seconds_and_gaps = torch.tensor([[0.0, 0.0], [0.1, 0.1], [0.0, 0.0], [1.0, 0.0], [5.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(found[:, :2], torch.log1p(10 * seconds_and_gaps))
    flags = [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]  # time known, gap known
    assert found[:, 2:4].tolist() == flags
    known = torch.tensor([True, True, False, True, True, False])
    torch.testing.assert_close(found[known, 4:], waves(torch.tensor([0.0, 0.1, 1.0, 5.0])))
    assert found[~known].abs().sum() == 0


def test_encoding_of_a_sequence_does_not_depend_on_the_padding_after_it_or_on_other_sequences():
    times = torch.tensor([[0.0, 33.0, 700.0], [0.0, 1e5, 4e5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    torch.testing.assert_close(encode_times(times, mask)[:1, :2], encode_times(times[:1, :2], mask[:1, :2]))


def test_times_that_are_infinite_or_run_backwards_give_finite_numbers():
    times = torch.tensor([[0.0, 500.0, 100.0, torch.inf, -torch.inf, -20.0]])
    found = encode_times(times, torch.ones(1, 6, dtype=torch.bool))
    assert bool(torch.isfinite(found).all())
    assert found[0, 2, 1] == 0  # no gap is negative


def test_times_a_third_of_a_second_apart_and_five_minutes_apart_are_told_apart():
    """Whatever the scale, doubling a time moves its encoding by a distance of order one."""
    for seconds in (0.3, 3.0, 30.0, 300.0):
        pair = encode_times(torch.tensor([[0.0, 1000.0 * seconds]]), torch.ones(1, 2, dtype=torch.bool))[0, 1]
        twice = encode_times(torch.tensor([[0.0, 2000.0 * seconds]]), torch.ones(1, 2, dtype=torch.bool))[0, 1]
        assert 0.3 < float((pair - twice).norm()) < 6.0


def test_waves_are_sines_and_cosines_whose_periods_grow_by_one_factor():
    values = torch.tensor([0.0, 0.25, 2048.0])
    found = waves(values)
    assert found.shape == (3, 2 * NUM_PERIODS)
    torch.testing.assert_close(found[0], torch.tensor([0.0] * NUM_PERIODS + [1.0] * NUM_PERIODS))
    torch.testing.assert_close(found[1, NUM_PERIODS], torch.tensor(1.0))  # one whole shortest period
    torch.testing.assert_close(found[2, -1], torch.tensor(1.0))  # one whole longest period


def test_real_frames_are_the_first_of_each_sequence():
    mask = real_frames(torch.zeros(2, 3, 1), torch.tensor([1, 3]))
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert bool(real_frames(torch.zeros(2, 3, 1), None).all())

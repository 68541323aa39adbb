"""Batches of sequences alike in length: each once, a share for each process, little padding, and still random."""

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch.utils.data import DataLoader

from scripts.features.sampling import LengthBatches
from tests.conftest import assert_message

UNIFORM = np.random.default_rng(0).integers(5, 61, 3000)


def epoch(sampler: LengthBatches) -> list[list[int]]:
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def padding(lengths: np.ndarray, batches: list[list[int]]) -> float:
    """Share of the frames of padded batches that are padding."""
    return 1 - sum(lengths[b].sum() for b in batches) / sum(len(b) * lengths[b].max() for b in batches)


@pytest.mark.parametrize("num_sequences", [1, 7, 32, 33, 100, 3000])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_an_epoch_has_every_sequence_once_in_batches_of_nearly_one_size(num_sequences, batch_size):
    sampler = LengthBatches(UNIFORM[:num_sequences], batch_size)
    for _ in range(2):
        batches = epoch(sampler)
        assert sorted(n for batch in batches for n in batch) == list(range(num_sequences))
        assert len(batches) == -(-num_sequences // batch_size)
        sizes = {len(batch) for batch in batches}
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("num_sequences", "batch_size"), [(3000, 32), (64, 32), (65, 32), (5, 2), (3, 32), (7, 1)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_an_epoch_without_overlap_in_equal_numbers_of_batches(num_sequences, batch_size, world_size):
    samplers = [LengthBatches(UNIFORM[:num_sequences], batch_size, rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        shares = [epoch(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        assert sorted(n for share in shares for batch in share for n in batch) == list(range(num_sequences))
        sizes = [len(batch) for share in shares for batch in share]
        assert min(sizes) >= 1 and max(sizes) <= batch_size + (batch_size == 1)


def test_processes_get_batches_of_like_length_at_each_step_and_in_all_as_long_ones():
    shares = [epoch(LengthBatches(UNIFORM, 32, rank, 2)) for rank in range(2)]
    longest = np.array([[UNIFORM[batch].max() for batch in share] for share in shares])
    assert np.abs(longest[0] - longest[1]).mean() < 3
    assert abs(longest[0].mean() - longest[1].mean()) < 1


def test_fewer_sequences_than_processes_are_refused():
    with pytest.raises(ValueError) as refused:
        LengthBatches([4, 4], 8, world_size=3)
    assert_message(refused.value, "training", "2 sequences", "3 processes")


@pytest.mark.parametrize(("batch_size", "most"), [(32, 0.04), (64, 0.08)])
def test_padding_is_small_where_plain_batches_are_nearly_half_of_it(batch_size, most):
    order = np.random.default_rng(1).permutation(len(UNIFORM)).tolist()
    assert padding(UNIFORM, [order[n : n + batch_size] for n in range(0, len(order), batch_size)]) > 0.4
    assert padding(UNIFORM, epoch(LengthBatches(UNIFORM, batch_size))) < most


def test_batches_repeat_with_seed_and_epoch_and_differ_otherwise():
    sampler, again = LengthBatches(UNIFORM, 32, seed=1), LengthBatches(UNIFORM, 32, seed=1)
    first, second = epoch(sampler), epoch(sampler)
    assert first == epoch(again) and second == epoch(again)
    assert first != second
    assert first != epoch(LengthBatches(UNIFORM, 32, seed=2))
    again.set_epoch(1)
    assert epoch(again) == second
    again.set_epoch(0)
    assert [epoch(again), epoch(again)] == [first, second]


def test_batches_come_in_random_order_and_a_sequence_in_other_company_each_epoch():
    sampler = LengthBatches(UNIFORM, 32)
    first, second = epoch(sampler), epoch(sampler)
    longest = np.array([UNIFORM[batch].max() for batch in first])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3
    company = {n: set(batch) for batch in first for n in batch}
    kept = np.mean([len(company[n] & set(batch)) - 1 for batch in second for n in batch])
    assert kept < 6  # of 31


def test_equal_lengths_make_plain_random_batches():
    batches = epoch(LengthBatches(np.full(1000, 16), 10))
    positions = np.array(batches)
    assert positions.shape == (100, 10)
    spread = positions.std(axis=1).mean()
    assert 0.9 < spread / np.arange(1000).std() < 1.1  # of neighbours it would be 0.01


def test_global_random_states_are_left_alone():
    def states() -> tuple:
        return random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    epoch(LengthBatches(UNIFORM, 32))
    assert states() == before


def test_every_epoch_of_an_engine_is_another_one():
    lengths, seen = UNIFORM[:100], []
    loader = DataLoader(np.arange(100), batch_sampler=LengthBatches(lengths, 8), collate_fn=list)
    Engine(lambda engine, batch: seen.append([int(n) for n in batch])).run(loader, max_epochs=3)
    sampler = LengthBatches(lengths, 8)
    assert seen == [batch for _ in range(3) for batch in epoch(sampler)]


# --- groups ---

UNEVEN = np.repeat([0, 1, 2], [900, 90, 10])


@pytest.mark.parametrize("num_sequences", [1000, 997])
def test_groups_are_drawn_evenly_in_an_epoch_of_as_many_sequences(num_sequences):
    groups = UNEVEN[-num_sequences:]
    sampler = LengthBatches(UNIFORM[:num_sequences], 32, groups=groups)
    drawn = [[n for batch in epoch(sampler) for n in batch] for _ in range(2)]
    for positions in drawn:
        assert len(positions) == num_sequences
        counts = np.bincount(groups[positions])
        assert counts.max() - counts.min() <= 1
        for group in range(3):
            times = np.bincount(positions, minlength=num_sequences)[groups == group]
            assert times.max() - times.min() <= 1  # none a second time before all of its group were drawn once
    assert set(drawn[0]) != set(drawn[1])  # of the large group others


def test_groups_leave_batches_alike_in_length_and_repeat_with_the_seed():
    lengths = UNIFORM[:1000]
    sampler = LengthBatches(lengths, 32, seed=3, groups=UNEVEN)
    first = epoch(sampler)
    assert padding(lengths, first) < 0.12
    assert first == epoch(LengthBatches(lengths, 32, seed=3, groups=UNEVEN)) != epoch(sampler)


def test_processes_share_an_epoch_of_groups():
    one = epoch(LengthBatches(UNIFORM[:1000], 16, groups=UNEVEN))
    shares = [epoch(LengthBatches(UNIFORM[:1000], 8, rank, 2, groups=UNEVEN)) for rank in range(2)]
    for whole, *parts in zip(one, *shares, strict=True):
        assert sorted(whole) == sorted(parts[0] + parts[1])


def test_groups_that_all_have_one_sequence_are_drawn_once_each():
    sampler = LengthBatches(UNIFORM[:1000], 64, groups=np.random.default_rng(0).permutation(1000))
    assert sorted(n for batch in epoch(sampler) for n in batch) == list(range(1000))


# --- batches of one step ---


@pytest.mark.parametrize("num_sequences", [100, 23, 3000])
@pytest.mark.parametrize(("together", "world_size"), [(2, 1), (3, 1), (2, 2)])
def test_an_epoch_has_whole_steps_of_batches_of_nearly_one_size(num_sequences, together, world_size):
    lengths = UNIFORM[:num_sequences]
    samplers = [LengthBatches(lengths, 4, rank, world_size, together=together) for rank in range(world_size)]
    shares = [epoch(sampler) for sampler in samplers]
    sizes = [len(batch) for share in shares for batch in share]
    assert all(len(share) % together == 0 for share in shares)
    assert sum(sizes) == num_sequences and max(sizes) <= 4 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_sequences", [100, 64, 3000])
@pytest.mark.parametrize(("batch_size", "together", "world_size"), [(8, 2, 1), (4, 4, 1), (8, 1, 2), (2, 4, 2)])
def test_a_step_has_the_same_sequences_however_it_is_cut_and_shared(num_sequences, batch_size, together, world_size):
    lengths = UNIFORM[:num_sequences]
    ranks = [LengthBatches(lengths, batch_size, rank, world_size, together=together) for rank in range(world_size)]
    whole = LengthBatches(lengths, 16)
    for _ in range(2):
        shares = [epoch(sampler) for sampler in ranks]
        steps = [
            [n for share in shares for b in share[at : at + together] for n in b]
            for at in range(0, len(shares[0]), together)
        ]
        assert [sorted(step) for step in steps] == [sorted(step) for step in epoch(whole)]


@pytest.mark.parametrize(
    ("num_sequences", "together", "steps"), [(5, 4, [4, 1]), (8, 4, [4, 4]), (3, 4, [3]), (9, 3, [3, 3, 3])]
)
def test_batches_of_one_fill_steps_and_the_last_has_what_is_left(num_sequences, together, steps):
    batches = epoch(LengthBatches(UNIFORM[:num_sequences], 1, together=together))
    assert [len(batches[at : at + together]) for at in range(0, len(batches), together)] == steps
    assert sorted(n for batch in batches for n in batch) == list(range(num_sequences))
    assert {len(batch) for batch in batches} == {1}

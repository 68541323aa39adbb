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

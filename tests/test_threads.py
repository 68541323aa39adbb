"""The number of threads: the fastest is measured and set, a number is checked, and the head is left as it was."""

import copy
import logging
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from scripts.features.batching import FeatureDataset
from scripts.keys import ENTRY, LABEL, SOURCE
from scripts.networks.heads import make_head
from scripts.store.store import FeatureStore, StoredSequence
from scripts.training.threads import fastest, set_threads
from tests.conftest import assert_message

D, K = 6, 3


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dataset(tmp_path) -> FeatureDataset:
    store = FeatureStore.create(tmp_path / "features", {"test": "threads"})
    generator = torch.Generator().manual_seed(0)
    with store.writer() as writer:
        for n in range(20):
            features = torch.randn(n + 1, D, generator=generator).half()
            writer.add(f"{n:064x}", StoredSequence(features, torch.arange(n + 1.0), torch.arange(n + 1)))
    items = [{ENTRY: key, SOURCE: key[:16], LABEL: 0} for key in sorted(store.keys())]
    return FeatureDataset(items, store, frame_dropout=0.5)


class Sleeper(nn.Module):
    """A head that takes as long as `milliseconds` says for the number of threads, and keeps what it is given."""

    def __init__(self, milliseconds: dict[int, float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.milliseconds = milliseconds
        self.seen: list[tuple] = []

    def __deepcopy__(self, memo: dict) -> "Sleeper":
        copied = Sleeper(self.milliseconds)
        copied.seen = self.seen
        return copied

    def forward(self, features, lengths, frame_times_ms):
        self.seen.append((torch.get_num_threads(), tuple(features.shape), lengths.tolist(), self.training))
        time.sleep(self.milliseconds[torch.get_num_threads()] / 1000)
        return self.weight * features.sum()


class Normed(nn.Module):
    """A head with dropout, and with running statistics, which a batch in training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(D), make_head("gru", D, K, hidden_size=4)

    def forward(self, features, lengths, frame_times_ms):
        return self.head(self.norm(features.transpose(1, 2)).transpose(1, 2), lengths, frame_times_ms)


@pytest.mark.parametrize(("milliseconds", "expected"), [({1: 2, 2: 6}, 1), ({1: 6, 2: 2}, 2)])
def test_the_fastest_number_is_measured_set_and_said(dataset, caplog, milliseconds, expected):
    with caplog.at_level(logging.INFO, logger="angiography"):
        set_threads("auto", Sleeper(milliseconds), dataset, 4, "cpu")
    assert torch.get_num_threads() == expected
    other = "2 take" if expected == 1 else "1 takes"
    assert f"training on {expected} of 2 threads: 2." in caplog.text
    assert f" ms a batch, {other} 6." in caplog.text


def test_the_batch_measured_is_of_middle_lengths_and_in_training(dataset):
    head = Sleeper({1: 0, 2: 0})
    set_threads("auto", head, dataset, 4, "cpu")
    assert {threads for threads, *_ in head.seen} == {1, 2}
    assert {tuple(rest[1]) for _, *rest in head.seen} == {(9, 10, 11, 12)}
    assert {(shape, training) for _, shape, _, training in head.seen} == {((4, 12, D), True)}


def test_measuring_ends_soon_also_for_a_slow_head(dataset):
    head, start = Sleeper({1: 300, 2: 300}), time.perf_counter()
    set_threads("auto", head, dataset, 4, "cpu")
    assert time.perf_counter() - start < 3
    assert len(head.seen) >= 4


def test_head_dataset_and_random_states_are_as_they_were_to_the_bit(dataset):
    def states() -> list:
        read = dataset.readings.tolist()
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), read]  # noqa: NPY002

    head = Normed().eval()
    some, *_ = head.parameters()
    some.grad = torch.full_like(some, 3.0)
    kept, gradients, before = copy.deepcopy(head.state_dict()), [p.grad for p in head.parameters()], states()
    set_threads("auto", head, dataset, 4, "cpu")
    assert states() == before
    assert head.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in head.state_dict().items())
    assert all(now is then for now, then in zip((p.grad for p in head.parameters()), gradients, strict=True))
    assert bool((some.grad == 3).all())
    assert not head.training


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_threads_are_tried_than_pytorch_has(dataset, limit):
    torch.set_num_threads(limit)
    head = Sleeper({1: 1, 2: 6, 3: 6})
    set_threads("auto", head, dataset, 4, "cpu")
    assert {threads for threads, *_ in head.seen} == ({1, 2, 3} if limit == 3 else set())
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("taken_ms", "expected"),
    [
        ({1: 10.0}, 1),
        ({1: 10.0, 2: 9.5}, 1),
        ({1: 10.0, 2: 6.0, 4: 5.9, 8: 20.0}, 2),
        ({1: 10.0, 2: 11.0, 4: 3.0}, 4),
    ],
)
def test_more_threads_are_used_only_where_they_are_clearly_faster(taken_ms, expected):
    assert fastest(taken_ms) == expected


def test_a_number_is_set_without_measuring(dataset):
    head = Sleeper({})
    set_threads(3, head, dataset, 4, "cpu")
    assert torch.get_num_threads() == 3
    assert head.seen == []


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "two", None, "1", 100_000])
def test_what_is_no_number_of_threads_is_refused(dataset, number):
    with pytest.raises(ValueError) as refused:
        set_threads(number, Sleeper({}), dataset, 4, "cpu")
    assert_message(refused.value, "configuration", "num_threads", number, "auto or a whole number of at least 1")
    assert torch.get_num_threads() == 2


def test_on_a_gpu_nothing_is_measured_or_set(dataset, caplog):
    head = Sleeper({})
    with caplog.at_level(logging.INFO, logger="angiography"):
        set_threads("auto", head, dataset, 4, torch.device("cuda"))
    assert torch.get_num_threads() == 2
    assert head.seen == []
    assert not caplog.text

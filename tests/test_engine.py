"""What MONAI's engines are given: batches, the best epoch, the scale of features, processes."""

import math

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from scripts.features.batching import collate_sequences
from scripts.keys import FEATURES, FRAME_TIMES, IMAGE, LABEL, LENGTHS, SOURCE
from scripts.networks.heads import make_head
from scripts.training.engine import (
    check_processes,
    fit_scale,
    is_better,
    likelihood_metric,
    local_device,
    prepare_batch,
    start_processes,
    stop_processes,
)
from scripts.training.losses import likelihood
from tests.conftest import assert_message

CPU = torch.device("cpu")
K = 2


def batches(count: int = 3, bad: int | None = None) -> list[dict]:
    """Batches of two sequences, of 3 and 5 frames; batch `bad` has a NaN feature."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for n in range(count):
        items = [
            {
                FEATURES: torch.randn(length, 4, generator=generator),
                FRAME_TIMES: torch.arange(length) * 100.0,
                LABEL: i,
                SOURCE: f"{n}-{i}.dcm",
            }
            for i, length in enumerate((3, 5))
        ]
        if n == bad:
            items[0][FEATURES][0, 0] = torch.nan
        out.append(collate_sequences(items))
    return out


def head_of() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_head("gru", 4, K, hidden_size=4)


def evaluator_of(data: list[dict], network: nn.Module) -> SupervisedEvaluator:
    return SupervisedEvaluator(
        device=CPU,
        val_data_loader=data,
        network=network,
        prepare_batch=prepare_batch,
        key_val_metric={"val_likelihood": likelihood_metric()},
        metric_cmp_fn=is_better,
        decollate=False,
    )


# --- batches ---


@pytest.mark.parametrize("key", [FEATURES, IMAGE])
def test_prepared_batch_is_input_label_and_the_networks_own_arguments(key):
    batch = batches(1)[0]
    batch[key] = batch.pop(FEATURES)
    inputs, label, positional, others = prepare_batch(batch, CPU)
    assert inputs is batch[key]
    assert label is batch[LABEL]
    assert positional == ()
    assert others == {LENGTHS: batch[LENGTHS], FRAME_TIMES: batch[FRAME_TIMES]}


def test_prepared_batch_without_labels_has_none():
    batch = batches(1)[0]
    del batch[LABEL]
    assert prepare_batch(batch, CPU)[1] is None


def test_network_in_the_engine_gets_lengths_and_times_of_the_batch():
    data = batches()
    evaluator = evaluator_of(data, head_of())
    evaluator.run()
    with torch.inference_mode():
        logits = [head_of().eval()(b[FEATURES], b[LENGTHS], b[FRAME_TIMES]) for b in data]
    wanted = likelihood(torch.cat(logits), torch.cat([b[LABEL] for b in data]))
    assert evaluator.state.metrics["val_likelihood"] == pytest.approx(wanted, rel=1e-5)


# --- the best epoch ---


@pytest.mark.parametrize(
    ("current", "best", "wanted"),
    [
        (0.5, 0.4, True),
        (0.4, 0.4, False),
        (0.3, 0.4, False),
        (0.1, math.nan, True),
        (0.1, -math.inf, True),
        (math.nan, 0.4, False),
        (math.nan, math.nan, False),
        (math.nan, -math.inf, False),
        (math.inf, 0.4, False),
    ],
)
def test_better_is_larger_and_nan_never_wins_or_stays(current, best, wanted):
    assert is_better(current, best) is wanted


def test_evaluator_whose_first_epoch_is_not_finite_still_finds_the_best_one():
    evaluator = evaluator_of(batches(bad=1), head_of())
    evaluator.run(1)
    assert evaluator.state.best_metric <= 0.0
    evaluator.data_loader = evaluator.state.dataloader = batches()
    evaluator.run(2)
    assert evaluator.state.best_metric_epoch == 2
    assert evaluator.state.best_metric > 0.0


# --- scale, processes ---


def test_fit_scale_gives_the_head_mean_and_deviation_of_the_dataset(monkeypatch):
    mean, std = torch.arange(4.0), torch.tensor([1.0, 2.0, 0.0, 4.0])
    monkeypatch.setattr("scripts.training.engine.feature_scale", lambda dataset: (mean, std))
    head = head_of()
    fit_scale(head, None)
    torch.testing.assert_close(head.mean, mean)
    torch.testing.assert_close(head.std, torch.tensor([1.0, 2.0, 1e-3, 4.0]))


def test_processes_without_torchrun_are_refused_and_stopping_none_does_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK is unset, needs a launch by torchrun"):
        start_processes()
    stop_processes()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("rank", "world_size", "name"), [(0, 2, "world_size"), (3, 1, "rank"), (-1, 1, "rank")])
def test_processes_that_nobody_started_are_refused(rank, world_size, name):
    check_processes(0, 1)
    with pytest.raises(ValueError) as refused:
        check_processes(rank, world_size)
    assert_message(refused.value, f"configuration: {name} is", "torchrun")


def test_device_is_this_ranks_own_gpu_and_the_cpu_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == CPU

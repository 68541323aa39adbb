"""Handlers of a small training: what an epoch draws, its loss, early stopping, what is shown and said."""

import logging
import math
import random
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from scripts.features.batching import collate_sequences
from scripts.keys import FEATURES, FRAME_TIMES, LABEL, SOURCE
from scripts.networks.heads import make_head
from scripts.training.engine import is_better, likelihood_metric, prepare_batch
from scripts.training.handlers import EpochProgress, EpochSeeds, StopEarly, TrainingLoss, mlflow_handler

CPU, K = torch.device("cpu"), 2


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
        return make_head("gru", 4, K, hidden_size=4, dropout=0.0)


def trainer_of(data: list[dict], handlers: list, max_epochs: int = 2, learning_rate: float = 0.01) -> SupervisedTrainer:
    network = head_of()
    return SupervisedTrainer(
        device=CPU,
        max_epochs=max_epochs,
        train_data_loader=data,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), learning_rate),
        loss_function=nn.CrossEntropyLoss(),
        prepare_batch=prepare_batch,
        train_handlers=handlers,
        decollate=False,
    )


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


def validated(max_epochs: int, interval: int = 1, learning_rate: float = 0.01) -> tuple:
    """A trainer and its evaluator, which runs every `interval` epochs."""
    data = batches()
    trainer = trainer_of(data, [TrainingLoss()], max_epochs, learning_rate)
    evaluator = evaluator_of(data, trainer.network)
    ValidationHandler(interval, evaluator).attach(trainer)
    return trainer, evaluator


# --- what an epoch draws ---


def drawn_in(epochs: int, seed: int, rank: int = 0) -> list[tuple]:
    """What each epoch of a run would draw, and the epochs that a sampler is told."""
    told: list[int] = []
    trainer = trainer_of(batches(1), [EpochSeeds(seed, [SimpleNamespace(set_epoch=told.append)])], epochs)
    trainer.state.rank = rank
    found: list[tuple] = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: found.append((told[-1], random.random(), np.random.rand(), float(torch.rand(())))),  # noqa: NPY002
    )
    trainer.run()
    return found


def test_draws_of_an_epoch_follow_from_seed_epoch_and_process_alone():
    first, again = drawn_in(3, seed=1), drawn_in(2, seed=1)
    assert again == first[:2]
    assert [epoch for epoch, *_ in first] == [1, 2, 3]
    others = [*first[1:], *drawn_in(1, seed=2), *drawn_in(1, seed=1, rank=1)]
    assert all(not set(first[0][1:]) & set(other[1:]) for other in others)


# --- loss ---


def test_loss_that_is_not_finite_ends_training_with_epoch_and_batch_named():
    trainer = trainer_of(batches(bad=1), [TrainingLoss()])
    with pytest.raises(ValueError, match=r"epoch 1, batch with 1-0\.dcm, 1-1\.dcm: loss is nan") as error:
        trainer.run()
    assert "Lower --learning_rate" in str(error.value)
    assert trainer.state.iteration == 2


def test_training_with_finite_losses_runs_to_its_end_and_tells_the_mean_of_each_epoch():
    losses: list[float] = []
    trainer = trainer_of(batches(), [TrainingLoss()])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    means: list[float] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: means.append(trainer.state.metrics["train_loss"]))
    trainer.run()
    assert means == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert len(losses) == 6


# --- the end ---


@pytest.mark.parametrize(("patience", "interval", "stops"), [(2, 1, 3), (2, 2, 4), (3, 2, 6), (20, 1, 8)])
def test_training_stops_when_no_validation_was_better_for_as_many_epochs(patience, interval, stops):
    trainer, evaluator = validated(8, interval, learning_rate=0.0)  # all epochs are alike, so the first is the best
    StopEarly(evaluator, patience).attach(trainer)
    trainer.run()
    assert trainer.state.epoch == stops
    assert evaluator.state.best_metric_epoch == interval


def test_training_that_gets_better_goes_on():
    trainer, evaluator = validated(6, learning_rate=0.05)
    StopEarly(evaluator, 1).attach(trainer)
    trainer.run()
    assert trainer.state.epoch == evaluator.state.best_metric_epoch == 6


def test_progress_says_at_the_end_which_epoch_was_best(caplog):
    trainer, evaluator = validated(2)
    EpochProgress(evaluator, "head").attach(trainer)
    with caplog.at_level(logging.INFO, logger="angiography"):
        trainer.run()
    last = [record.getMessage() for record in caplog.records if record.name == "angiography"]
    state = evaluator.state
    assert last == [
        f"head: stopped after 2 epochs; best epoch {state.best_metric_epoch}, val_likelihood {state.best_metric:.3f}"
    ]


def test_progress_is_shown_by_one_process_alone_and_where_it_is_wanted(capsys):
    shown = []
    for rank, progress in ((0, True), (1, True), (0, False)):
        trainer, evaluator = validated(2)
        trainer.state.rank = rank
        EpochProgress(evaluator, "head", progress).attach(trainer)
        trainer.run()
        shown.append("head: 100%" in capsys.readouterr().err)
    assert shown == [True, False, False]


def test_a_training_without_validation_is_an_error_at_its_end():
    trainer, evaluator = validated(2, interval=3)
    EpochProgress(evaluator).attach(trainer)
    with pytest.raises(ValueError, match="training: validations is 0, needs at least one"):
        trainer.run()


def test_a_best_epoch_that_is_no_better_than_nan_is_an_error_not_a_result():
    trainer, evaluator = validated(2)
    evaluator.network = nn.Module()
    evaluator.network.forward = lambda features, lengths, frame_times_ms: torch.full((len(features), K), math.nan)
    EpochProgress(evaluator).attach(trainer)
    with pytest.raises(ValueError, match=r"val_likelihood is 0.0 in every epoch, needs a number above 0"):
        trainer.run()


# --- MLflow ---


def test_tracking_without_mlflow_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mlflow_uri is sqlite:///a\.db, needs the package mlflow") as refused:
        mlflow_handler("sqlite:///a.db", None, {})
    assert "pip install mlflow" in str(refused.value)


class Client:
    """Keeps what MLflow would be sent."""

    sent: list[tuple] = []
    parameters: dict[str, str] = {}

    def __init__(self, tracking_uri: str) -> None:
        Client.sent.clear()

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active")

    def search_runs(self, experiment_id):
        return []

    def create_run(self, experiment_id, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(params={}))

    def log_batch(self, run_id, metrics, params, tags):
        Client.parameters.update(params)

    def log_metric(self, run_id, name, value, step):
        Client.sent.append((run_id, name, value, step))

    def set_terminated(self, run_id, status):
        Client.sent.append((run_id, "status", status, None))


def test_mlflow_gets_the_numbers_of_each_epoch_and_the_recipe(monkeypatch):
    mlflow = ModuleType("mlflow")
    mlflow.MlflowClient = Client
    mlflow.entities = SimpleNamespace(
        RunStatus=SimpleNamespace(to_string=str, FINISHED="FINISHED"),
        LifecycleStage=SimpleNamespace(ACTIVE="active"),
        Param=lambda key, value: (key, value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", mlflow)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: mlflow)
    trainer, evaluator = validated(2)
    mlflow_handler("http://server", evaluator, {"head_name": "gru"}).attach(trainer)
    trainer.run()
    assert [(name, step) for _, name, _, step in Client.sent] == [
        ("train_loss", 1),
        ("val_likelihood", 1),
        ("train_loss", 2),
        ("val_likelihood", 2),
        ("status", None),
    ]
    assert Client.parameters["head_name"] == "gru"
    assert all(isinstance(value, float) for _, _, value, step in Client.sent if step)

"""Handlers of MONAI's engines: randomness of an epoch, its loss, its end, early stopping, progress, tracking."""

import importlib.util
import logging
import math
from collections.abc import Iterable
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.handlers import MLFlowHandler
from monai.utils import CommonKeys, set_determinism
from tqdm import tqdm

from scripts.errors import bad_value
from scripts.keys import SOURCE

logger = logging.getLogger("angiography")

TRAIN_LOSS = "train_loss"


class Drawing(Protocol):
    """What draws at random, and another time in each epoch: a sampler, a dataset."""

    def set_epoch(self, epoch: int) -> None: ...


def loss_of(output: dict[str, Any]) -> float:
    """The loss in a trainer's output."""
    return float(output[CommonKeys.LOSS].detach())


class EpochSeeds:
    """Handler of the trainer: all that an epoch draws follows from seed and epoch, and of dropout from the process.

    So an interrupted run goes on exactly, without any random state kept.

    Args:
        seed: of the run.
        drawing: sampler and dataset; MONAI (1.6.1) sets the epoch of a DistributedSampler only.
    """

    def __init__(self, seed: int, drawing: Iterable[Drawing]) -> None:
        self.seed, self.drawing = seed, list(drawing)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        for each in self.drawing:
            each.set_epoch(engine.state.epoch)
        mixed = np.random.SeedSequence([self.seed, engine.state.epoch, engine.state.rank])
        set_determinism(int(mixed.generate_state(1)[0]))


class TrainingLoss:
    """Handler of the trainer: the mean loss of each epoch; one that is not finite ends the run with the batch named.

    MONAI's trainer would go on, and every weight be NaN from then on. The mean is the metric `train_loss`.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.finish)

    def start(self, engine: Any) -> None:
        self.total, self.number = 0.0, 0

    def __call__(self, engine: Any) -> None:
        loss = loss_of(engine.state.output)
        if not math.isfinite(loss):
            sources = ", ".join(engine.state.batch[SOURCE][:4])
            where = f"epoch {engine.state.epoch}, batch with {sources}"
            way_out = "Lower --learning_rate, or look at these sequences."
            raise ValueError(bad_value(where, "loss", loss, "a finite number", way_out))
        self.total, self.number = self.total + loss, self.number + 1

    def finish(self, engine: Any) -> None:
        mean = self.total / self.number
        engine.state.metrics[TRAIN_LOSS] = float(idist.all_reduce(mean)) / idist.get_world_size()


class StopEarly:
    """Handler of the trainer, after validation: ends the run when no epoch has been better for `patience` epochs."""

    def __init__(self, evaluator: Engine, patience: int) -> None:
        self.evaluator, self.patience = evaluator, patience

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        best: int = self.evaluator.state.best_metric_epoch  # type: ignore[attr-defined]
        validated = self.evaluator.state.epoch == engine.state.epoch
        if validated and engine.state.epoch - best >= self.patience:
            engine.terminate()


class EpochProgress:
    """Handler of the trainer: one bar over epochs, with the loss and the validation metric."""

    def __init__(self, evaluator: Engine, label: str = "training", progress: bool = True) -> None:
        self.evaluator, self.label, self.progress = evaluator, label, progress

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def start(self, engine: Any) -> None:
        self.bar = tqdm(
            total=engine.state.max_epochs,
            initial=engine.state.epoch,  # of an interrupted run that goes on
            desc=self.label,
            unit="epoch",
            mininterval=1,
            disable=engine.state.rank > 0 or not self.progress,
        )

    def advance(self, engine: Any) -> None:
        metrics = engine.state.metrics | self.evaluator.state.metrics
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in metrics.items()}, refresh=False)
        self.bar.update()

    def close(self, engine: Any) -> None:
        """Say which epoch was best.

        Raises:
            ValueError: there is none, without a validation or with nothing but useless ones.
        """
        self.bar.close()
        state: Any = self.evaluator.state
        if state.best_metric_epoch < 1:
            way_out = "Set --val_interval to at most --max_epochs."
            raise ValueError(bad_value("training", "validations", 0, "at least one, to choose the best epoch", way_out))
        if not state.best_metric > 0.0:
            found, way_out = f"{state.best_metric} in every epoch", "Lower --learning_rate, or look at the features."
            raise ValueError(bad_value("training", state.key_metric_name, found, "a number above 0", way_out))
        if engine.state.rank > 0:
            return
        logger.info(
            f"{self.label}: stopped after {engine.state.epoch} epochs; best epoch {state.best_metric_epoch}, "
            f"{state.key_metric_name} {state.best_metric:.3f}"
        )


def mlflow_handler(tracking_uri: str, evaluator: Engine, parameters: dict[str, Any]) -> MLFlowHandler:
    """A handler of the trainer, after validation, that sends the numbers of each epoch to MLflow.

    Args:
        tracking_uri: a server's, or sqlite:///PATH of a file.
        evaluator: has the validation metric.
        parameters: of the run.

    Raises:
        ValueError: MLflow is not installed.
    """
    if importlib.util.find_spec("mlflow") is None:
        way_out = "Run: pip install mlflow, or leave --mlflow_uri out."
        raise ValueError(bad_value("configuration", "mlflow_uri", tracking_uri, "the package mlflow", way_out))

    def log(engine: Any) -> None:
        metrics, run = engine.state.metrics | evaluator.state.metrics, handler.cur_run
        for name, value in metrics.items():
            handler.client.log_metric(run.info.run_id, name, value, step=engine.state.epoch)

    handler: Any = MLFlowHandler(
        tracking_uri=tracking_uri,
        iteration_log=False,
        epoch_logger=log,
        experiment_name="angiography",
        experiment_param=parameters,
        close_on_complete=True,
    )
    return handler

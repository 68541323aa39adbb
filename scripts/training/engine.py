"""What MONAI's engines are given: batches, metrics, handlers, devices."""

import logging
import math
import os
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import EpochMetric
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn
from tqdm import tqdm

from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset, feature_scale
from scripts.keys import FEATURES, FRAME_TIMES, IMAGE, LABEL, LENGTHS, SOURCE
from scripts.training.losses import likelihood

logger = logging.getLogger("angiography")


def prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor | None, tuple, dict[str, Tensor]]:
    """A collated batch as MONAI's engines want it: network input, label, and the network's other arguments."""
    inputs = batch[FEATURES] if FEATURES in batch else batch[IMAGE]
    label = batch.get(LABEL)
    moved = {key: batch[key].to(device, non_blocking=non_blocking) for key in (LENGTHS, FRAME_TIMES)}
    target = None if label is None else label.to(device, non_blocking=non_blocking)
    return inputs.to(device, non_blocking=non_blocking), target, (), moved


def likelihood_metric() -> EpochMetric:
    """`likelihood` over an epoch, gathered from all processes: the number that chooses the best epoch."""
    return EpochMetric(
        likelihood,
        output_transform=lambda output: (output[CommonKeys.PRED].float(), output[CommonKeys.LABEL]),
        check_compute_fn=False,
    )


def loss_of(output: dict[str, Any]) -> float:
    """The loss in a trainer's output."""
    return float(output[CommonKeys.LOSS].detach())


def is_better(current: float, best: float) -> bool:
    """True if a metric improved; a NaN never wins, and is beaten by any number."""
    return math.isfinite(current) and not (math.isfinite(best) and current <= best)


class StopOnNonFiniteLoss:
    """Handler of the trainer: a loss that is not finite ends the run with the batch named, before the weights change.

    MONAI's trainer would go on, and every weight be NaN from then on.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        loss = loss_of(engine.state.output)
        if not math.isfinite(loss):
            sources = ", ".join(engine.state.batch[SOURCE][:4])
            raise ValueError(
                bad_value(
                    f"epoch {engine.state.epoch}, batch with {sources}",
                    "loss",
                    loss,
                    "a finite number",
                    "Lower --learning_rate, or look at these sequences.",
                )
            )


class EpochProgress:
    """Handler of the trainer: one bar over epochs, with the loss and the validation metric."""

    def __init__(self, evaluator: Engine, label: str = "training") -> None:
        self.evaluator, self.label = evaluator, label

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def start(self, engine: Any) -> None:
        self.bar = tqdm(
            total=engine.state.max_epochs,
            desc=self.label,
            unit="epoch",
            mininterval=1,
            disable=engine.state.rank > 0,
        )

    def advance(self, engine: Any) -> None:
        metrics = {name: f"{value:.3f}" for name, value in self.evaluator.state.metrics.items()}
        self.bar.set_postfix(loss=f"{loss_of(engine.state.output):.3f}", **metrics)
        self.bar.update()

    def close(self, engine: Any) -> None:
        self.bar.close()
        state: Any = self.evaluator.state
        if state.best_metric_epoch < 1:
            way_out = "Set --val_interval to at most --max_epochs."
            raise ValueError(bad_value("training", "validations", 0, "at least one, to choose the best epoch", way_out))
        if engine.state.rank > 0:
            return
        logger.info(
            f"{self.label}: stopped after {engine.state.epoch} epochs; best epoch {state.best_metric_epoch}, "
            f"{state.key_metric_name} {state.best_metric:.3f}"
        )


def fit_scale(head: nn.Module, dataset: FeatureDataset) -> None:
    """Give the head the statistics of the training features it standardises with."""
    head.fit_scale(*feature_scale(dataset))  # type: ignore[operator]


def local_device() -> torch.device:
    """This process's device: its own GPU under torchrun, else the first one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_processes() -> None:
    """Join the processes that torchrun started: NCCL on GPUs, gloo on CPUs.

    Raises:
        ValueError: not started by torchrun.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            bad_value(
                "multi-GPU run",
                "RANK",
                "unset",
                "a launch by torchrun",
                "See the command in the file's header.",
            )
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop_processes() -> None:
    """Leave the process group, all together: gloo aborts a process whose peer goes first (torch 2.15)."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

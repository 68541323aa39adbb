"""Batches whose gradients make one step -> the share of each, so that their sum is that of the whole batch."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from scripts.datalists.items import Task
from scripts.features.sampling import LengthBatches
from scripts.keys import MULTILABEL
from scripts.training.classes import class_weights
from scripts.training.losses import SequenceLoss, make_loss


class StepLoss(nn.Module):
    """The loss of one of several batches that make a step; their mean is the loss of all their sequences at once.

    MONAI's trainer (1.6.1) takes the mean of the batches' means, in which a sequence of a small batch counts more than
    one of a large batch, and with weights of the classes one of a batch of light classes more than one of heavy ones.

    Args:
        loss: mean over a batch, in several processes over those of all.
    """

    def __init__(self, loss: SequenceLoss) -> None:
        super().__init__()
        self.loss, self.share = loss, 1.0

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean of the batch times `share`, ()."""
        return self.loss(logits, labels) * self.share


def make_step_loss(recipe: Mapping[str, Any], dataset: Any, task: Task) -> StepLoss:
    """The loss of a batch of a step, as a recipe has it: label_smoothing, class_weights, focal_gamma.

    Args:
        recipe: a card.
        dataset: whose labels weigh the classes.
        task: of the datalist.
    """
    weights = class_weights(recipe["class_weights"], dataset, task)
    return StepLoss(make_loss(task.type, recipe["label_smoothing"], weights, recipe["focal_gamma"]))


class WholeSteps:
    """Handler of the trainer, after EpochSeeds: gives each batch its share in its step, known before the first is read.

    Args:
        loss: gets the share.
        sampler: of the epoch's batches.
        labels: of all sequences, (N,) class indices or (N, K) ones, zeros, and -1 where not known.
        accumulation_steps: batches of one step.
    """

    def __init__(self, loss: StepLoss, sampler: LengthBatches, labels: Any, accumulation_steps: int) -> None:
        self.loss, self.sampler = loss, sampler
        self.labels, self.accumulation_steps = torch.as_tensor(labels), accumulation_steps
        self.shares: list[float] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def start(self, engine: Any) -> None:
        batches = list(copy.copy(self.sampler))  # the copy counts the epoch, not the sampler
        sums = torch.stack([divisor_of(self.loss.loss, self.labels[batch]) for batch in batches]).to(
            engine.state.device
        )
        if dist.is_initialized():
            dist.all_reduce(sums)
        self.shares = shares_of(sums.cpu(), self.accumulation_steps)

    def __call__(self, engine: Any) -> None:
        self.loss.share = self.shares[(engine.state.iteration - 1) % engine.state.epoch_length]


def divisor_of(loss: SequenceLoss, labels: Tensor) -> Tensor:
    """What the mean over a batch of these labels is divided by, () float32: the weights of classes, or known labels."""
    if loss.task_type == MULTILABEL:
        return (labels >= 0).sum().to(torch.float32)
    return torch.ones(len(labels)).sum() if loss.class_weights is None else loss.class_weights.cpu()[labels].sum()


def shares_of(divisors: Tensor, accumulation_steps: int) -> list[float]:
    """By what to multiply the mean of each batch, for the trainer divides each by `accumulation_steps`.

    Args:
        divisors: of the batches of an epoch, in order, (batches,).
        accumulation_steps: batches of a step; the last may have fewer.
    """
    parts = divisors.split(accumulation_steps)
    shares = [accumulation_steps * part / part.sum().clamp(min=1e-8) for part in parts]  # 0 without any known label
    return torch.cat(shares).tolist()

"""Network -> its optimizer with clipped gradients, the schedule of the learning rate, the average of its weights.

Schedule and average hang on the optimizer's steps, and so do the right thing where gradients are accumulated over
several batches or mixed precision leaves out a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scripts.errors import bad_value

COSINE, ONE_CYCLE = "cosine", "one_cycle"
SCHEDULES = (COSINE, ONE_CYCLE)


def make_optimizer(
    network: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    max_gradient_norm: float = 0.0,
    groups: Sequence[dict[str, Any]] | None = None,
) -> AdamW:
    """AdamW that scales gradients down to `max_gradient_norm` before each step; 0 leaves them as they are.

    Args:
        network: its weights are learnt.
        learning_rate: of them.
        weight_decay: of them.
        max_gradient_norm: of all gradients together.
        groups: of those that are learnt, with rates and decays of their own; None: all, alike.

    Raises:
        ValueError: a negative norm; later, in a step, gradients that are not finite.
    """
    if not max_gradient_norm >= 0.0:
        allowed = "a number of at least 0.0; 0.0 does not clip"
        raise ValueError(bad_value("configuration", "max_gradient_norm", max_gradient_norm, allowed))
    # On the CPU the fused step takes a fifth of the time; on a GPU it would see gradients before they are unscaled.
    fused = all(weight.device.type == "cpu" for weight in network.parameters())
    optimizer = AdamW(groups or network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=fused)

    def clip(*_: Any) -> None:  # a GradScaler has unscaled the gradients by now
        norm = clip_grad_norm_(network.parameters(), max_gradient_norm)
        if not torch.isfinite(norm):
            way_out = "Lower --learning_rate."
            raise ValueError(bad_value("training", "norm of the gradients", float(norm), "a finite number", way_out))

    if max_gradient_norm > 0.0:
        optimizer.register_step_pre_hook(clip)
    return optimizer


def make_schedule(
    optimizer: Optimizer, schedule: str, warmup: float, max_epochs: int, num_batches: int, accumulation_steps: int = 1
) -> LRScheduler:
    """The schedule of the learning rate, which follows the optimizer's steps by itself.

    Args:
        optimizer: its learning rate is the peak.
        schedule: `cosine`: up in a straight line, down to zero along a cosine; `one_cycle`: up and down along cosines,
            momentum the other way (Smith 2018, arXiv:1803.09820).
        warmup: share of all steps that lead up to the peak.
        max_epochs: of the training.
        num_batches: of an epoch.
        accumulation_steps: batches of one step.

    Raises:
        ValueError: unknown schedule, or a share outside [0, 1).
    """
    if schedule not in SCHEDULES:
        raise ValueError(bad_value("configuration", "schedule", schedule, f"one of {', '.join(SCHEDULES)}"))
    if not 0.0 <= warmup < 1.0:
        raise ValueError(bad_value("configuration", "warmup", warmup, "0.0 up to below 1.0"))
    steps = max(max_epochs * math.ceil(num_batches / accumulation_steps), 4)  # fewer make no cycle
    up = min(round(warmup * steps), steps - 2)
    scheduler: LRScheduler
    if schedule == ONE_CYCLE:
        peaks = [group["lr"] for group in optimizer.param_groups]
        scheduler = OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=max(up, 2) / steps)
    elif up:
        parts = [LinearLR(optimizer, 1 / (up + 1), total_iters=up), CosineAnnealingLR(optimizer, steps - up)]
        scheduler = SequentialLR(optimizer, parts, milestones=[up])
    else:
        scheduler = CosineAnnealingLR(optimizer, steps)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    return scheduler


def averaged_weights(
    network: nn.Module, optimizer: Optimizer, ema_decay: float, device: torch.device | str
) -> nn.Module:
    """What is validated and saved: a moving average of the weights after each step, or with a decay of 0 the network.

    Args:
        network: the bare one, without DistributedDataParallel around it.
        optimizer: its steps move the average.
        ema_decay: share of the average that stays at each step, below 1; less in the first steps, so that the
            untrained weights are soon forgotten.
        device: where the average is kept.

    Raises:
        ValueError: a decay outside [0, 1).
    """
    if not 0.0 <= ema_decay < 1.0:
        raise ValueError(bad_value("configuration", "ema_decay", ema_decay, "0.0, which is none, up to below 1.0"))
    if not ema_decay:
        return network
    averaged = AveragedModel(network, torch.device(device), multi_avg_fn=_growing(ema_decay))
    optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(network))
    return averaged


def bare(network: nn.Module) -> nn.Module:
    """The network inside an average of its weights."""
    return network.module if isinstance(network, AveragedModel) else network


def _growing(ema_decay: float) -> Callable:
    """Moving average over no more than a tenth of the steps so far, as TensorFlow's `num_updates` makes it."""

    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(ema_decay, (1 + steps) / (10 + steps)))(averages, weights, num_averaged)

    return update

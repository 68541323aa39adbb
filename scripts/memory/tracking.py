"""A step that runs, on a CPU or a CUDA card -> what it held and computed, told as the simulation tells it."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from scripts.memory import cuda, steps
from scripts.memory.storages import Measurement, StorageLog


def track(
    step: Callable[[], object],
    network: nn.Module,
    inputs: Iterable[Any] = (),
    optimizer: torch.optim.Optimizer | None = None,
) -> Measurement:
    """Run a step of any loop, and tell what was alive in it.

    Args:
        step: runs it; what it leaves behind is its caller's.
        network: names its modules; tells weights and gradients.
        inputs: tensors that are there before the step, beside the network's.
        optimizer: one that has stepped before has a state, which is counted.

    Returns:
        The measurement; on a card also the peak that PyTorch's allocator saw, everything else on it included.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    on_card = device.type == "cuda"
    log = StorageLog(network, cuda.BLOCK_BYTES if on_card else 1)
    if optimizer is not None:
        log.declare(tree_iter(optimizer.state_dict()), "optimizer")
    if on_card:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with log.watching():
        log.declare(tree_iter(inputs), "input")
        step()
    allocated = torch.cuda.max_memory_allocated(device) if on_card else None
    return dataclasses.replace(log.measurement(), allocated_bytes=allocated)


def track_training_step(
    network: nn.Module,
    inputs: tuple[Any, ...],
    *,
    loss: Callable[[Any], Tensor] = steps.mean_square,
    optimizer: str = "adamw",
    amp: bool = False,
    accumulation: int = 1,
) -> Measurement:
    """What `measure.simulate_training_step` predicts, run: arguments as there, on the network's device.

    The learning rate is 0, so that the weights stay; running statistics of norms move.
    """
    device_type = next(network.parameters()).device.type
    stepper = steps.make_optimizer(network.train(), optimizer, device_type)
    autocast = steps.autocast_on(device_type, amp)

    def step() -> None:
        steps.training_step(network, inputs, loss, stepper, autocast, accumulation)

    return track(step, network, inputs, stepper)


def track_inference_step(network: nn.Module, inputs: tuple[Any, ...], *, amp: bool = False) -> Measurement:
    """What `measure.simulate_inference_step` predicts, run."""
    autocast = steps.autocast_on(next(network.parameters()).device.type, amp)
    return track(lambda: steps.inference_step(network.eval(), inputs, autocast), network, inputs)

"""A network, its inputs -> one training or inference step, as the workflows take it, on real or fake tensors."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from scripts.errors import bad_value

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "sgd_momentum": lambda params, **options: torch.optim.SGD(params, momentum=0.9, **options),
}
AMP_DTYPES = {"cuda": torch.float16, "cpu": torch.bfloat16}  # what torch.autocast takes by itself on each device
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast_on(device_type: str, amp: bool, faked: bool = False) -> Autocast:
    """What surrounds a forward pass on that device; `faked`, the same for fake tensors, which are all on the CPU."""
    dtype = AMP_DTYPES[device_type]
    return functools.partial(torch.autocast, "cpu" if faked else device_type, dtype, enabled=amp)


def mean_square(outputs: Any) -> Tensor:
    """A scalar from whatever a network returns, in float32: a loss where the real one is not known."""
    values = [x.float().square().mean() for x in tree_iter(outputs) if isinstance(x, Tensor)]
    return torch.stack(values).sum()


def make_optimizer(network: nn.Module, name: str, device_type: str) -> torch.optim.Optimizer:
    """The optimizer with its state as it is from the second step on; the weights stay as they are.

    Args:
        network: its parameters that require a gradient are what is optimized.
        name: one of OPTIMIZERS.
        device_type: "cuda" steps all tensors at once (foreach), which takes temporaries of their size, as
            PyTorch does there by itself.

    Raises:
        ValueError: an unknown optimizer, or a network with nothing to learn.
    """
    if name not in OPTIMIZERS:
        raise ValueError(bad_value("memory", "optimizer", name, f"one of {', '.join(OPTIMIZERS)}"))
    learned = [p for p in network.parameters() if p.requires_grad]
    if not learned:
        raise ValueError(bad_value("network", "parameters that require a gradient", 0, "at least one"))
    optimizer = OPTIMIZERS[name](learned, lr=0.0, foreach=device_type == "cuda")
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def training_step(
    network: nn.Module,
    inputs: tuple[Any, ...],
    loss: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    autocast: Autocast,
    accumulation: int,
) -> None:
    """One optimizer step over `accumulation` micro-batches of the same inputs.

    What the network returns lives through the backward pass, as MONAI's SupervisedTrainer keeps it.
    """
    for _ in range(accumulation):
        with autocast():
            outputs = network(*inputs)
            value = loss(outputs) / accumulation
        value.backward()
        del outputs, value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def inference_step(network: nn.Module, inputs: tuple[Any, ...], autocast: Autocast) -> Any:
    """What the network makes of the inputs."""
    with autocast():
        return network(*inputs)

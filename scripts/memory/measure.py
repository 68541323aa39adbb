"""A network, its input's shape -> peak memory and FLOPs of one step, without running it: no GPU, weights or data.

Fake tensors have shapes and no bytes; PyTorch's own autograd engine runs a step on them, and every storage is counted
(scripts.memory.storages). For `device_type` "cuda" the operators are those a card would run (scripts.memory.card).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_iter

from scripts.errors import bad_value
from scripts.memory import card, checkpointing, steps
from scripts.memory.storages import Measurement, StorageLog

DEVICE_TYPES = ("cuda", "cpu")


def simulate_training_step(
    make_network: Callable[[], nn.Module],
    make_inputs: Callable[[], tuple[Any, ...]],
    *,
    loss: Callable[[Any], Tensor] = steps.mean_square,
    optimizer: str = "adamw",
    amp: bool = False,
    strategy: dict[str, Any] | None = None,
    accumulation: int = 1,
    device_type: str = "cuda",
) -> Measurement:
    """Peak bytes, their causes and FLOPs of one optimizer step.

    Args:
        make_network: makes the network; its weights' values are not used.
        make_inputs: makes the positional arguments of one micro-batch, called under fake tensors.
        loss: what the network returned -> a scalar.
        optimizer: one of steps.OPTIMIZERS; its state is there from the start, as in every step but the first.
        amp: under autocast, in half precision.
        strategy: of scripts.memory.checkpointing; None keeps every activation.
        accumulation: micro-batches of an optimizer step. Gradients are there while all but the first run.
        device_type: "cuda" or "cpu", whose operators and optimizer are taken.

    Raises:
        ValueError: the network's control flow depends on values, it does not take these inputs, or an argument is
            not what is allowed.
    """
    if not isinstance(accumulation, int) or isinstance(accumulation, bool) or accumulation < 1:
        raise ValueError(bad_value("memory", "accumulation", accumulation, "a whole number of at least 1"))
    network = make_network()
    simulated = min(accumulation, 2)  # from the second micro-batch on, all are alike
    with _faked(network, device_type) as fake:
        checkpointing.apply(fake.train(), strategy or {"kind": "none"})
        inputs = make_inputs()
        stepper = steps.make_optimizer(fake, optimizer, device_type)
        log = _log(fake, device_type)
        log.declare(tree_iter(stepper.state_dict()), "optimizer")
        with log.watching():
            log.declare(tree_iter(inputs), "input")
            autocast = steps.autocast_on(device_type, amp, faked=True)
            steps.training_step(fake, inputs, loss, stepper, autocast, simulated)
        log.flops = log.flops // simulated * accumulation
        return log.measurement(card.ASSUMED if device_type == "cuda" else ())


def simulate_inference_step(
    make_network: Callable[[], nn.Module],
    make_inputs: Callable[[], tuple[Any, ...]],
    *,
    amp: bool = False,
    device_type: str = "cuda",
) -> Measurement:
    """Peak bytes, their causes and FLOPs of one forward pass that keeps nothing; arguments as of training."""
    network = make_network()
    with _faked(network, device_type) as fake:
        inputs = make_inputs()
        log = _log(fake.eval(), device_type)
        with log.watching():
            log.declare(tree_iter(inputs), "input")
            steps.inference_step(fake, inputs, steps.autocast_on(device_type, amp, faked=True))
        return log.measurement(card.ASSUMED if device_type == "cuda" else ())


def _log(network: nn.Module, device_type: str) -> StorageLog:
    if device_type == "cpu":
        return StorageLog(network)
    log = StorageLog(network, card.BLOCK_BYTES, card.workspace_bytes)
    log.add(card.CUBLAS_WORKSPACE_BYTES, "transient")
    return log


@contextmanager
def _faked(network: nn.Module, device_type: str) -> Iterator[nn.Module]:
    """A copy of the network with fake weights, where operators make fake tensors; the network itself stays."""
    if device_type not in DEVICE_TYPES:
        raise ValueError(bad_value("memory", "device_type", device_type, f"one of {', '.join(DEVICE_TYPES)}"))
    name = type(network).__name__
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if device_type == "cuda":
            stack.enter_context(card.as_on_a_card())
        memo: dict[int, Any] = {}
        for tensor in (*network.parameters(), *network.buffers()):
            fake = torch.empty_like(tensor, device="cpu")
            learned = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if learned else fake
        try:
            yield copy.deepcopy(network, memo)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
            found = f"an operator whose result depends on values ({error.func})"
            way_out = "Measure it with scripts.memory.tracking, which runs it."
            raise ValueError(bad_value(name, "forward", found, "shapes and control flow without", way_out)) from error

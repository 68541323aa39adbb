"""A network, its input's shape -> peak memory and FLOPs of one step, without running it: no GPU, weights or data.

Fake tensors have shapes and no bytes; PyTorch's own autograd engine runs a step on them, and every storage is counted
(scripts.memory.storages). For `device_type` "cuda" the operators are those a card would run (scripts.memory.cuda).
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_iter

from scripts.errors import bad_value
from scripts.memory import checkpointing, cuda, steps
from scripts.memory.fakes import RememberingFakeMode
from scripts.memory.storages import Measurement, StorageLog

DEVICE_TYPES = ("cuda", "cpu")
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
Simulation = Callable[..., Measurement]


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
        make_network: makes the network; its weights' values are not used, and it stays as it is.
        make_inputs: makes the positional arguments of one micro-batch, called where tensors are fake.
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
    options: dict[str, Any] = {"loss": loss, "optimizer": optimizer, "amp": amp, "device_type": device_type}
    with training_steps(make_network, **options) as simulate:
        return simulate(make_inputs, strategy, accumulation)


@contextmanager
def training_steps(
    make_network: Callable[[], nn.Module],
    *,
    loss: Callable[[Any], Tensor] = steps.mean_square,
    optimizer: str = "adamw",
    amp: bool = False,
    device_type: str = "cuda",
) -> Iterator[Simulation]:
    """A function (make_inputs, strategy, accumulation) -> Measurement, which makes network and optimizer once.

    Arguments and errors as of `simulate_training_step`.
    """
    with _faked(make_network(), device_type) as fake:
        stepper = steps.make_optimizer(fake.train(), optimizer, device_type)
        autocast = steps.autocast_on(device_type, amp, faked=True)

        def simulate(
            make_inputs: Callable[[], tuple[Any, ...]], strategy: dict[str, Any] | None = None, accumulation: int = 1
        ) -> Measurement:
            if not isinstance(accumulation, int) or isinstance(accumulation, bool) or accumulation < 1:
                raise ValueError(bad_value("memory", "accumulation", accumulation, "a whole number of at least 1"))
            checkpointing.apply(fake, strategy or {"kind": "none"})
            inputs = make_inputs()
            for parameter in fake.parameters() if accumulation > 1 else ():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            log = _log(fake, device_type)
            log.declare(tree_iter(stepper.state_dict()), "optimizer")
            with _explained(fake, inputs), log.watching():
                log.declare(tree_iter(inputs), "input")
                steps.training_step(fake, inputs, loss, stepper, autocast, 1)  # the last micro-batch, the fullest
            log.flops *= accumulation
            return log.measurement(cuda.ASSUMED if device_type == "cuda" else ())

        yield simulate


def simulate_inference_step(
    make_network: Callable[[], nn.Module],
    make_inputs: Callable[[], tuple[Any, ...]],
    *,
    amp: bool = False,
    device_type: str = "cuda",
) -> Measurement:
    """Peak bytes, their causes and FLOPs of one forward pass that keeps nothing; arguments as of training."""
    with _faked(make_network(), device_type) as fake:
        inputs = make_inputs()
        log = _log(fake.eval(), device_type)
        with _explained(fake, inputs), log.watching():
            log.declare(tree_iter(inputs), "input")
            steps.inference_step(fake, inputs, steps.autocast_on(device_type, amp, faked=True))
        return log.measurement(cuda.ASSUMED if device_type == "cuda" else ())


def _log(network: nn.Module, device_type: str) -> StorageLog:
    if device_type == "cpu":
        return StorageLog(network)
    log = StorageLog(network, cuda.BLOCK_BYTES, cuda.workspace_bytes)
    log.add(cuda.CUBLAS_WORKSPACE_BYTES, "transient")
    return log


@contextmanager
def _faked(network: nn.Module, device_type: str) -> Iterator[nn.Module]:
    """A copy of the network with fake weights, where operators make fake tensors; the network itself stays."""
    if device_type not in DEVICE_TYPES:
        raise ValueError(bad_value("memory", "device_type", device_type, f"one of {', '.join(DEVICE_TYPES)}"))
    mode = RememberingFakeMode()
    memo: dict[int, Any] = {}
    with mode:
        for tensor in (*network.parameters(), *network.buffers()):
            fake = torch.empty_like(tensor, device="cpu")
            learned = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if learned else fake
    copied = copy.deepcopy(network, memo)  # outside of the mode, which cannot copy a tensor that is no parameter
    one_dnn = torch._C._get_mkldnn_enabled()
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it prints the trace of what is raised anyhow
    level = logger.level
    with mode, cuda.as_on_a_card() if device_type == "cuda" else nullcontext():
        try:
            logger.setLevel(logging.CRITICAL)
            torch._C._set_mkldnn_enabled(False)  # fake tensors lack the workspace of its LSTM: step by step
            yield copied
        finally:
            torch._C._set_mkldnn_enabled(one_dnn)
            logger.setLevel(level)


@contextmanager
def _explained(network: nn.Module, inputs: tuple[Any, ...]) -> Iterator[None]:
    """What a network raises on shapes alone, as one line."""
    name = type(network).__name__
    try:
        yield
    except NEEDS_VALUES as error:
        found = f"steered by values ({error.func})"
        way_out = "Measure it with scripts.memory.tracking, which runs it."
        raise ValueError(bad_value(name, "forward", found, "to be steered by shapes alone", way_out)) from error
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in tree_iter(inputs) if isinstance(x, Tensor))
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(bad_value(name, "input", shapes, "a shape it takes", f"It says: {reason}")) from error

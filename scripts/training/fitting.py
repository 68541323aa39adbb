"""A training that is about to start -> what a step of it will hold, as given or as planned; refused if that cannot fit.

One step is simulated (scripts.memory), with the network as it will train: what learns of it, its head, precision,
batch, checkpointing. That takes seconds, no card and no exam.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scripts.errors import bad_value
from scripts.memory import budget as budgets
from scripts.memory.checkpointing import checked
from scripts.memory.search import Searcher, Workload, search, searching
from scripts.memory.storages import CAUSES
from scripts.networks.classifier import SequenceClassifier
from scripts.store.store import free_bytes as free_on_host
from scripts.training.frames import FrameDataset, most_frames

logger = logging.getLogger("angiography")

PLAN = "plan"  # as checkpointing: batch_size, accumulation_steps and checkpointing are those of the best plan
AUTO = "auto"
CONSTANT = ("weights", "optimizer")  # causes that no knob makes smaller
PLANNED = ("batch_size", "accumulation_steps", "checkpointing")


@dataclasses.dataclass(frozen=True)
class Fit:
    """How the steps of a training are taken, and what one holds.

    Attributes:
        workload: network, shape of a sequence, sequences of one step of the optimizer, precision, device.
        batch_size: sequences that go through the network together.
        accumulation_steps: such batches of one step of the optimizer.
        checkpointing: strategy of scripts.memory.checkpointing.
        peak_bytes: most that the process holds at once, `resident_bytes` included; simulated.
        resident_bytes: what a simulated step does not know of: copies of the weights, buckets of several processes.
        free_bytes: what it may hold.
        flops: of one sequence.
        by_cause: bytes of each of CAUSES at the peak; empty where it was read off smaller batches.
    """

    workload: Workload
    batch_size: int
    accumulation_steps: int
    checkpointing: dict[str, Any]
    peak_bytes: int
    resident_bytes: int
    free_bytes: int
    flops: float
    by_cause: dict[str, int]

    @property
    def amp(self) -> bool:
        """Whether the forward pass runs in half precision."""
        return self.workload.amp

    @property
    def knobs(self) -> dict[str, Any]:
        """Ids of finetune.yaml that make it this one."""
        return {name: getattr(self, name) for name in PLANNED}

    @property
    def settings(self) -> dict[str, Any]:
        """What a card says of it."""
        return self.knobs | {"amp": self.amp}


def fit_memory(
    network: SequenceClassifier,
    recipe: Mapping[str, Any],
    datasets: Sequence[FrameDataset],
    device: torch.device | str,
    *,
    batch_size: int,
    accumulation_steps: int,
    checkpointing: str | Mapping[str, Any] = "none",
    memory_budget: str | int = AUTO,
    amp: str | bool = AUTO,
    began: Mapping[str, Any] | None = None,
    rank: int = 0,
) -> Fit:
    """How the training takes its steps: as asked if that fits, or as planned if a plan is asked for.

    Args:
        network: as it will train, on any device; it stays as it is.
        recipe: with image_size, frame_choice, max_frames, ema_decay, world_size.
        datasets: that it reads; the longest sequence counts.
        device: that it trains on.
        batch_size: sequences that go through the network together, in each process.
        accumulation_steps: such batches of one step of the optimizer.
        checkpointing: strategy; `plan`: all three as a plan has them, for as many sequences a step.
        memory_budget: what there is, as scripts.memory.budget reads it; `auto`: all memory of the card, or what the
            host has free, shared by its processes.
        amp: half precision; `auto`: on a card. A CPU computes in float32, whatever is asked for.
        began: recipe of the run that is gone on with, whose plan stays.
        rank: of this process; the first one tells.

    Raises:
        ValueError: it cannot fit; the message names the smallest change that would.
    """
    start, device = time.monotonic(), torch.device(device)
    frames = most_frames(datasets, recipe["frame_choice"], recipe["max_frames"])
    workload = Workload(
        lambda: network,
        (frames, *network.encoder.input_shape(recipe["image_size"])),
        batch_size * accumulation_steps,
        amp=half_precision(amp, device),
        device_type=device.type,
    )
    resident = resident_bytes(network, device, recipe["ema_decay"], recipe["world_size"])
    free = free_memory(memory_budget, device)
    chosen: Mapping[str, Any] = dict(zip(PLANNED, (batch_size, accumulation_steps, checkpointing), strict=True))
    if checkpointing == PLAN:
        chosen = began or planned(workload, resident, free)
    batch, steps, strategy = (chosen[name] for name in PLANNED)
    fit = simulated(workload, batch, steps, strategy, resident, free)
    if rank == 0:
        tell(fit, checkpointing == PLAN, time.monotonic() - start)
    if fit.peak_bytes > free:
        raise ValueError(refusal(fit, f"{in_units(fit.peak_bytes)} at the peak of a step"))
    return fit


def simulated(
    workload: Workload,
    batch_size: int,
    accumulation_steps: int,
    strategy: str | Mapping[str, Any],
    resident: int = 0,
    free: int = 0,
) -> Fit:
    """What a step taken in this way holds and costs; the other arguments as of Fit."""
    chosen = checked(strategy)
    with searching(workload) as (searcher, network):
        peak, flops, by_cause = _measured(searcher, network, chosen, batch_size, accumulation_steps)
    return Fit(
        workload, batch_size, accumulation_steps, chosen, peak + resident, resident, free, flops / batch_size, by_cause
    )


def _measured(
    searcher: Searcher, network: nn.Module, strategy: dict[str, Any], batch_size: int, accumulation_steps: int
) -> tuple[int, float, dict[str, int]]:
    """Peak bytes, FLOPs and causes; of many chunks of frames as smaller inputs foretell them, without causes."""
    frames = min(strategy.get("frames", 2**62), int(network.chunk_frames))  # type: ignore[arg-type]
    peak, flops, found = searcher.foretold(strategy, accumulation_steps, batch_size, frames)
    return peak, flops, found.by_cause if found else {}


def half_precision(amp: str | bool, device: torch.device) -> bool:
    """Whether to compute in half precision.

    Raises:
        ValueError: neither `auto` nor true nor false.
    """
    if amp not in (AUTO, True, False):
        raise ValueError(bad_value("configuration", "amp", amp, "auto, True or False"))
    if device.type == "cuda":
        return bool(amp)
    if amp is True:
        logger.info("amp: half precision is for cards; this CPU computes in float32")
    return False


def resident_bytes(network: nn.Module, device: torch.device, ema_decay: float, world_size: int) -> int:
    """Bytes held beside a step: averaged weights, the best ones (on the CPU), buckets of gradients (processes)."""
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    learnt = sum(weight.nbytes for weight in network.parameters() if weight.requires_grad)
    return weights * ((ema_decay > 0) + (device.type == "cpu")) + learnt * (world_size > 1)


def free_memory(memory_budget: str | int, device: torch.device) -> int:
    """Bytes that a process may hold; a card keeps some for itself (scripts.memory.budget), a stated CPU's are all free.

    Raises:
        ValueError: a budget that is none.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return budgets.free_bytes(total if memory_budget == AUTO else budgets.read_budget(memory_budget))
    if memory_budget != AUTO:
        return budgets.read_budget(memory_budget)
    return free_on_host() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def planned(workload: Workload, resident: int, free: int) -> dict[str, Any]:
    """The knobs of the plan with the least extra FLOPs.

    Raises:
        ValueError: none fits.
    """
    best, candidates = search(workload, max(free - resident, 0))
    if best is None:
        least = min(candidates, key=lambda found: found.peak_bytes)
        fit = Fit(workload, 1, workload.batch_size, least.strategy, least.peak_bytes, resident, free, 0.0, {})
        raise ValueError(refusal(fit, f"{in_units(least.peak_bytes + resident)} by the smallest plan"))
    steps = best.accumulation
    return dict(zip(PLANNED, (workload.batch_size // steps, steps, best.strategy), strict=True))


def refusal(fit: Fit, found: str) -> str:
    """Why it cannot start, and what would."""
    return bad_value("configuration", "memory", found, f"at most {_free(fit)}", smallest_change(fit))


def smallest_change(fit: Fit) -> str:
    """A sentence with the knobs that would fit and change least: no FLOPs first, then fewer frames."""
    nothing = "Nothing that trains this encoder fits: train a head on cached features, configs/train.yaml."
    if fit.free_bytes <= fit.resident_bytes + sum(fit.by_cause.get(cause, 0) for cause in CONSTANT):
        return nothing
    best, candidates = search(fit.workload, max(fit.free_bytes - fit.resident_bytes, 0))
    if best is not None:
        steps = best.accumulation
        knobs: dict[str, Any] = {"batch_size": fit.workload.batch_size // steps, "accumulation_steps": steps}
        costs = f", at {best.extra_flops:.0%} more work" if best.extra_flops >= 0.005 else ""
        return f"Pass {arguments(fit, knobs | {'checkpointing': best.strategy})}{costs}."
    least = min(candidates, key=lambda found: found.peak_bytes)
    batch = fit.workload.batch_size // least.accumulation
    knobs = dict(zip(PLANNED, (batch, least.accumulation, least.strategy), strict=True))
    frames, *image = fit.workload.shape
    while (frames := frames // 2) > 0:
        shorter = dataclasses.replace(fit.workload, shape=(frames, *image))
        found = simulated(shorter, batch, least.accumulation, least.strategy, fit.resident_bytes)
        if found.peak_bytes <= fit.free_bytes:
            return f"Pass --max_frames {frames} {arguments(fit, knobs)}".rstrip() + "."
    return nothing


def arguments(fit: Fit, knobs: Mapping[str, Any]) -> str:
    """Those knobs that differ from what they are, as a command line has them."""
    changed = {name: value for name, value in knobs.items() if value != fit.knobs[name]}
    return " ".join(f"--{name} {_quoted(value)}" for name, value in changed.items())


def _quoted(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value["kind"]) if len(value) == 1 or value == checked(value["kind"]) else f'"{dict(value)}"'
    return str(value)


def _free(fit: Fit) -> str:
    return in_units(fit.free_bytes) + (f" ({budgets.WHY})" if fit.workload.device_type == "cuda" else "")


def in_units(size: int) -> str:
    """Bytes in GB, few of them in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def tell(fit: Fit, is_plan: bool, seconds: float) -> None:
    """Log how steps are taken, what one holds, and how long it took to know."""
    frames, _, *sides = fit.workload.shape
    size = " x ".join(map(str, sides))
    how = f"{fit.batch_size} sequences x {frames} frames of {size}, {fit.accumulation_steps} to a step"
    precision = "half precision" if fit.amp else "float32"
    strategy = _quoted(fit.checkpointing)
    logger.info(f"memory, {'planned' if is_plan else 'as asked'}: {how}, {precision}, checkpointing {strategy}")
    causes = ", ".join(f"{cause} {fit.by_cause[cause] / 1e6:,.0f}" for cause in CAUSES if fit.by_cause.get(cause))
    parts = f" (MB: {causes})" if causes else ""
    logger.info(
        f"memory: {in_units(fit.peak_bytes)} at the peak of a step{parts}; at most {_free(fit)}; "
        f"simulated in {seconds:.1f} s"
    )

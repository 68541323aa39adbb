"""A training that runs out of memory -> what was foretold, what to change, what each change saves and costs here."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from scripts.memory.measure import simulate_training_step
from scripts.memory.search import Workload
from scripts.networks.classifier import SequenceClassifier
from scripts.training.fitting import Fit, arguments, in_units, simulated

CHUNK_FRAMES = 8
WORTH = 0.01  # of the peak: what saves less is not on the ladder
HOST = "DefaultCPUAllocator"  # how a CPU's RuntimeError is told from others


def train_or_advise(trainer: Any, network: SequenceClassifier, fit: Fit) -> None:
    """Run the trainer; where memory ends, say what was foretold and what needs less.

    Args:
        trainer: MONAI's.
        network: that it trains, bare.
        fit: of it.

    Raises:
        MemoryError: out of memory. The run is not tried again: half of its state is on the card.
    """
    try:
        trainer.run()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and HOST not in str(error):
            raise
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise MemoryError(advice(network, fit, reason)) from error


def advice(network: SequenceClassifier, fit: Fit, reason: str) -> str:
    """The ladder, as lines of text: knobs of finetune.yaml for this run, and what each saves and costs, simulated."""
    foretold = f"a step was foretold to hold {in_units(fit.peak_bytes)} of {in_units(fit.free_bytes)} free"
    if fit.workload.device_type == "cuda" and torch.cuda.is_available():
        foretold += f"; this process had {torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
    lines = list[str]()
    for knobs, peak, flops, loses in rungs(network, fit):
        saved, work = fit.peak_bytes - peak, flops / fit.flops - 1
        if saved > WORTH * fit.peak_bytes:
            effect = f"{in_units(peak)} at the peak, {saved / fit.peak_bytes:.0%} less, {_work(work)}"
            lines.append(f"{len(lines) + 1}. {knobs}: {effect}{loses}")
    return "\n".join([f"{reason}; {foretold}. What needs less, in this order (simulated):", *lines])


def rungs(network: SequenceClassifier, fit: Fit) -> Iterator[tuple[str, int, float, str]]:
    """Knobs, peak bytes, FLOPs of a sequence, and what is lost by them; each alone, against the run as it is."""
    batch, steps, resident = fit.batch_size, fit.accumulation_steps, fit.resident_bytes
    frames, *_, size = fit.workload.shape

    def rung(
        knobs: str,
        loses: str = "",
        workload: Workload = fit.workload,
        strategy: dict[str, Any] = fit.checkpointing,
        size: tuple[int, int] = (batch, steps),
    ) -> Iterator[tuple[str, int, float, str]]:
        try:
            found = simulated(workload, *size, strategy, resident)
        except ValueError:  # this network cannot be run that way
            return
        yield knobs, found.peak_bytes, found.flops, loses

    if batch > 1:
        half = (batch // 2, -(-batch * steps // (batch // 2)))
        knobs = arguments(fit, {"batch_size": half[0], "accumulation_steps": half[1]})
        yield from rung(knobs, "; the weights stay the same", size=half)
    for strategy in ({"kind": "chunks", "frames": CHUNK_FRAMES}, {"kind": "selective"}, {"kind": "blocks"}):
        if strategy["kind"] != fit.checkpointing["kind"] and any(map(_learns, network.encoder.parameters())):
            yield from rung(arguments(fit, {"checkpointing": strategy}), "; the same gradients", strategy=strategy)
    if fit.workload.device_type == "cuda" and not fit.amp:
        halved = dataclasses.replace(fit.workload, amp=True)
        yield from rung("--amp True", "; gradients rounded to half precision", halved)
    if frames > 1:
        shorter = dataclasses.replace(fit.workload, shape=(frames // 2, *fit.workload.shape[1:]))
        yield from rung(f"--max_frames {frames // 2}", "; half of the sequence is not seen", shorter)
    patch = _patch(network)
    smaller = max(size // 2 // patch, 1) * patch
    if smaller < size:
        reduced = dataclasses.replace(fit.workload, shape=(frames, *network.encoder.input_shape(smaller)))
        yield from rung(f"--image_size {smaller}", "; small structures are lost", reduced)
    head, width = network.head, network.encoder.num_features
    cached = simulate_training_step(
        lambda: head, lambda: (torch.empty(batch, frames, width),), amp=fit.amp, device_type=fit.workload.device_type
    )
    loses = "; the encoder does not learn"
    yield "configs/cache_features.yaml, then configs/train.yaml", cached.peak_bytes, cached.flops / batch, loses


def _learns(weight: torch.nn.Parameter) -> bool:
    return weight.requires_grad


def _patch(network: SequenceClassifier) -> int:
    """Side in pixels of what the encoder takes as one; an image is a multiple of it."""
    patch = getattr(getattr(network.encoder.backbone, "patch_embed", None), "patch_size", 32)
    return int(patch[0] if isinstance(patch, (tuple, list)) else patch)


def _work(more: float) -> str:
    return "no more work" if abs(more) < 0.005 else f"{abs(more):.0%} {'more' if more > 0 else 'less'} work"

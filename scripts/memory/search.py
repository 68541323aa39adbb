"""A workload, bytes that are free -> how to train it: micro-batches x what is computed again, least extra FLOPs first.

Accumulation costs no FLOPs, so it is tried first; saved bytes are no objective, since what is computed again in the
backward pass can make the peak: every plan is simulated.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scripts.errors import bad_value
from scripts.memory import checkpointing, steps
from scripts.memory.blocks import blocks_of, couples_batch, encoder_of
from scripts.memory.knapsack import cheapest_modules, subtree
from scripts.memory.measure import Simulation, training_steps
from scripts.memory.storages import BACKWARD, FORWARD, OPTIMIZER, Measurement

MAX_CHUNKS = 6  # of frames in a simulation: above, the peak is read off the line through two smaller inputs
SHARES = (1.0, 0.3, 0.1)  # of all activations, the most that one module computes again at once
ATTEMPTS = 4  # sets of modules simulated for each share, each saving what the one before lacked
NONE = 0.0005  # extra FLOPs below it are none
FAR = 1.5  # times the free bytes: a strategy that needs more is not simulated in a weaker form
STRENGTH = {"selective": "flops_per_value", "segments": "number"}  # the knob with which a kind saves more


@dataclass(frozen=True)
class Workload:
    """What is to be trained.

    Attributes:
        make_network: makes it, untouched.
        shape: of one sample: (T, 3, H, W), (T, C, D, H, W), (C, D, H, W).
        batch_size: samples of one optimizer step.
        splittable: whether micro-batches give the same gradients: not with BatchNorm or a loss over pairs.
    """

    make_network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int = 1
    optimizer: str = "adamw"
    amp: bool = True
    loss: Callable[[Any], Tensor] = steps.mean_square
    splittable: bool = True
    device_type: str = "cuda"


@dataclass(frozen=True)
class Candidate:
    """One way to train a workload.

    Attributes:
        strategy: of scripts.memory.checkpointing.
        accumulation: micro-batches of a step.
        peak_bytes: simulated.
        extra_flops: more than the plain step's, 0.33 being a third.
        measurement: of the simulated step; None where its peak was read off a line.
    """

    strategy: dict[str, Any]
    accumulation: int
    peak_bytes: int
    extra_flops: float
    measurement: Measurement | None

    @property
    def order(self) -> tuple[float, bool, int, int]:
        """Better ones first: fewer FLOPs, nothing computed again, fewer micro-batches, fewer bytes."""
        return round(self.extra_flops, 3), self.strategy["kind"] != "none", self.accumulation, self.peak_bytes


class Searcher:
    """Simulates one workload again and again, with one network."""

    def __init__(self, workload: Workload, simulate: Simulation, network: nn.Module) -> None:
        self.workload, self.simulate = workload, simulate
        self.seen: dict[tuple[str, tuple[int, ...], int], Measurement] = {}
        self.candidates: list[Candidate] = []
        splittable = workload.splittable and not couples_batch(network)
        batch = workload.batch_size
        small = [n for n in range(1, math.isqrt(batch) + 1) if batch % n == 0]
        self.accumulations = sorted({*small, *(batch // n for n in small)}) if splittable else [1]

    @functools.cached_property
    def plain(self) -> Measurement:
        """The smallest micro-batch, with nothing computed again."""
        return self.measured({"kind": "none"}, self.accumulations[-1])

    def measured(
        self, strategy: dict[str, Any], accumulation: int, micro_batch: int | None = None, frames: int | None = None
    ) -> Measurement:
        """One simulated micro-batch, maybe of fewer frames; gradients of earlier ones are there if there are any."""
        size, (longest, *image) = micro_batch or self.workload.batch_size // accumulation, self.workload.shape
        shape = (size, frames or longest, *image)
        key = (str(strategy), shape, min(accumulation, 2))
        if key not in self.seen:
            found = self.simulate(lambda: (torch.empty(shape),), strategy, key[2])
            self.seen[key] = dataclasses.replace(found, flops=found.flops // key[2])
        return self.seen[key]

    def candidate(self, strategy: dict[str, Any], accumulation: int) -> Candidate:
        """That way of training, simulated, or where frames make too many chunks, read off smaller inputs."""
        batch = self.workload.batch_size
        micro, smallest = batch // accumulation, batch // self.accumulations[-1]
        chunk = strategy["frames"] if strategy["kind"] == "chunks" else math.inf
        peak, flops, measurement = self.foretold(strategy, accumulation, micro, chunk)
        extra = flops / micro / (self.plain.flops / smallest) - 1
        made = Candidate(strategy, accumulation, peak, extra, measurement)
        self.candidates.append(made)
        return made

    def foretold(
        self, strategy: dict[str, Any], accumulation: int, micro_batch: int, chunk: float
    ) -> tuple[int, int, Measurement | None]:
        """Peak bytes and FLOPs of a micro-batch whose encoder takes so many frames at once; what was simulated.

        Of more than MAX_CHUNKS chunks two smaller inputs are simulated, and the line through them is read: of fewer
        samples, or where there are one or two, of fewer frames.
        """
        frames = self.workload.shape[0]
        if micro_batch * frames <= MAX_CHUNKS * chunk:
            found = self.measured(strategy, accumulation, micro_batch)
            return found.peak_bytes, found.flops, found
        if micro_batch > 2:
            return *self.on_a_line(strategy, accumulation, micro_batch), None
        few, many = (math.ceil(chunks * chunk / micro_batch) for chunks in (2, 3))
        one, two = (self.measured(strategy, accumulation, micro_batch, size) for size in (few, many))
        return *_line(one, two, (frames - few) / (many - few)), None

    def on_a_line(self, strategy: dict[str, Any], accumulation: int, micro_batch: int, few: int = 1) -> tuple[int, int]:
        """Peak bytes and FLOPs of a micro-batch as two smaller ones foretell them: of `few` samples or one whole chunk,
        and of twice as many."""
        few = min(max(math.ceil(strategy.get("frames", 1) / self.workload.shape[0]), few), micro_batch)
        many = min(2 * few, micro_batch)
        one, two = (self.measured(strategy, accumulation, size) for size in (few, many))
        return _line(one, two, (micro_batch - few) / max(many - few, 1))

    def best_of(self, strategy: dict[str, Any], free_bytes: int, best: Candidate | None) -> Candidate | None:
        """The strategy with the fewest micro-batches that fit, if that is better than the best so far."""
        smallest = self.candidate(strategy, self.accumulations[-1])
        if smallest.peak_bytes > free_bytes or (best is not None and smallest.extra_flops > best.extra_flops + NONE):
            return best
        for accumulation in self.accumulations[:-1]:
            micro = self.workload.batch_size // accumulation
            gradients = self.plain.by_cause["weights"] if accumulation == 1 else 0
            foreseen = self.on_a_line(strategy, 2, micro)[0] if micro > 2 else 0
            if foreseen - gradients <= free_bytes:
                found = self.candidate(strategy, accumulation)
                if found.peak_bytes <= free_bytes:
                    smallest = found
                    break
        return smallest if best is None or smallest.order < best.order else best

    def uniform(self, network: nn.Module) -> list[tuple[dict[str, Any], float]]:
        """The strategies that treat all blocks alike, each with the least extra FLOPs it can take.

        Left out are chunks so small that smaller micro-batches do the same, and those larger than all frames.
        """
        frames = self.workload.shape[0] * self.workload.batch_size // self.accumulations[-1]
        whole = subtree(self.plain.ran, encoder_of(network)).flops / self.plain.flops
        blocks = [subtree(self.plain.ran, name).flops / self.plain.flops for name in blocks_of(network)]
        found = []
        for strategy in checkpointing.strategies_for(network):
            kind = strategy["kind"]
            chunk = strategy.get("frames", frames)
            if chunk // 2 >= frames or (chunk * MAX_CHUNKS < frames and len(self.accumulations) > 1):
                continue
            least = sum(blocks[:: strategy["every"]]) if kind == "blocks" else 0.0
            found.append((strategy, 0.9 * whole if kind in ("segments", "chunks") else least))
        return found

    def try_uniform(self, network: nn.Module, free_bytes: int, everything: bool) -> Candidate | None:
        """The best of the strategies that treat all blocks alike, and of selective ones between those."""
        best: Candidate | None = None
        for strategy, least in sorted(self.uniform(network), key=lambda found: found[1]):
            if everything or self.is_worth_trying(strategy, least, free_bytes, best):
                with suppress(ValueError):  # it cannot be run that way; the plain run has shown that it runs
                    best = self.best_of(strategy, free_bytes, best)
        if best is None or best.strategy["kind"] != "selective":
            return best
        knob = "extra_flops" if "extra_flops" in best.strategy else "flops_per_value"
        return self.between(knob, free_bytes, best)

    def is_worth_trying(self, strategy: dict[str, Any], least: float, free_bytes: int, best: Candidate | None) -> bool:
        """Whether a strategy that costs at least so many FLOPs can be the best; of chunks the largest that fit are."""
        if best is not None and least >= best.extra_flops - NONE:
            return False
        kind, smallest = strategy["kind"], self.accumulations[-1]
        tried = [
            found for found in self.candidates if found.strategy["kind"] == kind and found.accumulation == smallest
        ]
        if kind in STRENGTH:
            stronger = [found for found in tried if found.strategy[STRENGTH[kind]] >= strategy[STRENGTH[kind]]]
            whole = [found for found in stronger if "extra_flops" not in found.strategy]
            return all(found.peak_bytes <= FAR * free_bytes for found in whole)
        if kind != "chunks":
            return True
        if best is not None and best.strategy["kind"] == kind:
            return False
        if len(tried) < 2:
            return True
        (many, most), (few, more) = ((found.strategy["frames"], found.peak_bytes) for found in tried[-2:])
        many = min(many, self.workload.shape[0] * self.workload.batch_size // smallest)
        foretold = more - (most - more) * (few - strategy["frames"]) / (many - few)
        return foretold <= 1.05 * free_bytes  # it needs about that or more

    def between(self, knob: str, free_bytes: int, best: Candidate) -> Candidate:
        """The best selective strategy with less of a knob than the best so far, but more than what was too large."""
        high = float(best.strategy.get(knob, 0))
        rest = {name: value for name, value in best.strategy.items() if name != knob}
        tried = [found.strategy for found in self.candidates if rest.items() <= found.strategy.items()]
        low = max((float(other[knob]) for other in tried if other.get(knob, high) < high), default=0.0)
        for _ in range(3 if high else 0):
            middle = round((low + high) / 2, 3)
            found = self.best_of({**best.strategy, knob: middle}, free_bytes, best)
            low, high = (low, middle) if found is not best else (middle, high)
            best = found or best
        return best

    def best_modules(
        self, network: nn.Module, share: float, free_bytes: int, best: Candidate | None
    ) -> Candidate | None:
        """The modules to compute again that fit, if they are better than the best so far."""
        need = self.plain.peak_bytes - free_bytes
        for _ in range(ATTEMPTS):
            if need <= 0 or (best is not None and best.extra_flops < NONE):
                break
            names = cheapest_modules(network, self.plain, need, share)
            extra = sum(subtree(self.plain.ran, name).flops for name in names) / self.plain.flops
            if not names or (best is not None and extra >= best.extra_flops):
                break
            try:
                found = self.candidate({"kind": "modules", "names": names}, self.accumulations[-1])
            except ValueError:  # a module that cannot be computed again
                break
            if found.peak_bytes <= free_bytes:
                return found if best is None or found.order < best.order else best
            need += found.peak_bytes - free_bytes
        return best


def _line(one: Measurement, two: Measurement, share: float) -> tuple[int, int]:
    """Peak bytes and FLOPs beyond two inputs, `share` times as far from the first as the second is."""
    peaks = []
    for phases in ((FORWARD, BACKWARD), (OPTIMIZER,)):
        first, second = one.peak_of(*phases), two.peak_of(*phases)
        peaks.append(first + round((second - first) * share))
    return max(peaks), one.flops + round((two.flops - one.flops) * share)


@contextmanager
def searching(workload: Workload) -> Iterator[tuple[Searcher, nn.Module]]:
    """What simulates the workload again and again, and its network."""
    network = workload.make_network()
    options: dict[str, Any] = {"loss": workload.loss, "optimizer": workload.optimizer, "amp": workload.amp}
    with training_steps(lambda: network, device_type=workload.device_type, **options) as simulate:
        yield Searcher(workload, simulate, network), network


def whole_batch(workload: Workload, strategy: dict[str, Any]) -> Candidate:
    """The workload trained that way in one piece."""
    with searching(dataclasses.replace(workload, splittable=False)) as (searcher, _):
        return searcher.candidate(strategy, 1)


def search(workload: Workload, free_bytes: int, everything: bool = False) -> tuple[Candidate | None, list[Candidate]]:
    """The way to train that fits with the least extra FLOPs, and all that were looked at.

    Branch and bound: what costs more FLOPs than the best so far, whatever it saves, is not simulated.

    Args:
        workload: what is to be trained.
        free_bytes: most bytes that the step may hold at once.
        everything: simulate also what cannot be the best, to compare it.

    Returns:
        The best candidate, None if none fits; all candidates, better ones first.

    Raises:
        ValueError: the network cannot be simulated, or the batch size is none.
    """
    size = workload.batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(bad_value("plan", "batch_size", size, "a whole number of at least 1"))
    with searching(workload) as (searcher, network):
        best = searcher.try_uniform(network, free_bytes, everything)
        for share in SHARES:
            best = searcher.best_modules(network, share, free_bytes, best)
    candidates = {(str(found.strategy), found.accumulation): found for found in searcher.candidates}.values()
    return best, sorted(candidates, key=lambda candidate: candidate.order)

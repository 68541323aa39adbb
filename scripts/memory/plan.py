"""A network, a budget -> how to train it there: a table, the YAML for finetune.yaml, the largest input that fits."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from scripts.errors import bad_value
from scripts.memory import budget as budgets
from scripts.memory.search import Candidate, Workload, search, whole_batch
from scripts.memory.storages import CAUSES

STEPS = {"batch": 1, "frames": 1, "image": 14, "volume": 32}  # what can be made larger, and in which steps
LARGEST = 2**16  # of any of them that is tried


@dataclass(frozen=True)
class Plan:
    """What a search found.

    Attributes:
        budget_bytes: of the card.
        free_bytes: of those, what a step may hold (scripts.memory.budget).
        best: the plan; None if nothing fits.
        candidates: all that were simulated, better ones first.
    """

    workload: Workload
    budget_bytes: int
    free_bytes: int
    best: Candidate | None
    candidates: list[Candidate]

    @property
    def text(self) -> str:
        """The table people read, and below it the plan, or the smallest change that would fit."""
        rows = [[_words(found.strategy), *_numbers(self, found)] for found in self.candidates]
        columns = ("what is computed again", "micro-batch", "peak GB", "extra FLOPs", "")
        lines = [
            f"Budget {self.budget_bytes / 1e9:.2f} GB; a step may hold {self.free_bytes / 1e9:.2f} GB: {budgets.WHY}.",
            "",
            *table(columns, rows),
            "",
            *(self._described() if self.best is not None else [self.refusal]),
        ]
        return "\n".join(lines)

    @property
    def refusal(self) -> str:
        """What would have to change, where nothing fits."""
        least = min(self.candidates, key=lambda found: found.peak_bytes)
        return (
            f"Nothing fits. The least is {least.peak_bytes / 1e9:.2f} GB ({_words(least.strategy)}); it needs a card "
            f"of {budgets.card_bytes(least.peak_bytes) / 1e9:.1f} GB, or a smaller input: "
            "fewer frames, a smaller image or volume; or train a head on cached features."
        )

    def _described(self) -> list[str]:
        best, lines = self.best, list[str]()
        if best is not None and best.measurement is not None:
            causes = [f"{cause} {best.measurement.by_cause[cause] / 1e6:,.0f}" for cause in CAUSES]
            lines = [f"At the peak, in MB: {', '.join(causes)}."]
            modules = [f"{name} {size / 1e6:,.0f}" for name, size in list(best.measurement.by_module.items())[:3]]
            lines += [f"Most of it by module, in MB: {', '.join(modules)}.", *_sentences(best.measurement.assumed)]
        return [*lines, "", "For configs/finetune.yaml:", "", self.yaml]

    @property
    def yaml(self) -> str:
        """The knobs of finetune.yaml that make it this plan."""
        return yaml.safe_dump(self.knobs, sort_keys=False, default_flow_style=None, width=10**6)

    @property
    def knobs(self) -> dict[str, Any]:
        """Ids of finetune.yaml and their values.

        Raises:
            ValueError: nothing fits.
        """
        if self.best is None:
            raise ValueError(self.refusal)
        micro = self.workload.batch_size // self.best.accumulation
        return {
            "batch_size": micro,
            "accumulation_steps": self.best.accumulation,
            "checkpointing": self.best.strategy,
            "amp": self.workload.amp,
        }


def make_plan(workload: Workload, budget: str | int, everything: bool = False) -> Plan:
    """The best way to train within a budget.

    Args:
        workload: what is to be trained.
        budget: of scripts.memory.budget.
        everything: simulate also what cannot be the best, to show it beside it.

    Raises:
        ValueError: a budget that is none, or a network that cannot be simulated.
    """
    total = budgets.read_budget(budget)
    free = budgets.free_bytes(total)
    return Plan(workload, total, free, *search(workload, free, everything))


def largest(workload: Workload, what: str, free_bytes: int, strategy: dict[str, Any] | None = None) -> int:
    """The largest batch, number of frames, image or volume side whose training step fits; 0 if none does.

    It is bracketed along the power law through two simulations, and the answer is simulated.

    Args:
        workload: the input to start from; the rest of its shape stays.
        what: one of STEPS; sides of an image or a volume grow alike.
        free_bytes: what the step may hold.
        strategy: of scripts.memory.checkpointing; plain if not given.

    Raises:
        ValueError: something else to enlarge.
    """
    if what not in STEPS:
        raise ValueError(bad_value("plan", "largest", what, f"one of {', '.join(STEPS)}"))
    step = STEPS[what]
    peaks: dict[int, float] = {}

    def peak(size: int) -> float:
        if size not in peaks:
            peaks[size] = whole_batch(_enlarged(workload, what, size * step), strategy or {"kind": "none"}).peak_bytes
        return peaks[size]

    low, high = 0, max(_size(workload, what) // step, 1)
    while peak(high) <= free_bytes:  # double until it does not fit
        low, high = high, 2 * high
        if high * step > LARGEST:
            return low * step
    while high - low > 1:
        middle = (low + high) // 2
        if len(peaks) >= 2:
            one, two = sorted(peaks)[:2] if low == 0 else sorted(sorted(peaks), key=lambda at: abs(at - low))[:2]
            one, two = min(one, two), max(one, two)
            slope = math.log(peaks[two] / peaks[one]) / math.log(two / one)
            if slope > 0:
                foreseen = int(one * (free_bytes / peaks[one]) ** (1 / slope))
                middle = min(max(foreseen + (foreseen == low), low + 1), high - 1)
        low, high = (middle, high) if peak(middle) <= free_bytes else (low, middle)
    return low * step


def _size(workload: Workload, what: str) -> int:
    sizes = {"batch": workload.batch_size, "frames": workload.shape[0]}
    return sizes.get(what, workload.shape[-1])


def _enlarged(workload: Workload, what: str, size: int) -> Workload:
    if what == "batch":
        return dataclasses.replace(workload, batch_size=size)
    sides = {"frames": 0, "image": 2, "volume": 3}[what]
    shape = (size, *workload.shape[1:]) if sides == 0 else (*workload.shape[:-sides], *[size] * sides)
    return dataclasses.replace(workload, shape=shape)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, aligned to be read as text: the first column to the left, others to the right."""
    cells = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    pads: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(columns) - 1)]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if at == 0 else ":") for at, width in enumerate(widths)) + "|"
    return [line(cells[0]), rule, *[line(row) for row in cells[1:]]]


def _words(strategy: dict[str, Any]) -> str:
    """A strategy in a few words."""
    kind = strategy["kind"]
    if kind == "modules":
        return f"{len(strategy['names'])} modules"
    rest = " ".join(f"{name} {value}" for name, value in strategy.items() if name != "kind")
    return "nothing" if kind == "none" else f"{kind} {rest}".strip()


def _numbers(plan: Plan, found: Candidate) -> list[str]:
    micro = f"{plan.workload.batch_size // found.accumulation} x {found.accumulation}"
    fits = "chosen" if found is plan.best else "fits" if found.peak_bytes <= plan.free_bytes else "too large"
    return [micro, f"{found.peak_bytes / 1e9:.2f}", f"{found.extra_flops:.1%}", fits]


def _sentences(assumed: tuple[str, ...]) -> list[str]:
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in assumed]

"""A workload, a budget -> how to train it there: a table, and the YAML for finetune.yaml."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from scripts.memory import budget as budgets
from scripts.memory.search import NONE, Candidate, Workload, search, searching, whole_batch
from scripts.memory.storages import CAUSES
from scripts.memory.subjects import Subject
from scripts.networks.classifier import SequenceClassifier
from scripts.pages import counted

MOST_FRAMES = 1024  # of a plain batch in a simulation: more take a quarter of a minute
COLUMNS = ("what is computed again", "micro-batch", "peak GB", "extra FLOPs", "")
IN_CODE = """from scripts.memory import checkpointing

checkpointing.apply(network, {strategy})"""
ORDINALS = {2: "2nd", 3: "3rd"}


@dataclass(frozen=True)
class Plan:
    """What a search found.

    Attributes:
        subject: what is to be trained.
        budget_bytes: of the card.
        free_bytes: of those, what a step may hold (scripts.memory.budget).
        best: the plan; None if nothing fits.
        candidates: all that were simulated, better ones first.
        plain: the whole batch in one piece, nothing computed again.
    """

    subject: Subject
    budget_bytes: int
    free_bytes: int
    best: Candidate | None
    candidates: list[Candidate]
    plain: Candidate

    @property
    def workload(self) -> Workload:
        """What is to be trained."""
        return self.subject.workload

    @property
    def title(self) -> str:
        """What is planned, on one line."""
        workload = self.workload
        shape = " x ".join(map(str, (workload.batch_size, *workload.shape)))
        precision = "half precision" if workload.amp else "float32"
        return f"{self.subject.name}, a batch of {shape}, {precision}, {workload.optimizer}"

    @property
    def budget(self) -> str:
        """What a step may hold, and why not all of the card."""
        if self.workload.device_type == "cpu":
            return f"A step may hold {self.free_bytes / 1e9:.2f} GB."
        card, free = self.budget_bytes / 1e9, self.free_bytes / 1e9
        return f"Of {card:.2f} GB a step may hold {free:.2f} GB: {budgets.WHY}."

    @property
    def outcome(self) -> str:
        """What was found, in one sentence."""
        if self.best is None:
            return self.refusal
        best, plain = self.best, self.plain
        if best.peak_bytes >= plain.peak_bytes:
            return f"It fits as it is: {plain.peak_bytes / 1e9:.2f} GB at its peak."
        extra = f"{best.extra_flops:.1%}" if best.extra_flops >= NONE else "no"
        return (
            f"Plain, this step holds {plain.peak_bytes / 1e9:.2f} GB at its peak; planned, {best.peak_bytes / 1e9:.2f} "
            f"GB, {plain.peak_bytes / best.peak_bytes:.1f} times less, with {extra} more computation."
        )

    @property
    def text(self) -> str:
        """The table people read, and below it the plan, or the smallest change that would fit."""
        about = [f"{self.title}. Simulated: nothing was run.", self.subject.assumed, self.budget, self.outcome]
        lines = [*filter(None, about), "", *table(COLUMNS, self.rows), ""]
        return "\n".join([*lines, *(self._described() if self.best is not None else [])]).rstrip("\n")

    @property
    def rows(self) -> list[list[str]]:
        """Of the table, one a candidate, as COLUMNS names their cells."""
        return [[in_words(found.strategy), *self._numbers(found)] for found in self.candidates]

    def fate(self, found: Candidate) -> str:
        """What became of a candidate."""
        return "chosen" if found is self.best else "fits" if found.peak_bytes <= self.free_bytes else "too large"

    def micro_batch(self, found: Candidate) -> str:
        """Samples of a micro-batch x how many make a step."""
        return f"{self.workload.batch_size // found.accumulation} x {found.accumulation}"

    def _numbers(self, found: Candidate) -> list[str]:
        peak, extra = f"{found.peak_bytes / 1e9:.2f}", f"{max(found.extra_flops, 0.0):.1%}"
        return [self.micro_batch(found), peak, extra, self.fate(found)]

    @property
    def refusal(self) -> str:
        """What would have to change, where nothing fits."""
        least = min(self.candidates, key=lambda found: found.peak_bytes)
        return (
            f"Nothing fits. The least is {least.peak_bytes / 1e9:.2f} GB ({in_words(least.strategy)}); it needs a card "
            f"of {budgets.card_bytes(least.peak_bytes) / 1e9:.1f} GB, or a smaller input: "
            "fewer frames, a smaller image or volume; or train a head on cached features."
        )

    def _described(self) -> list[str]:
        best, lines = self.best, list[str]()
        if best is not None and best.measurement is not None:
            causes = [f"{cause} {best.measurement.by_cause[cause] / 1e6:,.0f}" for cause in CAUSES]
            modules = [f"{name} {size / 1e6:,.0f}" for name, size in list(best.measurement.by_module.items())[:3]]
            lines = [f"At the peak, in MB: {', '.join(causes)}.", f"Most of it by module, in MB: {', '.join(modules)}."]
            lines += self.assumptions
        return [*lines, "", self.use, "", self.yaml if self.is_for_finetuning else self.code]

    @property
    def assumptions(self) -> list[str]:
        """What is stated rather than simulated, as sentences."""
        assumed = self.plain.measurement.assumed if self.plain.measurement is not None else ()
        return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in assumed]

    @property
    def is_for_finetuning(self) -> bool:
        """Whether finetune.yaml can train the network: an encoder with a head."""
        return isinstance(self.workload.make_network(), SequenceClassifier)

    @property
    def use(self) -> str:
        """What to do with the knobs or the code that follow."""
        if self.is_for_finetuning:
            return "To be given to configs/finetune.yaml:"
        steps = self.knobs["accumulation_steps"]
        sizes = f"batches of {self.knobs['batch_size']}, the gradients of {steps} added up, and " if steps > 1 else ""
        return f"In your own training, {sizes}before its first step:"

    @property
    def code(self) -> str:
        """The lines that make a network run so."""
        return IN_CODE.format(strategy=self.knobs["checkpointing"])

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


def make_plan(subject: Subject | Workload, budget: str | int, everything: bool = False) -> Plan:
    """The best way to train within a budget.

    Args:
        subject: what is to be trained.
        budget: of scripts.memory.budget; on a CPU all of it is for the step.
        everything: simulate also what cannot be the best, to show it beside it.

    Raises:
        ValueError: a budget that is none, or a network that cannot be simulated.
    """
    if isinstance(subject, Workload):
        subject = Subject(type(subject.make_network()).__name__, subject)
    workload = subject.workload
    total = budgets.read_budget(budget)
    free = total if workload.device_type == "cpu" else budgets.free_bytes(total)
    best, candidates = search(workload, free, everything)
    return Plan(subject, total, free, best, candidates, _plain_of(workload, candidates))


def _plain_of(workload: Workload, candidates: Sequence[Candidate]) -> Candidate:
    """The whole batch in one piece with nothing computed again."""
    for found in candidates:
        if found.strategy["kind"] == "none" and found.accumulation == 1 and found.measurement is not None:
            return found
    return plain_batch(workload)


def plain_batch(workload: Workload) -> Candidate:
    """The whole batch with nothing computed again; beyond MOST_FRAMES read off the line through smaller batches."""
    plain, batch, frames = {"kind": "none"}, workload.batch_size, workload.shape[0]
    few = 1 << math.ceil(math.log2(max(MOST_FRAMES / 4 / frames, 1)))  # twos, for chunks of frames to be whole
    if batch * frames <= MOST_FRAMES or 2 * few >= batch:
        return whole_batch(workload, plain)
    with searching(dataclasses.replace(workload, splittable=False)) as (searcher, _):
        return Candidate(plain, 1, searcher.on_a_line(plain, 1, batch, few)[0], 0.0, None)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, aligned to be read as text: the first column to the left, others to the right."""
    cells = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    pads: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(columns) - 1)]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if at == 0 else ":") for at, width in enumerate(widths)) + "|"
    return [line(cells[0]), rule, *[line(row) for row in cells[1:]]]


def in_words(strategy: Mapping[str, Any]) -> str:
    """A strategy in a few words."""
    kind, number = strategy["kind"], {name: value for name, value in strategy.items() if name != "kind"}
    if kind == "selective":
        cost, share = number.get("flops_per_value", 0), number.get("extra_flops", 1)
        words = [
            "selective",
            f"{cost:g} FLOPs a value" if cost else "",
            f"{100 * share:g}% in all" if share < 1 else "",
        ]
        return ", ".join(filter(None, words))
    if kind == "blocks":
        return (
            "every block" if number["every"] == 1 else f"every {ORDINALS.get(number['every'], number['every'])} block"
        )
    if kind == "chunks":
        return f"the encoder, {counted(number['frames'], 'frame')} at once"
    plainly = {"none": "nothing", "segments": "in {number} segments"}
    if kind in plainly:
        return plainly[kind].format(**number)
    return f"{len(number['names'])} modules" if "names" in number else f"{kind} {number or ''}".strip()

"""The entries of a datalist, and what is wrong or odd in the list as a whole: leaks, copies, labels, classes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.datalists.datalist import Task, class_counts, read_datalist, read_json, task_of
from scripts.datalists.items import names_of, read_item
from scripts.errors import printable
from scripts.keys import (
    IMAGE,
    LABEL,
    PATIENT,
    SOURCE,
    SPLITS,
    TASK,
    TEST,
    TRAINING,
    VALIDATION,
)

# kinds of findings, worst first, with their headings
PROBLEMS = {
    "contract": "Against the data contract",
    "unreadable": "Cannot be read",
    "frames": "Frames or times of the list do not fit the exam",
    "leak": "Leaks between splits",
    "label": "Labels missing where training needs them",
}
SUSPICIOUS = {
    "duplicate": "Same pixels under two names",
    "patients": "Patients",
    "classes": "Splits and classes",
    "times": "Times",
    "single_frame": "A single frame",
    "constant": "Pixels without content",
    "size": "Close to the size limit",
    "header": "Odd in the header",
}


@dataclass(frozen=True)
class Finding:
    """One thing to look at: its kind, its place in the list ("training[3]"), its path as the list spells it, why."""

    kind: str
    where: str
    source: str
    text: str

    @property
    def fails(self) -> bool:
        """True for a problem, False for what is only suspicious."""
        return self.kind in PROBLEMS

    def __str__(self) -> str:
        place = f"{self.where} {self.source}".strip()
        return f"{place}: {self.text}"


@dataclass(frozen=True)
class Reading:
    """What the header, the list and the middle frame of a sequence say; numbers and codes only."""

    container: str
    modality: str
    transfer_syntaxes: tuple[str, ...]  # different ones among its files
    photometric: str
    bits_stored: int
    num_frames: int  # to choose from: those the list names, else all
    rows: int
    columns: int
    unknown_times: int  # frames
    duration_s: float | None  # None: a single frame, or times that are not all known
    gap_ms: float | None  # between frames, the middle one; None as above
    digest: str | None  # of `pixel_digest`; None: the frame is of one value
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Exam:
    """One entry of the list; `item` is empty where it breaks the contract, `reading` None where it cannot be read."""

    split: str
    position: int
    item: dict[str, Any]
    reading: Reading | None = None

    @property
    def where(self) -> str:
        """Its place in the list, "training[3]"."""
        return f"{self.split}[{self.position}]"

    @property
    def source(self) -> str:
        """Its path as the list spells it."""
        return printable(self.item.get(SOURCE, ""))


def read_content(path: Path, root: Path) -> dict[str, Any]:
    """The JSON of a datalist, with at least one split; what is in them is not looked at.

    Raises:
        FileNotFoundError, ValueError: as `read_datalist`.
    """
    if not path.is_file() or not root.is_dir():
        read_datalist(path, root)  # raises, and says why
    return read_json(path)


def read_entries(path: Path, content: dict[str, Any], root: Path) -> tuple[Task | None, list[Exam], list[Finding]]:
    """Each entry by itself through what `read_datalist` asks of it, so that one mistake does not hide the next."""
    findings: list[Finding] = []
    exams: list[Exam] = []
    real: dict[Path, Path] = {}

    def attempt(where: str, source: object, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:  # links in a circle, numbers without end: whatever people write into a list
            text = str(error).removeprefix(f"{where}: ").removeprefix(f"{path}: ").replace(f"{root}/", "")
            findings.append(Finding("contract", where, printable(source), printable(text)))
            return None

    task = attempt(TASK, path.name, lambda: task_of(path, content))
    broken_task = bool(findings)
    for split in SPLITS:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            text = f"is {type(entries).__name__}, needs a list of items."
            findings.append(Finding("contract", split, path.name, text))
            continue
        for i, entry in enumerate(entries):
            if broken_task and isinstance(entry, dict):
                entry = {key: value for key, value in entry.items() if key != LABEL}
            source = entry.get(IMAGE, "") if isinstance(entry, dict) else ""
            where = f"{split}[{i}]"
            exams.append(
                Exam(split, i, attempt(where, source, partial(read_item, where, entry, root, task, real)) or {})
            )
    return task, exams, findings


def named_twice(exams: list[Exam]) -> Iterator[Finding]:
    """Files, told by real paths, and names of sequences that an earlier entry has too, or the same one twice."""
    seen: dict[tuple[str, str], Exam] = {}
    real: dict[Path, Path] = {}
    for exam in (exam for exam in exams if exam.item):
        earlier: dict[str, Exam] = {}
        with suppress(OSError, RuntimeError):  # links that cannot be followed: the reader will tell
            for name in names_of(exam.item, real):
                if name in seen:
                    earlier.setdefault(name[0], seen[name])
                seen.setdefault(name, exam)
        for key, first in earlier.items():
            text = f"{key} is a duplicate of {first.where} ({first.source}), needs each sequence once."
            yield Finding("contract", exam.where, exam.source, text)


def patient_findings(exams: list[Exam]) -> Iterator[Finding]:
    """Patients in two splits, splits of one patient, and entries that do not say whose they are."""
    first_of: dict[str, Exam] = {}
    patients: dict[str, set[str]] = defaultdict(set)
    nameless = [exam for exam in exams if exam.item and exam.item.get(PATIENT) is None]
    for exam in (exam for exam in exams if exam.item.get(PATIENT) is not None):
        patient = str(exam.item[PATIENT])
        patients[exam.split].add(patient)
        first = first_of.setdefault(patient, exam)
        if first.split != exam.split:
            text = f"its patient is also in {first.split}: {first.where} ({first.source})"
            yield Finding("leak", exam.where, exam.source, text)
    unseen = "leaks between splits cannot be seen"
    if nameless and not first_of:
        yield Finding("patients", "list", "", f"no entry has a `{PATIENT}`: {unseen}")
    else:
        yield from (Finding("patients", e.where, e.source, f"no `{PATIENT}`: {unseen}") for e in nameless)
    for split, found in patients.items():
        if len(found) == 1:
            yield Finding("patients", split, "", "all its sequences are of one patient: intervals mean nothing")


def label_findings(exams: list[Exam], task: Task | None) -> Iterator[Finding]:
    """Missing labels, empty splits and classes without a sequence."""
    by_split = {split: [exam for exam in exams if exam.split == split and exam.item] for split in SPLITS}
    for split in (TRAINING, VALIDATION):
        without = [exam for exam in by_split[split] if LABEL not in exam.item]
        if without and len(without) == len(by_split[split]):
            yield Finding("label", split, "", f"none of its {len(without)} sequences has a label")
        else:
            yield from (Finding("label", exam.where, exam.source, "no label") for exam in without)
    if by_split[TRAINING]:
        for split in (VALIDATION, TEST):
            if not by_split[split]:
                yield Finding("classes", split, "", "no sequences, while training has some")
    for split, found in by_split.items():
        labelled = [exam for exam in found if LABEL in exam.item]
        if task is not None and labelled:
            counts = class_counts([exam.item for exam in labelled], task)
            for name in (name for name, count in zip(task.classes, counts, strict=True) if count == 0):
                yield Finding("classes", split, "", f"no sequence of class {printable(name)}")


def same_pixels(exams: list[Exam]) -> Iterator[Finding]:
    """Sequences with the pixels of an earlier one: a leak if that is in another split."""
    groups: dict[str, list[Exam]] = defaultdict(list)
    for exam in exams:
        if exam.reading is not None and exam.reading.digest is not None:
            groups[exam.reading.digest].append(exam)
    for first, *others in groups.values():
        for exam in others:
            text = f"same pixels as {first.where} ({first.source})"
            yield Finding("duplicate" if exam.split == first.split else "leak", exam.where, exam.source, text)

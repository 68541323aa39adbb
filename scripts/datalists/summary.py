"""A checked datalist -> what is in it: numbers for check.json, rows for the terminal and the page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydicom.uid import UID

from scripts.datalists.check import Checked
from scripts.datalists.datalist import class_counts
from scripts.datalists.findings import PROBLEMS, SUSPICIOUS, Exam, Finding
from scripts.errors import printable
from scripts.keys import LABEL, PATIENT, SOURCE, SPLITS
from scripts.pages import counted

ALL = "all"
SHOWN_FINDINGS = 5  # of a kind on the terminal; check.json has all
SHOWN_FORMATS = 6


def document(checked: Checked) -> dict[str, Any]:
    """Everything the check found, in types that JSON has; None where a number is not known."""
    task = checked.task
    problems = [finding for finding in checked.findings if finding.fails]
    suspicious = [finding for finding in checked.findings if not finding.fails]
    return {
        "datalist": printable(checked.name),
        "sha256": checked.digest,
        "synthetic": checked.synthetic,
        "task": None if task is None else asdict(task),
        "passed": not problems,
        "splits": {split: describe(exams, checked) for split, exams in by_split(checked).items()},
        "formats": formats(checked.exams),
        "problems": [asdict(finding) for finding in problems],
        "suspicious": [asdict(finding) for finding in suspicious],
        "sequences": [
            {SOURCE: exam.source, "where": exam.where, LABEL: exam.item.get(LABEL)}
            | ({"readable": False} if exam.reading is None else {"readable": True, **asdict(exam.reading)})
            for exam in checked.exams
        ],
    }


def by_split(checked: Checked) -> dict[str, list[Exam]]:
    """The entries of each split that has any, and of all of them."""
    splits = {split: [exam for exam in checked.exams if exam.split == split] for split in SPLITS}
    return {split: exams for split, exams in splits.items() if exams} | {ALL: checked.exams}


def describe(exams: list[Exam], checked: Checked) -> dict[str, Any]:
    """Sequences, patients, frames, durations and classes of some entries."""
    read = [exam.reading for exam in exams if exam.reading is not None]
    patients = {str(exam.item[PATIENT]) for exam in exams if exam.item.get(PATIENT) is not None}
    labelled = [exam.item for exam in exams if LABEL in exam.item]
    classes = {}
    if checked.task is not None:
        counts = class_counts(labelled, checked.task)
        classes = {printable(name): int(count) for name, count in zip(checked.task.classes, counts, strict=True)}
    return {
        "sequences": len(exams),
        "readable": len(read),
        "patients": len(patients) or None,
        "frames": spread([reading.num_frames for reading in read]),
        "duration_s": spread([reading.duration_s for reading in read if reading.duration_s is not None]),
        "gap_ms": spread([reading.gap_ms for reading in read if reading.gap_ms is not None]),
        "times_unknown": sum(reading.num_frames > 1 and reading.unknown_times > 0 for reading in read),
        "labelled": len(labelled),
        "classes": classes,
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Smallest, middle and largest value; None if there is none."""
    if not values:
        return None
    return {"min": float(min(values)), "median": float(np.median(values)), "max": float(max(values))}


def formats(exams: list[Exam]) -> dict[str, dict[str, int]]:
    """How many sequences come in each container, coding, colour and size, most frequent first."""
    read = [exam.reading for exam in exams if exam.reading is not None]
    columns = {
        "container": [reading.container for reading in read],
        "modality": [reading.modality or "unknown" for reading in read],
        "transfer syntax": [UID(syntax).name for reading in read for syntax in reading.transfer_syntaxes],
        "photometric": [f"{reading.photometric}, {reading.bits_stored} bits" for reading in read],
        "frame size": [f"{reading.rows} x {reading.columns}" for reading in read],
    }
    return {name: dict(Counter(values).most_common()) for name, values in columns.items() if values}


def split_rows(splits: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name of a row, then its cell for each split: what the terminal and the page show."""
    rows = [
        ("sequences", [str(split["sequences"]) for split in splits.values()]),
        ("readable", [str(split["readable"]) for split in splits.values()]),
        ("patients", [str(split["patients"] or "unknown") for split in splits.values()]),
        ("frames", [_range(split["frames"], "{:.0f}") for split in splits.values()]),
        ("duration (s)", [_range(split["duration_s"], "{:.1f}") for split in splits.values()]),
        ("between frames (ms)", [_range(split["gap_ms"], "{:.0f}") for split in splits.values()]),
        ("times unknown", [str(split["times_unknown"]) for split in splits.values()]),
    ]
    for name in next(iter(splits.values()))["classes"]:
        cells = [_share(split["classes"][name], split["labelled"]) for split in splits.values()]
        rows.append((f"class {name}", cells))
    return rows


def _range(values: dict[str, float] | None, form: str) -> str:
    if values is None:
        return "-"
    low, middle, high = (form.format(values[key]) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else "-"


def grouped(findings: Sequence[Finding]) -> list[tuple[str, bool, list[Finding]]]:
    """Heading, whether it fails, and findings of each kind that has any, worst first."""
    kinds = {kind: (heading, kind in PROBLEMS) for kind, heading in (PROBLEMS | SUSPICIOUS).items()}
    found = [(*kinds[kind], [finding for finding in findings if finding.kind == kind]) for kind in kinds]
    return [group for group in found if group[2]]


def terminal_table(checked: Checked, content: dict[str, Any]) -> str:
    """What a person reads: totals, splits, formats, findings by kind, and whether the list passes.

    Args:
        checked: the list.
        content: of `document`.
    """
    lines = [headline(content), ""]
    splits = content["splits"]
    table = [("median (smallest to largest)", list(splits)), *split_rows(splits)]
    widths = [max(len(cells[i]) for _, cells in table) for i in range(len(splits))]
    first = max(len(name) for name, _ in table)
    for name, cells in table:
        line = "  ".join([name.ljust(first), *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))])
        lines.append(line.rstrip())
    lines.append("")
    for name, counts in content["formats"].items():
        shown = [f"{value} {count}" for value, count in list(counts.items())[:SHOWN_FORMATS]]
        more = [f"{len(counts) - SHOWN_FORMATS} more"] * (len(counts) > SHOWN_FORMATS)
        lines.append(f"{name.ljust(first)}  {'; '.join(shown + more)}")
    for heading, fails, findings in grouped(checked.findings):
        lines += ["", f"{'PROBLEM' if fails else 'suspicious'}: {heading} ({len(findings)})"]
        lines += [f"  {finding}" for finding in findings[:SHOWN_FINDINGS]]
        if len(findings) > SHOWN_FINDINGS:
            lines.append(f"  ... and {len(findings) - SHOWN_FINDINGS} more in check.json")
    return "\n".join(lines)


def headline(content: dict[str, Any]) -> str:
    """One line: how many sequences, whose, and what is predicted of them."""
    total, task = content["splits"][ALL], content["task"]
    patients = f" of {counted(total['patients'], 'patient')}" if total["patients"] else ""
    predicted = f"{task['type']}, {len(task['classes'])} classes" if task else "no task"
    synthetic = " (synthetic)" if content["synthetic"] else ""
    return f"{content['datalist']}{synthetic}: {counted(total['sequences'], 'sequence')}{patients}, {predicted}"


def verdict(content: dict[str, Any]) -> str:
    """The last line: pass or fail, and how much was found."""
    outcome = "pass" if content["passed"] else "fail"
    problems, suspicious = len(content["problems"]), len(content["suspicious"])
    return f"{outcome}: {counted(problems, 'problem')}, {counted(suspicious, 'suspicious item')}"

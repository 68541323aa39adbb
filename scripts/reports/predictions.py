"""Rows of one inference run -> predictions.csv for people, predictions.json with everything."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import bad_value
from scripts.keys import (
    CLASSES,
    FRAME_INDICES,
    FRAME_TIMES,
    FRAME_WEIGHTS,
    IMAGE,
    LABEL,
    MULTILABEL,
    ORDERED,
    SEQUENCE,
    TASK,
    TASK_TYPES,
    TYPE,
)
from scripts.reports.resampling import decisions
from scripts.writing import write_file

FORMULA_STARTS = ("=", "+", "-", "@")  # a spreadsheet would run the cell: OWASP, CSV injection
NUM_FRAMES = "num_frames"
PATIENT_NUMBER = "patient_number"  # tells the patients of one file apart and says nothing else of them
PROBABILITIES = "probabilities"
AFTER_FRAME = "probabilities_after_frame"  # had the sequence ended there; JSON only
PER_FRAME = (FRAME_INDICES, FRAME_TIMES, FRAME_WEIGHTS, AFTER_FRAME)
PREDICTED = "predicted"
REASON = "reason"


def write_predictions(
    output_dir: Path,
    rows: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    failures: Sequence[Mapping[str, str]],
    *,
    task_type: str,
    ordered: bool = False,
) -> Path:
    """Path of predictions.csv, written with predictions.json beside it.

    Args:
        output_dir: made if it is not there.
        rows: per sequence `sequence`, `image` (its path in the list), `num_frames`, `probabilities` (K,), and
            of each used frame `frame_indices`, `frame_times_ms` (NaN = unknown), `frame_weights`,
            `probabilities_after_frame` (K,), any of which may be empty or left out; `label` and `patient_number`
            where they are known.
        classes: K names.
        failures: `image` and `reason` of each sequence that could not be used.
        task_type: binary, multiclass or multilabel; decides what `predicted` holds.
        ordered: whether the classes are grades.
    """
    if task_type not in TASK_TYPES:
        raise ValueError(bad_value(TASK, TYPE, task_type, "one of " + ", ".join(TASK_TYPES)))
    entries = [entry(row, classes, task_type) for row in rows]
    document = {
        TASK: {TYPE: task_type, CLASSES: list(classes), ORDERED: ordered},
        "predictions": entries,
        "failures": [{IMAGE: failure[IMAGE], REASON: failure[REASON]} for failure in failures],
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_file(output_dir / "predictions.json", strict_json(document))
    csv_path = output_dir / "predictions.csv"
    write_file(csv_path, csv_text(entries, classes))
    return csv_path


def entry(row: Mapping[str, Any], classes: Sequence[str], task_type: str) -> dict[str, Any]:
    """One sequence of predictions.json: the row, checked, with what is predicted added.

    Raises:
        ValueError: probabilities that do not fit the classes or are not finite, per-frame lists of
            different lengths.
    """
    probabilities = np.asarray(row[PROBABILITIES], dtype=np.float64)
    if probabilities.shape != (len(classes),):
        raise ValueError(bad_value(row[IMAGE], f"shape of {PROBABILITIES}", probabilities.shape, f"({len(classes)},)"))
    if not np.isfinite(probabilities).all():
        found = f"{(~np.isfinite(probabilities)).sum()} of {len(classes)}"
        raise ValueError(bad_value(row[IMAGE], "number of non-finite probabilities", found, "0"))
    per_frame = {key: listed(row.get(key)) for key in PER_FRAME}
    lengths = {key: len(values) for key, values in per_frame.items() if values}
    if len(set(lengths.values())) > 1:
        raise ValueError(bad_value(row[IMAGE], "length of the per-frame lists", lengths, "one length for all"))
    chosen = decisions(probabilities[None], task_type)[0]
    names = [name for name, is_chosen in zip(classes, chosen, strict=True) if is_chosen]
    result = {
        SEQUENCE: row[SEQUENCE],
        IMAGE: row[IMAGE],
        NUM_FRAMES: int(row[NUM_FRAMES]),
        PREDICTED: names if task_type == MULTILABEL else names[0],
        PROBABILITIES: probabilities.tolist(),
        **per_frame,
    }
    return result | {key: plain(row[key]) for key in (LABEL, PATIENT_NUMBER) if row.get(key) is not None}


def listed(values: Any) -> list[Any]:
    """Per-frame values as a plain list, empty for None."""
    return [] if values is None else np.asarray(values).tolist()


def csv_text(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    """The table: one line per sequence, one column per class; and one of labels, where any is known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    labelled = any(LABEL in row for row in entries)
    columns = [LABEL] * labelled + [safe_cell(f"probability_{name}") for name in classes]
    frame = ("most_weighted_frame", "most_weighted_frame_time_ms")
    writer.writerow([SEQUENCE, IMAGE, NUM_FRAMES, PREDICTED, *columns, *frame])
    for row in entries:
        predicted = row[PREDICTED] if isinstance(row[PREDICTED], str) else "|".join(row[PREDICTED])
        cells = [safe_cell(label_text(row.get(LABEL), classes))] * labelled
        cells += [f"{value:.6f}" for value in row[PROBABILITIES]]
        told = [safe_cell(row[SEQUENCE]), safe_cell(row[IMAGE]), row[NUM_FRAMES], safe_cell(predicted)]
        writer.writerow([*told, *cells, *most_weighted_frame(row)])
    return buffer.getvalue()


def label_text(label: int | Sequence[int] | None, classes: Sequence[str]) -> str:
    """The label's class, or its classes joined by `|`; a class of which it is not known has a question mark."""
    if not isinstance(label, Sequence):
        return "" if label is None else classes[label]
    return "|".join(name + "?" * (value < 0) for name, value in zip(classes, label, strict=True) if value)


def most_weighted_frame(row: Mapping[str, Any]) -> tuple[str, str]:
    """Index in the source and time of the frame that counted most, as text; empty where unknown."""
    weights = row[FRAME_WEIGHTS]
    if not weights or not np.isfinite(weights).any():
        return "", ""
    position = int(np.nanargmax(weights))
    index = str(row[FRAME_INDICES][position]) if row[FRAME_INDICES] else str(position)
    time_ms = row[FRAME_TIMES][position] if row[FRAME_TIMES] else np.nan
    return index, f"{time_ms:.3f}" if np.isfinite(time_ms) else ""


def safe_cell(value: object) -> str:
    """Text that a spreadsheet shows on one line and does not run as a formula."""
    text = " ".join(str(value).splitlines()).replace("\t", " ")
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def strict_json(document: object) -> str:
    """JSON that every reader accepts: keys sorted, numpy values as plain ones, NaN and infinity as null.

    Lists of numbers stand on one line; a line break is never inside a string, so none is changed.
    """
    text = json.dumps(plain(document), allow_nan=False, sort_keys=True, indent=2, ensure_ascii=False)
    return re.sub(r'\[\n([^"\[\]{}]+)\n *\]', lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def plain(value: Any) -> Any:
    """The same value in types that JSON has; non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, and what else offers them
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return [plain(item) for item in value] if isinstance(value, Sequence) else value

"""A table of labels -> rows; items and rows -> labels and their task, patients numbered, splits with patients whole."""

import csv
import io
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from scripts.errors import bad_value
from scripts.keys import (
    BINARY,
    CLASSES,
    IMAGE,
    LABEL,
    MULTICLASS,
    MULTILABEL,
    PATIENT,
    SEQUENCE,
    SPLITS,
    TEST,
    TRAINING,
    TYPE,
    VALIDATION,
)

SPLIT = "split"  # column of a table of labels
SPLIT_NAMES = {"train": TRAINING, "val": VALIDATION, "valid": VALIDATION} | {split: split for split in SPLITS}
TOGETHER = "Give all exams of a patient one split, or leave the splits out: they are then made by patient."


class LabelRow(NamedTuple):
    """What the user says of one exam."""

    image: str  # path of a file or a folder, as the list spells it
    labels: tuple[str, ...] | None  # names of classes; none of them: (); not labelled: None
    patient: str = ""  # who, in the user's words; never written
    split: str = ""  # one of SPLITS, or empty


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names and numbered rows of a CSV in UTF-8, cells stripped, empty lines left out.

    The separator is the comma, or the semicolon or tab of a header without a comma.

    Raises:
        FileNotFoundError, ValueError: no such file, not a table.
    """
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "labels", "absent", "an existing CSV file"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        way_out = "Save it again as CSV UTF-8."
        raise ValueError(bad_value(path, "encoding", "not UTF-8", "a CSV file in UTF-8", way_out)) from error
    head = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    try:
        lines = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error as error:
        raise ValueError(bad_value(path, "content", f"not a table ({error})", "a CSV file")) from error
    columns = lines[0] if lines else []
    rows = []
    for number, row in enumerate(lines[1:], start=2):
        if any(row[len(columns) :]):
            way_out = f"Put cells that hold a {delimiter!r} in double quotes."
            raise ValueError(
                bad_value(f"{path}: row {number}", "cells", len(row), f"{len(columns)}, as the header has", way_out)
            )
        if len(row) > 1 or any(row):
            rows.append((number, (row + [""] * len(columns))[: len(columns)]))
    return columns, rows


def read_labels(path: Path, label_column: str = LABEL) -> list[LabelRow]:
    """Rows of a CSV with the columns `image` and `label`, and, if it has them, `patient` and `split`.

    Raises:
        FileNotFoundError, ValueError: no such file, a column or a value is missing.
    """
    columns, table = read_table(path)
    for name in (IMAGE, label_column):
        if columns.count(name) != 1:  # the others are not quoted: without a header they are the first exam's cells
            there = f"{len(columns)}, {columns.count(name)} of them {name}"
            raise ValueError(bad_value(path, "columns", there, f"{IMAGE} and {label_column}"))
    optional = [name for name in (PATIENT, SPLIT) if name in columns]
    rows = []
    for number, cells in table:
        row = dict(zip(columns, cells, strict=True))
        where = f"{path}: row {number}"
        if not row[IMAGE] or not row[label_column]:
            found = (row[IMAGE], row[label_column])
            raise ValueError(bad_value(where, f"{IMAGE}, {label_column}", found, "both filled"))
        empty = next((name for name in optional if not row[name]), None)
        if empty is not None:
            way_out = "Fill it in every row, or leave the column out."
            raise ValueError(bad_value(where, empty, "empty", "a value", way_out))
        labels = tuple(part.strip() for part in row[label_column].split("|"))
        if not all(labels):
            raise ValueError(bad_value(where, label_column, row[label_column], "class names joined by |"))
        split = split_name(where, row[SPLIT]) if SPLIT in optional else ""
        image = PurePosixPath(row[IMAGE].replace("\\", "/")).as_posix()
        rows.append(LabelRow(image, labels, row.get(PATIENT, ""), split))
    return rows


def split_name(where: object, text: str) -> str:
    """The split of that name; `train` and `val` are understood.

    Raises:
        ValueError: another name.
    """
    name = SPLIT_NAMES.get(text.strip().lower())
    if name is None:
        raise ValueError(bad_value(where, SPLIT, text, f"one of {', '.join(SPLITS)}"))
    return name


def match_rows(
    items: Sequence[dict[str, Any]], rows: Iterable[LabelRow]
) -> tuple[list[LabelRow | None], list[LabelRow]]:
    """The row of each item, None where none names it, and the rows that name no item.

    A row names a file or a folder; the longest matching path wins.

    Raises:
        ValueError: two rows say different things of one path.
    """
    row_of: dict[str, LabelRow] = {}
    for row in rows:
        other = row_of.setdefault(row.image, row)
        if other != row:
            found = f"{'|'.join(other.labels or ())} and {'|'.join(row.labels or ())}"
            if other.labels == row.labels:
                raise ValueError(bad_value(row.image, f"{PATIENT} or {SPLIT}", "two", "one a path"))
            raise ValueError(bad_value(row.image, LABEL, found, "one label a path"))
    matched = []
    for item in items:
        first = item[IMAGE][0] if isinstance(item[IMAGE], list) else item[IMAGE]
        matched.append(next((row_of[p] for p in (first, *map(str, PurePosixPath(first).parents)) if p in row_of), None))
    used = {row.image for row in matched if row is not None}
    return matched, [row for image, row in row_of.items() if image not in used]


def label_items(
    items: Sequence[dict[str, Any]], labels: Sequence[tuple[str, ...]], classes: Sequence[str] | None
) -> dict[str, Any]:
    """Write `label` into each item; the task these labels make.

    Any item with several labels, or with none of the classes, makes the task multilabel.

    Args:
        items: get `label`, a class index, or K zeros and ones.
        labels: names of classes of each item.
        classes: names in the order of the logits; None means those found, sorted.

    Raises:
        ValueError: fewer than two classes, or a label that is not among `classes`.
    """
    found = {name for names in labels for name in names}
    names = list(classes) if classes else sorted(found)
    multilabel = any(len(parts) != 1 for parts in labels)
    if len(names) < (1 if multilabel else 2):
        raise ValueError(bad_value("labels", "classes", ", ".join(names), "at least two"))
    unknown = sorted(found - set(names))
    if unknown:
        raise ValueError(bad_value("labels", LABEL, unknown[0], f"one of the classes {', '.join(names)}"))
    for item, parts in zip(items, labels, strict=True):
        item[LABEL] = [int(name in parts) for name in names] if multilabel else names.index(parts[0])
    return {TYPE: MULTILABEL if multilabel else BINARY if len(names) == 2 else MULTICLASS, CLASSES: names}


def number_patients(items: Sequence[dict[str, Any]], patients: Sequence[Hashable]) -> None:
    """Write `patient` (P0001, ... in the order of items) and `sequence` (P0001-01, ...) into each item.

    Args:
        items: get both keys.
        patients: whatever tells the patient of each item apart; it goes no further.
    """
    numbers: dict[Hashable, int] = {}
    counts: Counter[Hashable] = Counter()
    for item, patient in zip(items, patients, strict=True):
        number = numbers.setdefault(patient, len(numbers) + 1)
        counts[patient] += 1
        item[PATIENT] = f"P{number:04d}"
        item[SEQUENCE] = f"P{number:04d}-{counts[patient]:02d}"


def given_splits(items: Sequence[dict[str, Any]], splits: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Items in the splits that the user gave.

    Raises:
        ValueError: an item without a split, or a patient in two; both exams are named.
    """
    out: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    first_of: dict[str, tuple[str, str]] = {}
    for item, split in zip(items, splits, strict=True):
        image = item[IMAGE][0] if isinstance(item[IMAGE], list) else item[IMAGE]
        if not split:
            raise ValueError(bad_value(image, SPLIT, "absent", f"one of {', '.join(SPLITS)}", TOGETHER))
        other, other_split = first_of.setdefault(item[PATIENT], (image, split))
        if other_split != split:
            found = f"{split}, but {other} of the same patient is in {other_split}"
            raise ValueError(bad_value(image, SPLIT, found, "each patient in one split only", TOGETHER))
        out[split].append(item)
    return out


def split_by_patient(items: list[dict[str, Any]], num_folds: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Items in training, validation and test: one fold each for the last two, classes balanced, patients whole.

    Raises:
        ValueError: fewer patients than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    patients = [item[PATIENT] for item in items]
    if num_folds < 3 or len(set(patients)) < num_folds:
        raise ValueError(
            bad_value(
                "datalist",
                "num_folds",
                num_folds,
                f"a number from 3 to that of patients labelled, {len(set(patients))}",
                "Patients are told apart by PatientID, else by the first folder, else by a column patient in --labels.",
            )
        )
    largest = max(Counter(str(item[LABEL]) for item in items).values())
    if largest < num_folds:
        way_out = f"Pass --num_folds {largest}." if largest > 2 else "Give splits: a column split in --labels."
        allowed = f"at most the sequences of the largest class, {largest}"
        raise ValueError(bad_value("datalist", "num_folds", num_folds, allowed, way_out))
    strata = _common(["|".join(map(str, np.atleast_1d(item[LABEL]))) for item in items], num_folds)
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split(items, strata, patients)
    fold_of = {int(i): fold for fold, (_, held_out) in enumerate(folds) for i in held_out}
    names = {0: TEST, 1: VALIDATION}
    out: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for i, item in enumerate(items):
        out[names.get(fold_of[i], TRAINING)].append(item)
    return out


def _common(strata: list[str], num_folds: int) -> list[str]:
    """Strata with those too rare for every fold joined, to the largest one if they are too few together."""
    counts = Counter(strata)
    rare = {name for name, count in counts.items() if count < num_folds}
    together = sum(counts[name] for name in rare)
    joined = "rare" if together >= num_folds else counts.most_common(1)[0][0]
    return [joined if name in rare else name for name in strata]

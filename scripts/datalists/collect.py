"""A folder of exams and a table of labels -> a datalist; a folder or file -> what to predict."""

import json
import logging
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from scripts.datalists.datalist import Task, all_items, class_counts
from scripts.datalists.labels import (
    LabelRow,
    given_splits,
    label_items,
    match_rows,
    number_patients,
    read_labels,
    split_by_patient,
)
from scripts.datalists.layouts import is_angioreport, read_angioreport
from scripts.datalists.scan import DICOMDIR, find_sequences
from scripts.errors import bad_value, printable
from scripts.keys import CLASSES, IMAGE, LABEL, PATIENT, SOURCE, SPLITS, SYNTHETIC, TASK, TEST, TYPE
from scripts.pages import counted
from scripts.writing import write_file

logger = logging.getLogger("angiography")

UNLABELLED_SPLIT = TEST
LAYOUTS = AUTO, FILES, ANGIOREPORT = ("auto", "files", "angioreport")


def write_datalist(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON under a temporary name, then rename.

    Raises:
        PermissionError: the folder cannot be written.
    """
    try:
        write_file(path, json.dumps(content, indent=1) + "\n")
    except PermissionError as error:
        way_out = "Give another place: --output PATH."
        raise PermissionError(bad_value(path, "folder", "read-only", "one that can be written", way_out)) from error


def find_inputs(source: str | Path, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Items to predict, from a datalist (.json), a folder of exams, a DICOMDIR, or one file; tells how many, and where.

    Raises:
        FileNotFoundError, ValueError: nothing there, or nothing that is an exam.
    """
    path = Path(source)
    if path.suffix == ".json":
        items = all_items(path, dataset_dir)
        if not items:
            raise ValueError(bad_value(path, "datalist", "empty", "at least one item"))
        first = [item[IMAGE][0] if isinstance(item[IMAGE], list) else item[IMAGE] for item in items]
        if not any(image.exists() for image in first):
            found = f"{dataset_dir}, which holds none of its {len(items)} exams"
            needs, way_out = "the folder that its paths are relative to", "Give --dataset_dir."
            raise FileNotFoundError(bad_value(path, "dataset_dir", found, needs, way_out))
        logger.info(f"input: {path}, {counted(len(items), 'exam')}")
        return items
    if path.is_file() and path.name.upper() != DICOMDIR:
        return [{IMAGE: path, SOURCE: path.name}]
    root = path if path.is_dir() else path.parent
    if path.is_dir() and is_angioreport(path):
        items, rows, lines, _ = read_angioreport(path, None, None)
        number_patients(items, [row.patient if row else item[IMAGE][0] for item, row in zip(items, rows, strict=True)])
    else:
        items, left_out, _ = find_sequences(path)
        lines = [f"left out: {reason}" for reason in left_out]
    for line in lines:
        logger.warning(printable(line))
    _refuse_none(root, items, [line.removeprefix("left out: ") for line in lines])
    for item in items:
        image = item[IMAGE]
        item[SOURCE] = image if isinstance(image, str) else f"{image[0]} (+{len(image) - 1} files)"
        item[IMAGE] = root / image if isinstance(image, str) else [root / name for name in image]
    logger.info(f"input: {path}, {counted(len(items), 'exam')}")
    return items


def make_datalist(
    dataset_dir: str | Path,
    labels: str | Path | None = None,
    output: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
    layout: str = AUTO,
    label_column: str | None = None,
    synthetic: bool = False,
) -> str:
    """Find sequences, attach labels, split by patient, write the JSON, and say what is in it.

    Args:
        dataset_dir: folder of exams, or a DICOMDIR; paths in the list are relative to that folder.
        labels: CSV of `read_labels`, or of `read_angioreport` with that layout; None writes an unlabelled list, all in
            `test`, unless the layout has labels of its own.
        output: the JSON; None means datalist.json in the folder.
        classes: names in the order of the logits; None means sorted.
        num_folds: of `split_by_patient`; not used where the labels give splits.
        seed: of the split.
        layout: `files`, `angioreport`, or `auto`, which recognises the latter.
        label_column: column of the labels to learn; None means `label`, or that of the layout.
        synthetic: the exams were made by a program, and every report shall say so.

    Raises:
        ValueError: nothing to list, or labels and sequences do not fit together.
    """
    source = Path(dataset_dir)
    root = source.parent if source.is_file() else source
    table = None if labels is None else Path(labels)
    if layout not in LAYOUTS:
        raise ValueError(bad_value("configuration", "layout", layout, f"one of {', '.join(LAYOUTS)}"))
    rows_of_exams = table is not None and table.suffix.lower() == ".json"
    if layout == ANGIOREPORT or (layout == AUTO and (rows_of_exams or is_angioreport(root))):
        items, rows, lines, made = read_angioreport(root, table, label_column)
        _refuse_none(root, items, [line.removeprefix("left out: ") for line in lines])
    else:
        items, left_out, made = find_sequences(source)
        _refuse_none(root, items, left_out)
        rows = [None] * len(items) if table is None else _rows_of(items, table, label_column or LABEL, left_out)
        lines = [f"left out: {reason}" for reason in left_out]
    splits, task, unlabelled = _label_and_split(items, rows, classes, num_folds, seed)
    lines += [f"no label: {image}" for image in unlabelled]
    path = Path(output) if output else root / "datalist.json"
    write_datalist(path, ({TASK: task} if task else {}) | {SYNTHETIC: synthetic or made} | splits)
    beside = "" if path.parent.resolve() == root.resolve() else f" (its paths are relative to --dataset_dir {root})"
    return "\n".join(map(printable, [*lines, *_summary(splits, task), f"{path}{beside}"]))


def _refuse_none(root: Path, items: Sequence[object], left_out: Sequence[str]) -> None:
    if not items:
        why = f"{len(left_out)} files were left out, the first: {left_out[0]}." if left_out else ""
        raise ValueError(bad_value(root, "folder", "without exams", "at least one angiography exam", why))


def _rows_of(
    items: Sequence[dict[str, Any]], table: Path, label_column: str, left_out: Sequence[str]
) -> list[LabelRow | None]:
    """The row of each item; a row of no item is refused, unless its file was left out with a reason."""
    rows, unused = match_rows(items, read_labels(table, label_column))
    unknown = [row.image for row in unused if not any(line.startswith(f"{row.image}:") for line in left_out)]
    if unknown:
        found = f"no sequence ({len(unknown)} rows)"
        raise ValueError(bad_value(f"labels row {unknown[0]}", IMAGE, found, "a path of a sequence"))
    return rows


def _label_and_split(
    items: list[dict[str, Any]],
    rows: Sequence[LabelRow | None],
    classes: Sequence[str] | None,
    num_folds: int,
    seed: int,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any] | None, list[str]]:
    """Splits of the items, their task (None without labels), and the images that a labelled list leaves out."""
    task, unlabelled = None, []
    if any(row is not None and row.labels is not None for row in rows):
        unlabelled = [_first(item) for item, row in zip(items, rows, strict=True) if row is None or row.labels is None]
        pairs = [
            (item, row) for item, row in zip(items, rows, strict=True) if row is not None and row.labels is not None
        ]
        items, rows = [item for item, _ in pairs], [row for _, row in pairs]
        task = label_items(items, [row.labels or () for _, row in pairs], classes)
    known = [row or LabelRow("", None) for row in rows]
    patients: list[Hashable] = [
        ("told", row.patient) if row.patient else item[PATIENT] for item, row in zip(items, known, strict=True)
    ]
    number_patients(items, patients)
    if any(row.split for row in known):
        return given_splits(items, [row.split for row in known]), task, unlabelled
    if task is None:
        return {split: items if split == UNLABELLED_SPLIT else [] for split in SPLITS}, None, []
    return split_by_patient(items, num_folds, seed), task, unlabelled


def _first(item: dict[str, Any]) -> str:
    return item[IMAGE] if isinstance(item[IMAGE], str) else item[IMAGE][0]


def _summary(splits: dict[str, list[dict[str, Any]]], task: dict[str, Any] | None) -> list[str]:
    """One line for each split: sequences, patients, and how many carry each class."""
    lines = []
    for split, chosen in splits.items():
        line = f"{split}: {len(chosen)} sequences, {len({item[PATIENT] for item in chosen})} patients"
        if task:
            counts = class_counts(chosen, Task(task[TYPE], tuple(task[CLASSES])))
            line += "".join(f", {name} {count}" for name, count in zip(task[CLASSES], counts, strict=True))
        lines.append(line)
    return lines

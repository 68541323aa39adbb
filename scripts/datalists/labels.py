"""Labels of a CSV -> items with labels and their task -> splits with patients kept apart."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    SPLITS,
    TEST,
    TRAINING,
    TYPE,
    VALIDATION,
)


def read_labels(path: Path) -> list[tuple[str, str]]:
    """Rows (image, label) of a CSV with the columns `image` and `label`.

    Raises:
        FileNotFoundError, ValueError: no such file, a column or a value is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "labels", "absent", "an existing CSV file"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(bad_value(path, "encoding", "not UTF-8", "a CSV file in UTF-8")) from error
    rows = csv.DictReader(text.splitlines())
    if not {IMAGE, LABEL} <= set(rows.fieldnames or ()):
        raise ValueError(bad_value(path, "columns", rows.fieldnames, f"{IMAGE} and {LABEL}"))
    pairs = [((row[IMAGE] or "").strip().rstrip("/"), (row[LABEL] or "").strip()) for row in rows]
    empty = next((i for i, pair in enumerate(pairs) if not all(pair)), None)
    if empty is not None:
        raise ValueError(bad_value(f"{path}: row {empty + 2}", "image, label", pairs[empty], "both filled"))
    return pairs


def attach_labels(
    items: list[dict[str, Any]], rows: Sequence[tuple[str, str]], classes: Sequence[str] | None
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Items with labels, the task they make, and the items that no row names.

    A row names a file or a folder; the longest matching path wins. Labels joined by `|` make the task multilabel.

    Raises:
        ValueError: a row that matches nothing, or a label that is not among `classes`.
    """
    label_of: dict[str, str] = {}
    for image, label in rows:
        if label_of.setdefault(image, label) != label:
            raise ValueError(bad_value(image, LABEL, f"{label_of[image]} and {label}", "one label a path"))
    used, labelled, without = set(), [], []
    for item in items:
        first = item[IMAGE][0] if isinstance(item[IMAGE], list) else item[IMAGE]
        row = next((p for p in (first, *map(str, Path(first).parents)) if p in label_of), None)
        if row is None:
            without.append(str(first))
            continue
        used.add(row)
        labelled.append((item, label_of[row]))
    unused = [image for image in label_of if image not in used]
    if unused:
        raise ValueError(
            bad_value(f"labels row {unused[0]}", IMAGE, f"no sequence ({len(unused)} rows)", "a path of a sequence")
        )
    nameless = next((image for image, label in label_of.items() if not all(label.split("|"))), None)
    if nameless is not None:
        raise ValueError(bad_value(f"labels row {nameless}", LABEL, label_of[nameless], "class names joined by |"))
    found = {part for _, label in labelled for part in label.split("|")}
    names = list(classes) if classes else sorted(found)
    if len(names) < 2 and not any("|" in label for _, label in labelled):
        raise ValueError(bad_value("labels", "classes", ", ".join(names), "at least two"))
    unknown = sorted(found - set(names))
    if unknown:
        raise ValueError(bad_value("labels", LABEL, unknown[0], f"one of the classes {', '.join(names)}"))
    multilabel = any("|" in label for _, label in labelled)
    kind = MULTILABEL if multilabel else BINARY if len(names) == 2 else MULTICLASS
    for item, label in labelled:
        parts = label.split("|")
        item[LABEL] = [int(name in parts) for name in names] if multilabel else names.index(label)
    return [item for item, _ in labelled], {TYPE: kind, CLASSES: names}, without


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
                f"3 to {len(set(patients))}, the number of patients labelled",
            )
        )
    if max(Counter(str(item[LABEL]) for item in items).values()) < num_folds:
        raise ValueError(bad_value("datalist", "num_folds", num_folds, "at most the sequences of the largest class"))
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

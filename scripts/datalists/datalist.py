"""The datalist: JSON of exams and labels -> checked items with paths inside `dataset_dir`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datalists.items import Task, names_of, read_item
from scripts.errors import bad_value
from scripts.keys import (
    BINARY,
    CLASSES,
    ENTRY,
    IMAGE,
    LABEL,
    MULTILABEL,
    ORDERED,
    PATIENT,
    SOURCE,
    SPLITS,
    SYNTHETIC,
    TASK,
    TASK_TYPES,
    TYPE,
)

KINDS = {dict: "an object", list: "a list", str: "a text"}


def read_datalist(path: str | Path, dataset_dir: str | Path) -> dict[str, Any]:
    """A datalist with every item checked and every path made absolute.

    Args:
        path: the JSON file.
        dataset_dir: what its paths are relative to; a path that leaves it is refused.

    Returns:
        The splits present, each a list of items, and `task` if the file has one. An item gains `source`, its path
        as the list spells it, or the name of a sequence that is there as an entry of a feature store alone; so
        messages and results name it.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a datalist, or an item breaks the contract of docs/data_contract.md.
    """
    path, root = _existing(path), Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(bad_value("configuration", "dataset_dir", root, "an existing folder"))
    content = read_json(path)
    task = task_of(path, content)
    out: dict[str, Any] = {} if task is None else {TASK: task}
    real: dict[Path, Path] = {}
    for split in SPLITS:
        items = content.get(split, [])
        if not isinstance(items, list):
            raise ValueError(bad_value(path, split, _kind(items), "a list of items"))
        out[split] = [read_item(f"{path.name}: {split}[{i}]", item, root, task, real) for i, item in enumerate(items)]
    _refuse_leaks(path, out, real)
    return out


def labelled_split(path: str | Path, dataset_dir: str | Path, split: str) -> list[dict[str, Any]]:
    """The items of one split, all with a label.

    Raises:
        ValueError: an unknown or empty split, no task, or an item without a label.
    """
    if split not in SPLITS:
        raise ValueError(bad_value("configuration", "split", split, f"one of {SPLITS}"))
    content = read_datalist(path, dataset_dir)
    items = content[split]
    if TASK not in content:
        raise ValueError(bad_value(path, TASK, "absent", f"a type of {TASK_TYPES} and the names of the classes"))
    if not items:
        raise ValueError(bad_value(path, split, "empty", "at least one item"))
    missing = [item[SOURCE] for item in items if LABEL not in item]
    if missing:
        raise ValueError(bad_value(missing[0], LABEL, f"absent ({len(missing)} items of {split})", "a class index"))
    return items


def all_items(path: str | Path, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """The items of all splits, labelled or not, in the order of `SPLITS`, for those who read their images.

    Raises:
        ValueError: an item without an image, beside what `read_datalist` raises.
    """
    content = read_datalist(path, dataset_dir)
    items = [item for split in SPLITS for item in content[split]]
    exported = [item[SOURCE] for item in items if ENTRY in item]
    if exported:
        found = f"absent ({len(exported)} of {len(items)} items have an {ENTRY} of a feature store instead)"
        way_out = "This list was exported with a store: train from it, or take the list that names the exams."
        raise ValueError(bad_value(f"{path}: {exported[0]}", IMAGE, found, "an exam to read", way_out))
    return items


def read_task(path: str | Path, dataset_dir: str | Path) -> Task:
    """The task of a datalist."""
    content = read_datalist(path, dataset_dir)
    if TASK not in content:
        raise ValueError(bad_value(path, TASK, "absent", f"a type of {TASK_TYPES} and the names of the classes"))
    return content[TASK]


def is_synthetic(path: str | Path) -> bool:
    """True if the list says that its exams were made by a program."""
    return read_json(_existing(path)).get(SYNTHETIC) is True


def datalist_digest(path: str | Path) -> str:
    """SHA-256 (hex) of the datalist's bytes, for the record of a run."""
    return hashlib.sha256(_existing(path).read_bytes()).hexdigest()


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        way_out = "Make one: python -m scripts datalist FOLDER"
        raise FileNotFoundError(bad_value(path, "datalist", "absent", "an existing JSON file", way_out))
    return Path(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object of splits in a file; a byte order mark, as Windows writes it, is let pass."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(bad_value(path, "content", f"not JSON ({error})", "a JSON object of splits")) from error
    if not isinstance(content, dict) or not any(split in content for split in SPLITS):
        found = f"an object with {', '.join(content)}" if isinstance(content, dict) and content else _kind(content)
        raise ValueError(bad_value(path, "content", found, f"an object with any of {SPLITS}"))
    for name, value in content.items():  # such as val, which would leave validation empty without a word
        if name not in SPLITS and isinstance(value, list) and any(map(_is_item, value)):
            raise ValueError(bad_value(path, "split", name, f"one of {', '.join(SPLITS)}", "Rename it."))
    return content


def _is_item(value: object) -> bool:
    return isinstance(value, dict) and (IMAGE in value or ENTRY in value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; one that names a key twice would lose the first value without a word."""
    out = dict(pairs)
    if len(out) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in [other for other, _ in pairs[:i]])
        raise ValueError(f"the key {twice} stands twice in one object")
    return out


def _kind(value: object) -> str:
    """What a value of JSON is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return next((name for kind, name in KINDS.items() if isinstance(value, kind)), "a number")


def task_of(path: Path, content: dict) -> Task | None:
    """The task block of a datalist's content, None where it has none.

    Raises:
        ValueError: an unknown type, or classes that do not fit it.
    """
    task = content.get(TASK)
    if task is None:
        return None
    kind, classes = (task.get(TYPE), task.get(CLASSES)) if isinstance(task, dict) else (None, None)
    if kind not in TASK_TYPES:
        raise ValueError(bad_value(path, f"{TASK}.{TYPE}", kind, f"one of {TASK_TYPES}"))
    named = isinstance(classes, list) and all(isinstance(c, str) and c.strip() for c in classes)
    if not named or len(set(classes)) != len(classes) or len(classes) < (1 if kind == MULTILABEL else 2):  # type: ignore[arg-type]
        raise ValueError(bad_value(path, f"{TASK}.{CLASSES}", classes, "two or more different names"))
    if kind == BINARY and len(classes) != 2:  # type: ignore[arg-type]
        raise ValueError(bad_value(path, f"{TASK}.{CLASSES}", classes, "two names, since type is binary"))
    ordered = task.get(ORDERED, False)
    if not isinstance(ordered, bool) or (ordered and kind == MULTILABEL):
        allowed = "true or false" if kind != MULTILABEL else "false: classes of a multilabel task exclude no other"
        raise ValueError(bad_value(path, f"{TASK}.{ORDERED}", ordered, allowed))
    return Task(kind, tuple(classes), ordered)  # type: ignore[arg-type]


def _refuse_leaks(path: Path, content: dict[str, Any], real: dict[Path, Path]) -> None:
    """One patient in one split, one sequence in the list, told by real paths."""
    split_of: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for split in SPLITS:
        for i, item in enumerate(content[split]):
            where = f"{path.name}: {split}[{i}] ({item[SOURCE]})"
            patient = item.get(PATIENT)
            if patient is not None and split_of.setdefault(str(patient), split) != split:
                found, way_out = (
                    f"also in {split_of[str(patient)]}",
                    "Make the list again: datalist keeps patients apart.",
                )
                raise ValueError(bad_value(where, PATIENT, found, "each patient in one split only", way_out))
            for name in names_of(item, real):
                if name in seen:
                    raise ValueError(bad_value(where, name[0], f"a duplicate of {seen[name]}", "each sequence once"))
                seen[name] = f"{split}[{i}]"


def class_counts(items: Sequence[dict[str, Any]], task: Task) -> np.ndarray:
    """How many items carry each class, (K,) int64."""
    labels = [item[LABEL] for item in items]
    if task.type == MULTILABEL:
        return (np.asarray(labels, dtype=np.int64).reshape(-1, len(task.classes)) == 1).sum(axis=0)  # -1: not known
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(task.classes))

"""The datalist: JSON of exams and labels -> checked items with paths inside `dataset_dir`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.errors import bad_value
from scripts.keys import (
    BINARY,
    CLASSES,
    FRAME_TIMES,
    FRAMES,
    IMAGE,
    LABEL,
    MULTILABEL,
    PATIENT,
    SEQUENCE,
    SOURCE,
    SPLITS,
    SYNTHETIC,
    TASK,
    TASK_TYPES,
    TYPE,
)
from scripts.sequences.frames import are_indices, are_times


@dataclass(frozen=True)
class Task:
    """What is predicted: `type` is binary, multiclass or multilabel; `classes` names logit 0, 1, ..."""

    type: str
    classes: tuple[str, ...]


def read_datalist(path: str | Path, dataset_dir: str | Path) -> dict[str, Any]:
    """A datalist with every item checked and every path made absolute.

    Args:
        path: the JSON file.
        dataset_dir: what its paths are relative to; a path that leaves it is refused.

    Returns:
        The splits present, each a list of items, and `task` if the file has one. An item gains `source`, its path
        as the list spells it, which is how messages and results name it.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a datalist, or an item breaks the contract of docs/data_contract.md.
    """
    path, root = Path(path), Path(dataset_dir)
    if not path.is_file():
        raise FileNotFoundError(
            bad_value(
                path,
                "datalist",
                "absent",
                "an existing JSON file",
                "Make one: python -m scripts datalist FOLDER",
            )
        )
    if not root.is_dir():
        raise FileNotFoundError(bad_value("configuration", "dataset_dir", root, "an existing folder"))
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(bad_value(path, "content", f"not JSON ({error})", "a JSON object of splits")) from error
    if not isinstance(content, dict) or not any(split in content for split in SPLITS):
        raise ValueError(bad_value(path, "content", type(content).__name__, f"an object with any of {SPLITS}"))
    task = _read_task(path, content)
    out: dict[str, Any] = {} if task is None else {TASK: task}
    for split in SPLITS:
        items = content.get(split, [])
        if not isinstance(items, list):
            raise ValueError(bad_value(path, split, type(items).__name__, "a list of items"))
        out[split] = [_read_item(f"{path.name}: {split}[{i}]", item, root, task) for i, item in enumerate(items)]
    _refuse_leaks(path, out)
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
    """The items of all splits, labelled or not, in the order of `SPLITS`."""
    content = read_datalist(path, dataset_dir)
    return [item for split in SPLITS for item in content[split]]


def read_task(path: str | Path, dataset_dir: str | Path) -> Task:
    """The task of a datalist."""
    content = read_datalist(path, dataset_dir)
    if TASK not in content:
        raise ValueError(bad_value(path, TASK, "absent", f"a type of {TASK_TYPES} and the names of the classes"))
    return content[TASK]


def is_synthetic(path: str | Path) -> bool:
    """True if the list says that its exams were made by a program."""
    return json.loads(Path(path).read_text()).get(SYNTHETIC) is True


def datalist_digest(path: str | Path) -> str:
    """SHA-256 (hex) of the datalist's bytes, for the record of a run."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _read_task(path: Path, content: dict) -> Task | None:
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
    return Task(kind, tuple(classes))  # type: ignore[arg-type]


def _read_item(where: str, item: Any, root: Path, task: Task | None) -> dict[str, Any]:
    if not isinstance(item, dict) or not item.get(IMAGE):
        raise ValueError(bad_value(where, IMAGE, "absent", "a path, a list of paths or a folder"))
    source = item[IMAGE]
    paths = source if isinstance(source, list) else [source]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(bad_value(where, IMAGE, source, "a path, a list of paths or a folder"))
    inside = [resolve_inside(where, path, root) for path in paths]
    out = dict(item)
    out[IMAGE] = inside if isinstance(source, list) else inside[0]
    out[SOURCE] = source if isinstance(source, str) else f"{paths[0]} (+{len(paths) - 1} files)"
    for key, allowed, fits in (
        (FRAMES, "a list of 0-based frame indices", are_indices),
        (FRAME_TIMES, "a list of one finite number or null for each frame", are_times),
    ):
        if item.get(key) is not None and not fits(item[key]):
            raise ValueError(bad_value(where, key, item[key], allowed))
    if LABEL in item:
        if task is None:
            raise ValueError(bad_value(where, LABEL, item[LABEL], f"a {TASK} block that names the classes"))
        out[LABEL] = check_label(where, item[LABEL], task)
    return out


def resolve_inside(where: str, path: str, root: Path) -> Path:
    """The absolute path of a list entry.

    Raises:
        ValueError: it leads out of `root`, by `..`, as an absolute path or through a link.
    """
    absolute = root / path
    if "\0" in path or not absolute.resolve().is_relative_to(root.resolve()):
        raise ValueError(bad_value(where, IMAGE, path, "a path inside dataset_dir"))
    return absolute


def check_label(where: str, label: Any, task: Task) -> int | list[int]:
    """The label if it fits the task.

    Raises:
        ValueError: a class index out of range, or not one 0 or 1 for each class.
    """
    num_classes = len(task.classes)
    names = ", ".join(f"{i} {name}" for i, name in enumerate(task.classes[:8])) + (", ..." if num_classes > 8 else "")
    if task.type == MULTILABEL:
        if not isinstance(label, list) or len(label) != num_classes or any(v not in (0, 1) for v in label):
            raise ValueError(bad_value(where, LABEL, label, f"{num_classes} values of 0 or 1, for: {names}"))
        return [int(value) for value in label]
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_classes:
        raise ValueError(bad_value(where, LABEL, label, f"a class index of: {names}"))
    return label


def _refuse_leaks(path: Path, content: dict[str, Any]) -> None:
    """One patient in one split, one sequence in the list."""
    split_of: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for split in SPLITS:
        for i, item in enumerate(content[split]):
            where = f"{path.name}: {split}[{i}] ({item[SOURCE]})"
            patient = item.get(PATIENT)
            if patient is not None and split_of.setdefault(str(patient), split) != split:
                raise ValueError(
                    bad_value(
                        where,
                        PATIENT,
                        f"also in {split_of[str(patient)]}",
                        "each patient in one split only",
                        "Make the list again: python -m scripts datalist keeps patients apart.",
                    )
                )
            image = item[IMAGE] if isinstance(item[IMAGE], list) else [item[IMAGE]]
            files = [file for p in image for file in ([p, *p.iterdir()] if p.is_dir() else [p])]
            names = [(IMAGE, str(file.resolve())) for file in files]
            names += [(SEQUENCE, str(item[SEQUENCE]))] if item.get(SEQUENCE) is not None else []
            for name in names:
                if name in seen:
                    raise ValueError(bad_value(where, name[0], f"a duplicate of {seen[name]}", "each sequence once"))
                seen[name] = f"{split}[{i}]"


def class_counts(items: Sequence[dict[str, Any]], task: Task) -> np.ndarray:
    """How many items carry each class, (K,) int64."""
    labels = [item[LABEL] for item in items]
    if task.type == MULTILABEL:
        return np.asarray(labels, dtype=np.int64).reshape(-1, len(task.classes)).sum(axis=0)
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(task.classes))

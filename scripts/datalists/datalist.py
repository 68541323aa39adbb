"""The datalist: JSON of exams and labels -> checked items with paths inside `dataset_dir`."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.dicom.facts import CODES
from scripts.errors import bad_value
from scripts.keys import (
    BINARY,
    CLASSES,
    ENTRY,
    FRAME_TIMES,
    FRAMES,
    IMAGE,
    LABEL,
    MODALITY,
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

KINDS = {dict: "an object", list: "a list", str: "a text"}


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
        as the list spells it, or the name of a sequence that is there as an entry of a feature store alone; so
        messages and results name it.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a datalist, or an item breaks the contract of docs/data_contract.md.
    """
    path, root = Path(path), Path(dataset_dir)
    if not path.is_file():
        way_out = "Make one: python -m scripts datalist FOLDER"
        raise FileNotFoundError(bad_value(path, "datalist", "absent", "an existing JSON file", way_out))
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
    return read_json(Path(path)).get(SYNTHETIC) is True


def datalist_digest(path: str | Path) -> str:
    """SHA-256 (hex) of the datalist's bytes, for the record of a run."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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
    return Task(kind, tuple(classes))  # type: ignore[arg-type]


def read_item(
    where: str, item: Any, root: Path, task: Task | None, real: dict[Path, Path] | None = None
) -> dict[str, Any]:
    """One item with paths made absolute and `source` added.

    Args:
        where: names it in messages.
        item: as JSON has it.
        root: dataset_dir.
        task: of the list.
        real: of `real_path`.

    Raises:
        ValueError: it breaks the contract of docs/data_contract.md.
    """
    exported = isinstance(item, dict) and ENTRY in item
    out = _read_entry(where, item) if exported else _read_image(where, item, root, real)
    for key, allowed, fits in (
        (FRAMES, "a list of 0-based frame indices", are_indices),
        (FRAME_TIMES, "a list of one finite number or null for each frame", are_times),
    ):
        if item.get(key) is not None and not fits(item[key]):
            raise ValueError(bad_value(where, key, item[key], allowed))
    num_files = len(item[IMAGE]) if isinstance(item.get(IMAGE), list) else 1
    times = item.get(FRAME_TIMES)
    if num_files > 1 and times is not None and len(times) != num_files:
        raise ValueError(bad_value(where, FRAME_TIMES, f"{len(times)} times", f"{num_files}, one for each file"))
    if item.get(MODALITY) is not None and item[MODALITY] not in CODES["Modality"]:
        raise ValueError(bad_value(where, MODALITY, item[MODALITY], f"one of {', '.join(CODES['Modality'])}"))
    if LABEL in item:
        if task is None:
            raise ValueError(bad_value(where, LABEL, item[LABEL], f"a {TASK} block that names the classes"))
        out[LABEL] = check_label(where, item[LABEL], task)
    return out


def _read_image(where: str, item: Any, root: Path, real: dict[Path, Path] | None) -> dict[str, Any]:
    """An item that names files."""
    if not isinstance(item, dict) or not item.get(IMAGE):
        raise ValueError(bad_value(where, IMAGE, "absent", "a path, a list of paths or a folder"))
    source = item[IMAGE]
    paths = source if isinstance(source, list) else [source]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(bad_value(where, IMAGE, source, "a path, a list of paths or a folder"))
    inside = [resolve_inside(where, path, root, real) for path in paths]
    named = source if isinstance(source, str) else f"{paths[0]} (+{len(paths) - 1} files)"
    return item | {IMAGE: inside if isinstance(source, list) else inside[0], SOURCE: named}


def _read_entry(where: str, item: dict[str, Any]) -> dict[str, Any]:
    """An item that names an entry of a feature store, whose frames and times were chosen when it was made."""
    entry = item[ENTRY]
    if not isinstance(entry, str) or not re.fullmatch("[0-9a-f]{64}", entry):
        raise ValueError(bad_value(where, ENTRY, entry, "a key of a feature store, 64 lower-case hex digits"))
    for key in (IMAGE, FRAMES, FRAME_TIMES):
        if item.get(key) is not None:
            raise ValueError(
                bad_value(where, key, f"given beside {ENTRY}", "one of both: what is stored is already chosen")
            )
    return item | {SOURCE: str(entry[:16] if item.get(SEQUENCE) is None else item[SEQUENCE])}


def resolve_inside(where: str, path: str, root: Path, real: dict[Path, Path] | None = None) -> Path:
    """The absolute path of a list entry.

    Args:
        where: names the item.
        path: as the list spells it.
        root: what it is relative to.
        real: real paths of folders already looked up; gets those looked up here.

    Raises:
        ValueError: it leads out of `root`, by `..`, as an absolute path or through a link.
    """
    absolute, real = root / path, {} if real is None else real
    if "\0" in path or not real_path(absolute, real).is_relative_to(real_path(root, real)):
        raise ValueError(bad_value(where, IMAGE, path, "a path inside dataset_dir"))
    return absolute


def real_path(path: Path, real: dict[Path, Path]) -> Path:
    """The path without links and `..`; quick for many files of one folder, which is followed once."""
    parent = real.get(path.parent)
    if parent is None:
        parent = real[path.parent] = path.parent.resolve()
    return path.resolve() if path.name in ("", "..") or path.is_symlink() else parent / path.name


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


def names_of(item: dict[str, Any], real: dict[Path, Path]) -> list[tuple[str, str]]:
    """What no other item may have: (IMAGE, real path) of each file and folder, (ENTRY, key), (SEQUENCE, its name).

    Args:
        item: of `read_item`.
        real: of `real_path`.
    """
    if ENTRY in item:
        names = [(ENTRY, item[ENTRY])]
    else:
        image = item[IMAGE] if isinstance(item[IMAGE], list) else [item[IMAGE]]
        files = [file for path in image for file in ([path, *path.iterdir()] if path.is_dir() else [path])]
        names = [(IMAGE, str(real_path(file, real))) for file in files]
    return names + ([(SEQUENCE, str(item[SEQUENCE]))] if item.get(SEQUENCE) is not None else [])


def class_counts(items: Sequence[dict[str, Any]], task: Task) -> np.ndarray:
    """How many items carry each class, (K,) int64."""
    labels = [item[LABEL] for item in items]
    if task.type == MULTILABEL:
        return np.asarray(labels, dtype=np.int64).reshape(-1, len(task.classes)).sum(axis=0)
    return np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(task.classes))

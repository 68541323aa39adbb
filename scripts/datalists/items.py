"""One item of a datalist, as JSON has it -> the item checked, with paths inside `dataset_dir`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.dicom.facts import CODES
from scripts.errors import bad_value
from scripts.keys import ENTRY, FRAME_TIMES, FRAMES, IMAGE, LABEL, MODALITY, MULTILABEL, SEQUENCE, SOURCE, TASK
from scripts.sequences.frames import are_indices, are_times


@dataclass(frozen=True)
class Task:
    """What is predicted: `type` is binary, multiclass or multilabel; `classes` names logit 0, 1, ...

    They are `ordered` where they are grades, the first the lowest: then quadratic kappa is given too.
    """

    type: str
    classes: tuple[str, ...]
    ordered: bool = False


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
        (FRAMES, "a list of ascending 0-based frame indices", are_indices),
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
    """The label if it fits the task; of several labels one that is not known, null in the list, is -1.

    Raises:
        ValueError: a class index out of range, or not one 0, 1 or null for each class, or nothing but null.
    """
    num_classes = len(task.classes)
    names = ", ".join(f"{i} {name}" for i, name in enumerate(task.classes[:8])) + (", ..." if num_classes > 8 else "")
    if task.type == MULTILABEL:
        fits = isinstance(label, list) and len(label) == num_classes and all(v in (0, 1, None) for v in label)
        if not fits or all(value is None for value in label):
            allowed = f"{num_classes} values of 0, 1 or null (not known), not all null, for: {names}"
            raise ValueError(bad_value(where, LABEL, label, allowed))
        return [-1 if value is None else int(value) for value in label]
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < num_classes:
        raise ValueError(bad_value(where, LABEL, label, f"a class index of: {names}"))
    return label


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

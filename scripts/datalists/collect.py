"""A folder of exams -> sequences, grouped from headers alone; with labels, a datalist."""

import filecmp
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from tqdm import tqdm

from scripts.datalists.datalist import all_items
from scripts.datalists.labels import attach_labels, read_labels, split_by_patient
from scripts.dicom.files import is_dicom
from scripts.dicom.part10 import reading
from scripts.dicom.times import TIMING_TAGS, acquisition_ms, temporal_order
from scripts.errors import SequenceError, bad_value
from scripts.keys import (
    CLASSES,
    IMAGE,
    LABEL,
    MULTILABEL,
    PATIENT,
    SEQUENCE,
    SOURCE,
    SPLITS,
    SYNTHETIC,
    TASK,
    TEST,
    TYPE,
)

logger = logging.getLogger("angiography")

GROUPING_TAGS = [
    "PatientID",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "InstanceNumber",
    "NumberOfFrames",
    "Modality",
    "ImageLaterality",
    "Rows",
    "Manufacturer",
    *TIMING_TAGS,
]
OPHTHALMIC = ("OP", "OPT")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # PS3.3 A.8: a still from anywhere, not an acquisition
UNLABELLED_SPLIT = TEST
SYNTHETIC_MANUFACTURER = "angiography_sequence_classification phantom"  # (0008,0070) of every synthetic exam


@dataclass(frozen=True)
class _File:
    path: Path
    patient: str
    series: str
    instance: str
    number: int | None
    frames: int
    acquired_ms: float | None
    ophthalmic_run: tuple[str, str] | None  # day and eye: such exports give each file a series of its own
    synthetic: bool


def find_sequences(root: Path, progress: bool = True) -> tuple[list[dict[str, Any]], list[str], bool]:
    """Every angiographic run below a folder, from headers alone.

    A multi-frame file is one sequence. Single-frame files of one folder and series are one sequence if their headers
    order them; in ophthalmic exports, where each file is a series, those of one folder, patient, day and eye are.

    Args:
        root: searched with all folders below.
        progress: show a progress bar.

    Returns:
        Items with `image` relative to `root` (a file, a folder, or a list of files), `patient` (P0001, ... in the
        order of paths: the real identifier never leaves this function) and `sequence`; what was left out and why; and
        whether all of it was made by scripts/sequences/phantom.py.
    """
    if not root.is_dir():
        raise FileNotFoundError(bad_value(root, "folder", "absent", "an existing folder of DICOM files"))
    paths = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    with ThreadPoolExecutor(8) as pool:
        bar = tqdm(
            pool.map(lambda path: _read(path, root), paths),
            total=len(paths),
            unit="file",
            disable=not progress,
        )
        read = list(bar)
    left_out = [reason for reason in read if isinstance(reason, str)]
    files: list[_File] = []
    seen: dict[str, Path] = {}
    for file in read:
        if not isinstance(file, _File):
            continue
        first = seen.setdefault(file.instance, file.path)
        if first != file.path and _same_content(first, file.path):
            left_out.append(f"{file.path.relative_to(root)}: a copy of {first.relative_to(root)}")
        else:
            files.append(file)
    groups: dict[tuple, list[_File]] = defaultdict(list)
    for file in files:
        single = file.frames == 1
        series = file.ophthalmic_run or file.series
        groups[(file.path.parent, file.patient, series) if single else (file.path,)].append(file)
    images: list[tuple[Any, str]] = []
    for group in groups.values():
        images += [(image, group[0].patient) for image in _as_sequences(group, root)]
    images.sort(key=lambda pair: pair[0] if isinstance(pair[0], str) else pair[0][0])
    numbers: dict[str, int] = {}
    counts: dict[str, int] = defaultdict(int)
    items = []
    for image, patient in images:
        number = numbers.setdefault(patient, len(numbers) + 1)
        counts[patient] += 1
        items.append(
            {IMAGE: image, PATIENT: f"P{number:04d}", SEQUENCE: f"P{number:04d}-{counts[patient]:02d}"},
        )
    return items, left_out, bool(files) and all(file.synthetic for file in files)


def _read(path: Path, root: Path) -> _File | str | None:
    """One file's place in the groups; a reason if it is DICOM but no image run; None if it is not DICOM."""
    name = path.relative_to(root)
    if not path.resolve().is_relative_to(root.resolve()):
        return f"{name}: leads out of the folder"
    if not is_dicom(path):
        return None
    try:
        with reading(name, "header"):
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(GROUPING_TAGS))
            if header.get("Rows") is None:
                return f"{name}: no image in it"
            frames = int(header.get("NumberOfFrames") or 1)
            number = header.get("InstanceNumber")
            still = str(header.get("SOPClassUID")) == SECONDARY_CAPTURE
            day = str(header.get("AcquisitionDateTime") or header.get("AcquisitionDate") or "")[:8]
            eye = str(header.get("ImageLaterality") or "")
            return _File(
                path=path,
                patient=str(header.get("PatientID") or "") or f"folder {name.parts[0] if name.parts[1:] else ''}",
                series=str(name) if still else str(header.get("SeriesInstanceUID") or ""),
                instance=str(header.get("SOPInstanceUID") or path),
                number=None if number is None else int(number),
                frames=frames,
                acquired_ms=acquisition_ms(header),
                ophthalmic_run=(day, eye) if header.get("Modality") in OPHTHALMIC and day else None,
                synthetic=header.get("Manufacturer") == SYNTHETIC_MANUFACTURER,
            )
    except SequenceError:  # kept as an exam of its own: whoever reads it next says what is wrong with it
        return _File(path, f"folder {name.parent}", "", str(path), None, 2, None, None, False)


def _same_content(first: Path, second: Path) -> bool:
    """True for equal bytes; asked only of files that claim to be one image, since some exports repeat their UIDs."""
    return filecmp.cmp(first, second, shallow=False)


def _as_sequences(group: list[_File], root: Path) -> list[Any]:
    """One sequence of a group if its headers order it, else one for each file."""
    order = temporal_order([f.acquired_ms for f in group], [f.number for f in group])
    if order is None:
        return [file.path.relative_to(root).as_posix() for file in group]
    if len(group) == 1:
        return [group[0].path.relative_to(root).as_posix()]
    folder = group[0].path.parent
    if folder != root and sum(is_dicom(p) for p in folder.iterdir() if p.is_file()) == len(group):
        return [folder.relative_to(root).as_posix()]
    return [[group[i].path.relative_to(root).as_posix() for i in order]]


def write_datalist(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)


def find_inputs(source: str | Path, dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Items to predict, from a datalist (.json), a folder of exams, or one DICOM file.

    Raises:
        FileNotFoundError, ValueError: nothing there, or nothing that is an exam.
    """
    path = Path(source)
    if path.suffix == ".json":
        items = all_items(path, dataset_dir)
        if not items:
            raise ValueError(bad_value(path, "datalist", "empty", "at least one item"))
        return items
    if path.is_file():
        return [{IMAGE: path, SOURCE: path.name}]
    items, left_out, _ = find_sequences(path)
    for reason in left_out:
        logger.warning(f"left out: {reason}")
    if not items:
        raise ValueError(bad_value(path, "folder", "without DICOM images", "at least one angiography exam"))
    for item in items:
        image = item[IMAGE]
        item[SOURCE] = image if isinstance(image, str) else f"{image[0]} (+{len(image) - 1} files)"
        item[IMAGE] = path / image if isinstance(image, str) else [path / name for name in image]
    return items


def make_datalist(
    dataset_dir: str | Path,
    labels: str | Path | None = None,
    output: str | Path | None = None,
    classes: Sequence[str] | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> str:
    """Find sequences, attach labels, split by patient, write the JSON, and say what is in it.

    Args:
        dataset_dir: folder of exams; paths in the list are relative to it.
        labels: CSV of `read_labels`; None writes an unlabelled list, all in `test`.
        output: the JSON; None means dataset_dir/datalist.json.
        classes: names in the order of the logits; None means sorted.
        num_folds: of `split_by_patient`.
        seed: of the split.

    Raises:
        ValueError: nothing to list, or labels and sequences do not fit together.
    """
    root = Path(dataset_dir)
    items, left_out, synthetic = find_sequences(root)
    if not items:
        raise ValueError(bad_value(root, "folder", "without DICOM images", "at least one angiography exam"))
    lines = [f"left out: {reason}" for reason in left_out]
    task = None
    if labels is None:
        splits = {split: items if split == UNLABELLED_SPLIT else [] for split in SPLITS}
    else:
        items, task, without = attach_labels(items, read_labels(Path(labels)), classes)
        lines += [f"no label: {image}" for image in without]
        splits = split_by_patient(items, num_folds, seed)
    path = Path(output) if output else root / "datalist.json"
    write_datalist(path, ({TASK: task} if task else {}) | {SYNTHETIC: synthetic} | splits)
    for split, chosen in splits.items():
        counts = ""
        if task and task[TYPE] != MULTILABEL:
            counts = ", " + ", ".join(
                f"{name} {sum(item[LABEL] == k for item in chosen)}" for k, name in enumerate(task[CLASSES])
            )
        lines.append(f"{split}: {len(chosen)} sequences, {len({i[PATIENT] for i in chosen})} patients{counts}")
    return "\n".join([*lines, str(path)])

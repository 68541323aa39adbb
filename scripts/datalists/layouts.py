"""The AngioReport layout -> items in the order of time, and what its labels say of each.

AngioReport (55,361 retinal images of 1,691 patients, doi 10.1136/bjo-2024-327006) holds one folder of JPEG frames for
each eye, `Train/Train/12_L/0.jpg`, fluorescein and indocyanine green side by side where both were taken, and
`Train/Train.csv` with a column `Folder`, findings joined by commas in columns such as `Impression`, and empty cells.
Splits made of it are JSON: exam rows for each split, with `frames: [{file, elapsed_seconds}]`.
"""

import math
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from scripts.datalists.exam_rows import exam_name, read_findings, read_split
from scripts.datalists.labels import LabelRow
from scripts.datalists.scan import NUM_THREADS
from scripts.errors import SequenceError, bad_value
from scripts.keys import FRAME_TIMES, IMAGE, MODALITY
from scripts.sequences.images import SUFFIXES, natural_order, read_header

EXAM = re.compile(r"\d+_[LR]")  # patient and eye
EXAM_DEPTH = 3  # folders from the root down to an exam, at most: Train/Train/12_L
TABLES = ("Train/Train.csv", "Train.csv")  # where AngioReport has its labels
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")  # hours, minutes, seconds of a burned-in stamp
UNKNOWN_PLACE = float("-inf")


def is_angioreport(root: Path) -> bool:
    """True for folders of images, at most `EXAM_DEPTH` deep, that are named as AngioReport's exams are."""
    return any(_images(folder) for folder in _exam_folders(root).values())


def read_angioreport(
    root: Path, table: Path | None, label_column: str | None, progress: bool = True
) -> tuple[list[dict[str, Any]], list[LabelRow | None], list[str], bool]:
    """Exams of the AngioReport layout.

    Args:
        root: folder with `Train/Train/<exam>/<n>.jpg`, or one of the folders on that path.
        table: CSV with a column of exams, or JSON of exam rows; None means that of `TABLES` that is there.
        label_column: column or key of the labels; None means the first of `exam_rows.LABEL_COLUMNS`.
        progress: show a progress bar.

    Returns:
        Items with `image`, a list of files in the order of time relative to `root`, and `frame_times_ms` where a time
        is known; for each item its row, in which both eyes are one patient; lines that say what was odd or left out;
        whether the table says that the exams are synthetic.

    Raises:
        FileNotFoundError, ValueError: no such table, or one that cannot be understood.
    """
    folders = _exam_folders(root)
    frames: dict[str, list[Any]] = {}
    lines, synthetic = [], False
    table = table or next((root / name for name in TABLES if (root / name).is_file()), None)
    if table is None:
        rows = {name: LabelRow(name, None) for name in folders}
    elif table.suffix.lower() == ".json":
        rows, frames, synthetic = read_split(table, label_column)
    else:
        rows, column = read_findings(table, label_column, set(folders))
        lines.append(f"labels: column {column} of {table.name}")
        rows = {name: LabelRow(name, None) for name in folders} | rows
    names = sorted(rows, key=lambda name: natural_order(Path(name)))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        made = pool.map(lambda name: _item(root, folders.get(name), frames.get(name)), names)
        exams = list(tqdm(made, total=len(names), unit="exam", disable=not progress))
    items: list[dict[str, Any]] = []
    told: list[LabelRow | None] = []
    odd: Counter[str] = Counter()
    for name, (item, found) in zip(names, exams, strict=True):
        odd += found  # and what was found no times is not told
        if item is None:
            lines.append(f"left out: {name}: none of its frames is there")
            continue
        items.append(item)
        told.append(rows[name]._replace(patient=rows[name].patient or _patient(name)))
    unlisted = len(folders.keys() - rows.keys())
    if unlisted:
        lines.append(f"left out: {unlisted} exams that {table.name if table else root} does not list")
    if odd:
        lines.append("frames: " + ", ".join(f"{what} {count}" for what, count in sorted(odd.items())))
    return items, told, lines, synthetic


def elapsed_seconds(value: object) -> float | str:
    """Seconds of a frame, or what is wrong with them: times read from burned-in stamps are often none.

    A number, its text with or without `s`, and minutes or hours with colons are understood.
    """
    text = str(value).strip().lower().removesuffix("sec").removesuffix("s").strip()
    if value is None or not text:
        return "time absent"
    clock = CLOCK.fullmatch(text)
    try:
        parts = [float(part or 0) for part in clock.groups()] if clock else [0.0, 0.0, float(text)]
    except ValueError:
        return "time not a number"
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if not math.isfinite(seconds):
        return "time not a number"
    return "time negative" if seconds < 0 else seconds


def in_time_order(times_s: list[float | None]) -> tuple[list[int], list[float | None]]:
    """Positions of frames in the order of time, and their times in ms from the first known one, null = unknown.

    Equal times keep their order. A frame of unknown time stays behind the frame it was listed after.
    """
    places, place = [], UNKNOWN_PLACE
    for time in times_s:
        place = place if time is None else time
        places.append(place)
    order = sorted(range(len(times_s)), key=lambda i: places[i])
    start = min((time for time in times_s if time is not None), default=0.0)
    in_order = [times_s[i] for i in order]
    return order, [None if time is None else round((time - start) * 1000.0, 3) for time in in_order]


def _item(root: Path, folder: Path | None, listed: list[Any] | None) -> tuple[dict[str, Any] | None, Counter[str]]:
    """An item with the frames that can be used, None without any; and how many of them are odd in which way."""
    odd: Counter[str] = Counter()
    times_of: dict[str, float | None] = {}
    for frame in listed or ([] if folder is None else _images(folder)):
        entry = frame if isinstance(frame, dict) else {"file": frame}
        path = _find_frame(root, folder, str(entry.get("file") or ""))
        if path is None or path in times_of:
            odd["file absent" if path is None else "file listed twice"] += 1
            continue
        times_of[path] = None
        if isinstance(frame, dict):
            seconds = elapsed_seconds(entry.get("elapsed_seconds"))
            times_of[path] = None if isinstance(seconds, str) else seconds
            odd[seconds if isinstance(seconds, str) else "time known"] += 1
    sizes = {path: _size(root / path) for path in times_of}
    common = Counter(size for size in sizes.values() if size).most_common(1)
    for path, size in sizes.items():  # one sequence has one size; a pair is twice as wide as a frame of one dye
        if not size or size != common[0][0]:
            odd["of another size than most of its exam" if size else "file unreadable"] += 1
            del times_of[path]
    times = list(times_of.values())
    known = [time for time in times if time is not None]
    odd["time before that of the frame listed before"] += sum(later < time for time, later in pairwise(known))
    odd["time equal to that of the frame listed before"] += sum(later == time for time, later in pairwise(known))
    order, times_ms = in_time_order(times)
    item = {IMAGE: [list(times_of)[i] for i in order], MODALITY: "OP"} | ({FRAME_TIMES: times_ms} if known else {})
    return item if times else None, odd


def _size(path: Path) -> tuple[int, int] | None:
    """Rows and columns of an image, from its header; None where it cannot be read."""
    try:
        header = read_header(path)
    except (SequenceError, OSError):
        return None
    return header.rows, header.columns


def _find_frame(root: Path, folder: Path | None, file: str) -> str | None:
    """A frame's path below `root`, which a split spells from the root, from the exam's folder or from the one above."""
    name = PurePosixPath(file.replace("\\", "/"))
    if not file or name.is_absolute() or ".." in name.parts:
        return None
    places = [root] if folder is None else [root, folder.parent, folder]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None and folder is not None and (folder / name.name).is_file():
        found = folder / name.name
    return None if found is None else found.relative_to(root).as_posix()


def _images(folder: Path) -> list[str]:
    """Names of the images of a folder, by the numbers in them."""
    names = [path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    return sorted(names, key=lambda name: natural_order(Path(name)))


def _exam_folders(root: Path) -> dict[str, Path]:
    """Folders of exams by name.

    Raises:
        ValueError: two of one name.
    """
    found: dict[str, Path] = {}
    for depth in range(1, EXAM_DEPTH + 1):
        for folder in sorted(root.glob("/".join("*" * depth))):
            name = exam_name(folder.name)
            if not EXAM.fullmatch(name) or not folder.is_dir():
                continue
            other = found.setdefault(name, folder)
            if other != folder:
                way_out = "Give the folder of one of them."
                raise ValueError(bad_value(folder, "exam", f"also in {other}", "each exam in one folder", way_out))
        if found:
            break
    return found


def _patient(exam: str) -> str:
    """The patient of an exam: 12 of 12_L, 12_R and 012_R."""
    return re.sub(r"_(L|R|OD|OS)$", "", exam).lstrip("0") or "0"

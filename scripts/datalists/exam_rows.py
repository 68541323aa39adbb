"""Labels of the AngioReport layout, a CSV or a JSON of exam rows -> one row an exam, however dirty."""

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.datalists.labels import SPLIT, LabelRow, read_table, split_name
from scripts.errors import bad_value
from scripts.keys import LABEL, PATIENT, SYNTHETIC

LABEL_COLUMNS = (LABEL, "labels", "target", "impression")  # in this order, where none is asked for
EXAM_KEYS = ("exam", "exam_id", "folder", "id", "name")
FRAMES_KEY = "frames"
SEPARATORS = re.compile(r"[,;|]")
MISSING = ("", "nan", "null")  # not "none", which can be a class


def exam_name(text: object) -> str:
    """One spelling of an exam: `12_L` of `12_l`, ` 12-L ` and `Train/Train/12_L/`."""
    last = PurePosixPath(str(text).strip().replace("\\", "/")).name
    return re.sub(r"[\s_-]+", "_", last.strip()).upper()


def read_findings(path: Path, label_column: str | None, exams: set[str]) -> tuple[dict[str, LabelRow], str]:
    """One row for each exam of a CSV, and the column that its labels are of.

    The column of exams is the one whose cells name most of them, whatever its name. Rows of one exam are joined.

    Args:
        path: the CSV.
        label_column: None means the first of `LABEL_COLUMNS` that is there.
        exams: names of exams.

    Raises:
        FileNotFoundError, ValueError: no such file or column.
    """
    columns, table = read_table(path)
    cells = [row for _, row in table]
    named = [sum(exam_name(row[k]) in exams for row in cells) for k in range(len(columns))]
    if not any(named):
        raise ValueError(bad_value(path, "columns", columns, "one that names the exams as their folders are named"))
    exam_column = named.index(max(named))
    keys = [_key(name) for name in columns]
    wanted = [_key(label_column)] if label_column else [key for key in LABEL_COLUMNS if key in keys]
    if not wanted or keys.count(wanted[0]) != 1:
        way_out = "Name one: --label_column NAME."
        raise ValueError(bad_value(path, "columns", columns, label_column or "a column of labels", way_out))
    column = keys.index(wanted[0])
    rows = []
    for number, row in table:
        if row[exam_column].lower() not in MISSING:
            by_key = dict(zip(keys, row, strict=True))
            labels = _names(path, row[column])
            rows.append(_row(f"{path}: row {number}", exam_name(row[exam_column]), labels, by_key))
    return _joined(path, rows), columns[column]


def read_split(path: Path, label_column: str | None) -> tuple[dict[str, LabelRow], dict[str, list[Any]], bool]:
    """One row for each exam of a JSON, the frames it lists for each, and whether it says they are synthetic.

    Lists of exam rows by split, or one list of them. An exam row is an object with `frames`, labels and the exam's
    name (else that of the folder of its frames); or a pair: a list of frames, or the path of one to mean all of its
    folder, and labels.

    Raises:
        FileNotFoundError, ValueError: no such file, or another form.
    """
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "labels", "absent", "an existing JSON file"))
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(bad_value(path, "content", f"not JSON ({error})", "exam rows for each split")) from error
    if isinstance(content, list):
        content = {"": content}
    groups = {key: rows for key, rows in content.items() if isinstance(rows, list)} if isinstance(content, dict) else {}
    if not groups:
        raise ValueError(bad_value(path, "content", "another object", "exam rows for each split"))
    wanted = (_key(label_column),) if label_column else LABEL_COLUMNS
    rows: list[LabelRow] = []
    frames: dict[str, list[Any]] = {}
    for split, exam_rows in groups.items():
        given = {SPLIT: split_name(path, split)} if split else {}
        for number, exam_row in enumerate(exam_rows):
            where = f"{path}: {split}[{number}]"
            entry, listed = _exam_row(where, exam_row)
            value = next((entry[key] for key in wanted if key in entry), None)
            name = _exam_of(where, entry, listed)
            rows.append(_row(where, name, _names(where, value), entry | given))
            frames.setdefault(name, []).extend(listed)
    return _joined(path, rows), frames, isinstance(content, dict) and content.get(SYNTHETIC) is True


def _exam_row(where: str, exam_row: Any) -> tuple[dict[str, Any], list[Any]]:
    """An exam row as an object with spelled-out keys, and its frames."""
    if isinstance(exam_row, list) and len(exam_row) == 2:
        first, labels = exam_row
        listed = first if isinstance(first, list) else []
        return {LABEL: labels, "folder": _folder(first if isinstance(first, str) else "")}, listed
    if not isinstance(exam_row, dict):
        raise ValueError(bad_value(where, "exam row", type(exam_row).__name__, f"an object with {FRAMES_KEY}"))
    entry = {_key(key): value for key, value in exam_row.items()}
    listed = entry.get(FRAMES_KEY) or []
    if not isinstance(listed, list):
        raise ValueError(bad_value(where, FRAMES_KEY, type(listed).__name__, "a list of {file, elapsed_seconds}"))
    return entry, listed


def _exam_of(where: str, entry: dict[str, Any], listed: list[Any]) -> str:
    """The exam's name: of the keys that hold one, the first that ends in an eye, for ids can also count rows."""
    first = listed[0] if listed else ""
    file = str(first.get("file") or "") if isinstance(first, dict) else str(first)
    named = [exam_name(entry[key]) for key in EXAM_KEYS if isinstance(entry.get(key), (str, int))]
    named = [name for name in [*named, exam_name(_folder(file))] if name]
    if not named:
        raise ValueError(bad_value(where, "exam", "absent", f"one of {', '.join(EXAM_KEYS)}"))
    return next((name for name in named if name.endswith(("_L", "_R"))), named[0])


def _folder(file: str) -> str:
    return str(PurePosixPath(file.replace("\\", "/")).parent) if file else ""


def _key(name: object) -> str:
    """A column's name without what people change in it: `Impression ` and `impression`, `Exam ID` and `exam_id`."""
    return re.sub(r"[\s_]+", "_", str(name).strip()).lower()


def _names(where: object, value: Any) -> tuple[str, ...] | None:
    """Class names of one cell; None for an empty one.

    Raises:
        ValueError: numbers in a list, which name no class.
    """
    if isinstance(value, dict):
        value = [name for name, carried in value.items() if carried]
    elif isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise ValueError(bad_value(where, LABEL, value, "names of classes, or an object of names and 0 or 1"))
    else:
        whole = isinstance(value, (bool, float)) and value == int(value) if value == value else False
        text = str(int(value) if whole else "" if value is None else value)
        value = SEPARATORS.split(text)
        if all(part.strip().lower() in MISSING for part in value):
            return None
    names = [" ".join(part.split()) for part in value]
    return tuple(name for name in names if name.lower() not in MISSING)


def _row(where: str, exam: str, labels: tuple[str, ...] | None, entry: dict[str, Any]) -> LabelRow:
    split = str(entry.get(SPLIT) or "")
    return LabelRow(exam, labels, str(entry.get(PATIENT) or ""), split_name(where, split) if split else "")


def _joined(path: Path, rows: list[LabelRow]) -> dict[str, LabelRow]:
    """One row for each exam, with the labels of all of its rows, each once and in its commonest spelling.

    Raises:
        ValueError: rows of one exam differ in patient or split.
    """
    spellings = Counter(name for row in rows for name in row.labels or ())
    spelling: dict[str, str] = {}
    for name, _ in spellings.most_common():
        spelling.setdefault(name.lower(), name)
    joined: dict[str, LabelRow] = {}
    for row in rows:
        other = joined.setdefault(row.image, row)
        if (other.patient, other.split) != (row.patient, row.split):
            found = f"two for exam {row.image}"
            raise ValueError(bad_value(path, f"{PATIENT} or {SPLIT}", found, "one an exam"))
        names = [spelling[name.lower()] for name in (other.labels or ()) + (row.labels or ())]
        told = other.labels is not None or row.labels is not None
        joined[row.image] = other._replace(labels=tuple(dict.fromkeys(names)) if told else None)
    return joined

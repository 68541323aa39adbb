"""A datalist -> its check as a table, check.json and check.html, one page with pictures of a sample of sequences.

The page needs no network and runs nothing: inline style, pictures as data. Names in it are those of the list.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from scripts.datalists.check import Checked, as_listed, check_datalist, one_large, reason
from scripts.datalists.datalist import Task
from scripts.datalists.findings import Exam, Finding
from scripts.datalists.scan import NUM_THREADS
from scripts.datalists.summary import document, grouped, headline, split_rows, terminal_table, verdict
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES
from scripts.errors import bad_value, printable
from scripts.keys import IMAGE, LABEL, SPLITS
from scripts.pages import fill
from scripts.sequences.intensity import to_values, window_sequence
from scripts.sequences.reader import read_frames, read_header
from scripts.writing import write_file

MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a sequence: its first, middle and last frame and two between
THUMBNAIL_PIXELS = 160
JPEG_QUALITY = 80
PERCENTILES = (0.5, 99.5)  # as configs/cache_features.yaml has them
SAMPLE_SEED = 0  # the same list gives the same page
SHOWN_FINDINGS = 20  # of a kind on the page; check.json has all
JSON_NAME, PAGE_NAME = "check.json", "check.html"
BURNED_IN = "BurnedInAnnotation"  # (0028,0301): such pictures can show a name


@dataclass(frozen=True)
class Strip:
    """One sequence of the sheet: an <img> source and a caption for each of its frames shown."""

    exam: Exam
    label: str
    pictures: list[tuple[str, str]]


def run_check(
    datalist: str | Path,
    dataset_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES,
    sample: int = 24,
    progress: bool = True,
) -> tuple[str, bool]:
    """Check a datalist and write check.json and check.html; the text for the terminal, and whether the list passes.

    Args:
        datalist: the JSON file.
        dataset_dir: what its paths are relative to; None means its own folder.
        output_dir: gets both files; None means the datalist's folder.
        max_sequence_bytes: largest decoded size accepted.
        sample: sequences shown on the page, spread over splits and classes.
        progress: show progress bars.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the file is no datalist at all, or a setting out of range.
    """
    for name, value, least in (("max_sequence_bytes", max_sequence_bytes, 1), ("sample", sample, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(bad_value("check", name, value, f"a whole number of at least {least}"))
    path = Path(datalist)
    folder = path.parent if output_dir is None else Path(output_dir)
    if path.resolve() in ((folder / JSON_NAME).resolve(), (folder / PAGE_NAME).resolve()):
        raise ValueError(bad_value(path, "name", path.name, "another one: the check writes a file of this name"))
    root = path.parent if dataset_dir is None else Path(dataset_dir)
    checked = check_datalist(path, root, max_sequence_bytes, progress)
    strips, unreadable = contact_sheet(checked, root, sample, max_sequence_bytes, progress)
    checked = replace(checked, findings=[*checked.findings, *unreadable])
    content = document(checked)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / JSON_NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_file(folder / PAGE_NAME, page(checked, content, strips))
    written = f"page: {folder / PAGE_NAME}\neverything: {folder / JSON_NAME}"
    return f"{terminal_table(checked, content)}\n\n{written}\n{verdict(content)}", content["passed"]


def contact_sheet(
    checked: Checked, root: Path, size: int, max_sequence_bytes: int, progress: bool = True
) -> tuple[list[Strip], list[Finding]]:
    """A strip of pictures of each sequence of a sample, and those whose frames cannot be decoded after all."""

    def attempt(exam: Exam) -> Strip | Finding:
        try:
            return Strip(exam, label_text(exam.item, checked.task), pictures_of(exam, max_sequence_bytes))
        except Exception as error:  # as in `read_exam`: one exam must not cost the others their page
            return Finding("unreadable", exam.where, exam.source, reason(error, exam, root.absolute()))

    sample = choose_sample(checked.exams, size, SAMPLE_SEED)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        bar = tqdm(pool.map(attempt, sample), total=len(sample), desc="pictures", unit="sequence", disable=not progress)
        made = list(bar)
    return [strip for strip in made if isinstance(strip, Strip)], [f for f in made if isinstance(f, Finding)]


def choose_sample(exams: Sequence[Exam], size: int, seed: int) -> list[Exam]:
    """At most `size` entries whose pictures can be shown, in the order of the list.

    Every pair of split and label gives one in turn, drawn at random, until there are enough: a rare class is seen.
    Sequences whose header says, or does not deny, that a name can stand in the pixels are left out, and those whose
    middle frame is empty.
    """
    rng = np.random.default_rng(seed)
    groups: dict[tuple[str, str], list[Exam]] = defaultdict(list)
    for exam in exams:
        if exam.reading is None or exam.reading.digest is None:
            continue
        if not any(BURNED_IN in warning for warning in exam.reading.warnings):
            groups[exam.split, str(exam.item.get(LABEL))].append(exam)
    turns = [(turn, group[i]) for group in groups.values() for turn, i in enumerate(rng.permutation(len(group)))]
    chosen = [exam for _, exam in sorted(turns, key=lambda pair: pair[0])[:size]]
    return sorted(chosen, key=lambda exam: (SPLITS.index(exam.split), exam.position))


def pictures_of(exam: Exam, max_sequence_bytes: int) -> list[tuple[str, str]]:
    """An <img> source and a caption for first, last and three frames between, all on one grey scale.

    Raises:
        SequenceError: they cannot be decoded, or all pixels are alike.
    """
    header = read_header(exam.item[IMAGE], max_sequence_bytes)
    used, times, _ = as_listed(exam, header)
    shown = sorted({int(moment * (len(used) - 1) + 0.5) for moment in MOMENTS})  # positions in `used`
    small = []
    for index in used[shown]:  # one by one: of large frames only the thumbnails are held together
        with one_large(header):
            small.append(thumbnail(to_values(read_frames(header, [int(index)]), header)[0]))
    frames = window_sequence(torch.stack(small), header, "percentile", *PERCENTILES)  # (T, h, w)
    captions = [
        f"frame {index + 1}" + (f", {time_ms / 1000:.1f} s" if np.isfinite(time_ms) else "")
        for index, time_ms in zip(used[shown], times[shown], strict=True)
    ]
    return [(as_src(frame), caption) for frame, caption in zip(frames, captions, strict=True)]


def thumbnail(frame: Tensor) -> Tensor:
    """A frame (H, W) float32 made small, aspect kept: (h, w), the larger side at most THUMBNAIL_PIXELS."""
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX)  # of padding no values in between
    return torch.from_numpy(np.array(picture))


def as_src(frame: Tensor) -> str:
    """A frame (h, w) in [0, 1] as the `src` of an <img>: a JPEG, base64."""
    picture = Image.fromarray((frame * 255).round().byte().numpy())
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def label_text(item: dict[str, Any], task: Task | None) -> str:
    """The names of an item's classes."""
    if task is None or LABEL not in item:
        return "no label"
    label = item[LABEL]
    names = [task.classes[label]] if isinstance(label, int) else np.array(task.classes)[np.array(label) == 1]
    return printable(" | ".join(names) or "none of the classes")


def page(checked: Checked, content: dict[str, Any], strips: Sequence[Strip]) -> str:
    """The page as text.

    Args:
        checked: the list.
        content: of `document`.
        strips: of `contact_sheet`.
    """
    filters = {"number": lambda value, form, none="unknown": none if value is None else form % value}
    return fill(
        Path(__file__).parent / "sheet.html.j2",
        filters,
        **content,
        headline=headline(content),
        verdict=verdict(content),
        rows=split_rows(content["splits"]),
        exams=[(exam, label_text(exam.item, checked.task)) for exam in checked.exams],
        groups=grouped(checked.findings),
        shown=SHOWN_FINDINGS,
        strips=strips,
        json_name=JSON_NAME,
    )

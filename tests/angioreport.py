"""Synthetic data in the AngioReport layout: side-by-side JPEG frames, dirty times, labels that can be learned.

No real image, patient or finding is in it. Every JPEG carries the comment `synthetic`.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("leakage", "unremarkable changes")
COMMENT = b"synthetic"
SIDE = 48  # rows; a frame is two such squares, fluorescein left and indocyanine green right
SECONDS = (9.0, 14.0, 22.0, 40.0, 95.0, 180.0, 330.0, 560.0)  # early, middle and late phase
DIRT = (None, "", "n/a", -3.0, "0:22", "40 s")  # what stands instead of a time; the last two can be read


def write_angioreport(root: Path, num_patients: int = 15, seed: int = 0) -> tuple[Path, Path]:
    """Write `Train/Train/<exam>/<n>.jpg` of both eyes of each patient, `Train/Train.csv` and `split.json`.

    In one eye of each patient a spot of the left picture keeps growing and brightening (`leakage`). The CSV has dirty
    names, spaces and empty cells; the JSON has frames out of order and dirty times.

    Args:
        root: gets the folders.
        num_patients: two exams each.
        seed: the same seed gives the same bytes.

    Returns:
        The CSV and the JSON.
    """
    rng = np.random.default_rng(seed)
    exams = [(f"{3 * p}_{eye}", (p + p // 5 + (eye == "R")) % 2) for p in range(num_patients) for eye in "LR"]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for number, (exam, label) in enumerate(exams):
        folder = root / "Train" / "Train" / exam
        folder.mkdir(parents=True)
        for n, pixels in enumerate(_frames(rng, leaks=label == 0)):
            Image.fromarray(pixels).save(folder / f"{n}.jpg", quality=90, comment=COMMENT)
        split = ("train", "train", "train", "validation", "test")[number // 2 % 5]
        splits[split].append({"exam": exam, "label": CLASSES[label], "frames": _listed(rng, exam, number)})
    table = root / "Train" / "Train.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow([" Impression ", "HyperF_Type", "ID", "Folder"])
        for number, (exam, label) in enumerate(exams):
            name = CLASSES[label].title() if number % 7 == 0 else f"  {CLASSES[label]},"
            writer.writerow([name, "" if number % 3 else "nan", number, f" {exam} "])
    split_file = root / "split.json"
    split_file.write_text(json.dumps({"synthetic": True, **splits}))
    return table, split_file


def _frames(rng: np.random.Generator, leaks: bool) -> np.ndarray:
    """Frames (T, SIDE, 2 * SIDE) uint8: a disc that fills and fades, with or without a spot that leaks."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    row, column = rng.uniform(-0.2, 0.2, 2)
    frames = []
    for seconds in SECONDS:
        filling = (1 - np.exp(-seconds / 12)) * np.exp(-seconds / 400)
        fa = 150 * filling * (x**2 + y**2 < 0.2)
        icga = 0.7 * fa
        if leaks:
            width = 0.03 + 0.02 * np.log(seconds)
            fa = fa + (60 + 0.3 * seconds) * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * width**2))
        frames.append(np.concatenate([fa, icga], axis=1) + rng.normal(12, 3, (SIDE, 2 * SIDE)))
    return np.clip(frames, 0, 255).astype(np.uint8)


def _listed(rng: np.random.Generator, exam: str, number: int) -> list[dict[str, Any]]:
    """Frames of one exam as a split lists them: out of order, one time dirty, in some one file absent or twice."""
    frames = [{"file": f"Train/Train/{exam}/{n}.jpg", "elapsed_seconds": s} for n, s in enumerate(SECONDS)]
    frames[2 + number % 3]["elapsed_seconds"] = DIRT[number % len(DIRT)]
    if number % 5 == 0:
        frames.append(dict(frames[0]))
    if number % 5 == 1:
        frames.append({"file": f"Train/Train/{exam}/99.jpg", "elapsed_seconds": 900.0})
    return [frames[i] for i in rng.permutation(len(frames))] if number % 2 else frames

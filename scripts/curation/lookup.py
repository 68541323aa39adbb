"""Datalist items -> the keys of their exams, plain and augmented, among those of a store."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datalists.datalist import read_datalist
from scripts.errors import bad_value
from scripts.features.entries import exam_keys, pass_key
from scripts.keys import SOURCE, SPLITS


def listed_items(datalists: str | Sequence[str], dataset_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """The items of several datalists, of all splits.

    Args:
        datalists: paths; in one text, several are separated by commas.
        dataset_dir: what the lists' paths are relative to; each list's own folder if not given.
    """
    named = datalists.split(",") if isinstance(datalists, str) else datalists
    paths = [Path(str(name).strip()) for name in named]
    contents = [read_datalist(path, path.parent if dataset_dir is None else dataset_dir) for path in paths]
    return [item for content in contents for split in SPLITS for item in content[split]]


def all_keys(items: Sequence[dict[str, Any]], progress: bool = True) -> list[str]:
    """The key of each exam.

    Raises:
        ValueError: one cannot be read, so that which entry is its own cannot be told.
    """
    keys = exam_keys(items, progress)
    unread = [item[SOURCE] for item, key in zip(items, keys, strict=True) if key is None]
    if unread:
        found = f"unreadable, as {len(unread)} of {len(items)} exams"
        way_out = "What is stored of an exam is found by its content: mend or drop these items."
        raise ValueError(bad_value(unread[0], "content", found, "an exam to read", way_out))
    return [key for key in keys if key is not None]


def with_passes(keys: Sequence[str], stored: Callable[[list[str]], np.ndarray]) -> list[dict[str, int]]:
    """What a store has of each exam: the keys of its passes with their numbers, of which 0 is the exam as it is.

    Args:
        keys: of the exams.
        stored: which of some keys the store has, (n,) bool.
    """
    passes: list[dict[str, int]] = [{} for _ in keys]
    number, found = 0, np.ones(1, bool)
    while number < 2 or found.any():  # the plain features may be gone and those of a pass be left
        tried = [pass_key(key, number) for key in keys]
        found = stored(tried)
        for position in np.flatnonzero(found).tolist():
            passes[position][tried[position]] = number
        number += 1
    return passes

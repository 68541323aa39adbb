"""Datalist item -> key of its entry in a feature store: the digest of its bytes, whatever its name or place."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.errors import SequenceError
from scripts.keys import ENTRY, FRAME_TIMES, FRAMES, IMAGE, MODALITY
from scripts.sequences import images
from scripts.sequences.reader import source_files

NUM_READERS = 8  # threads that hash exams; more than cores, for disks that are far away


def entry_key(item: dict[str, Any]) -> str:
    """SHA-256 (hex) of an exam's bytes and of what its item says of it; of an exported item the key it states.

    Raises:
        FileNotFoundError, SequenceError: nothing to read there.
    """
    if ENTRY in item:
        return item[ENTRY]
    digests = []
    source = Path(item[IMAGE]) if isinstance(item[IMAGE], str) else item[IMAGE]
    paths = source_files(source)
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    # a list can say the order of frames, as do the names of pictures; DICOM files say it themselves
    in_order = isinstance(item[IMAGE], list) or paths[0].name.lower().endswith(images.SUFFIXES)
    ordered = digests if in_order else sorted(digests)
    said = {key: item[key] for key in (FRAMES, FRAME_TIMES, MODALITY) if item.get(key) is not None}
    content = {"files": ordered, **said}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def pass_key(key: str, number: int) -> str:
    """The key of an augmented pass over the exam of `key`; number 1 and up, 0 is the exam as it is."""
    return hashlib.sha256(f"{key} {number}".encode()).hexdigest() if number else key


def exam_keys(items: Sequence[dict[str, Any]], progress: bool = True) -> list[str | None]:
    """The key of each exam, None where it cannot be read; a bar is shown if it takes more than a second."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        keys = pool.map(_key_or_none, items)
        options = {"total": len(items), "unit": "exam", "mininterval": 1, "delay": 1, "disable": not progress}
        return list(tqdm(keys, desc="reading exams", **options))


def _key_or_none(item: dict[str, Any]) -> str | None:
    try:
        return entry_key(item)
    except (OSError, SequenceError):
        return None

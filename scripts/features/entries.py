"""Datalist item -> key of its entry in a feature store: the digest of its bytes, whatever its name or place."""

import hashlib
import json
from pathlib import Path
from typing import Any

from scripts.keys import ENTRY, FRAME_TIMES, FRAMES, IMAGE, MODALITY
from scripts.sequences import images
from scripts.sequences.reader import source_files


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

"""Store -> a table of what it holds and what it was made with, for people; no feature is read."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.features.inspection import leftovers, read_indexes
from scripts.features.origin import Origin, read_origin
from scripts.features.shards import FORMAT_VERSION, REPAIR_COMMAND
from scripts.keys import FEATURES
from scripts.pages import counted

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
NOT_PREPROCESSING = ("encoder_name", "encoder_weights", "pooling", "layers", "precision", "engine")  # rows of their own


class Contents(NamedTuple):
    """What the indexes of a store's shards say."""

    sequences: int
    duplicates: int  # entries whose key is in another shard too
    frames: int
    longest: int  # frames
    n_bytes: int  # of the shard files
    largest: int  # bytes
    shards: int
    forms: dict[str, int]  # shape and type of the features, and the entries that have them
    damaged: list[str]  # why a shard cannot be opened


def store_info(path: str | Path, progress: bool = True) -> tuple[str, bool]:
    """The table, and whether every shard can be opened.

    Raises:
        FileNotFoundError, ValueError: there is no store, or its fingerprint.json is damaged.
    """
    folder = Path(path)
    origin = read_origin(folder)
    contents = read_contents(folder, origin.digest(), progress)
    killed = leftovers(folder)
    rows = [("store", str(folder)), *_content_rows(contents), *_origin_rows(origin)]
    if killed:
        size = sum(file.stat().st_size for file in killed)
        rows.append(("left by killed runs", f"{counted(len(killed), 'file')}, {readable_bytes(size)}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    lines += [f"DAMAGED: {reason}" for reason in contents.damaged]
    if not contents.damaged and (killed or contents.duplicates):
        lines.append(f"What is in excess goes with: {repair_command(folder)}")
    return "\n".join(lines), not contents.damaged


def read_contents(folder: Path, digest: str, progress: bool = True) -> Contents:
    """What is in the shards of a store, by their indexes."""
    keys, forms, damaged = [], Counter[str](), []
    frames = longest = n_bytes = largest = shards = 0
    for shard, index in read_indexes(folder, digest, progress):
        shards, n_bytes, largest = shards + 1, n_bytes + shard.n_bytes, max(largest, shard.n_bytes)
        if isinstance(index, str):
            damaged.append(index)
            continue
        _, dtype, (count, *shape) = index.places[FEATURES]
        frames, longest = frames + count, max(longest, int(index.lengths.max()))
        forms[f"({', '.join(['T', *map(str, shape)])}) {np.dtype(dtype).name}"] += len(index.keys)
        # the first 8 bytes of a digest tell apart any number of entries a disk can hold, and sort ten times faster
        keys.append(index.keys.view("<u8").reshape(-1, 4)[:, 0].copy())
    entries = sum(map(len, keys))
    ordered = np.sort(np.concatenate(keys)) if keys else np.empty(0, np.uint64)
    different = int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (entries > 0)  # np.unique takes 8 times as long
    return Contents(
        different, entries - different, frames, longest, n_bytes, largest, shards, dict(forms.most_common()), damaged
    )


def _content_rows(contents: Contents) -> list[tuple[str, str]]:
    mean = contents.frames / max(contents.sequences + contents.duplicates, 1)
    excess = f", {counted(contents.duplicates, 'duplicate')} beside them" if contents.duplicates else ""
    spread = f", {mean:.1f} a sequence, at most {contents.longest}" if contents.frames else ""
    size = f", the largest {readable_bytes(contents.largest)}" if contents.shards else ""
    return [
        ("format", FORMAT_VERSION),
        ("sequences", f"{contents.sequences:,}{excess}"),
        ("frames", f"{contents.frames:,}{spread}"),
        ("size", readable_bytes(contents.n_bytes)),
        ("shards", f"{contents.shards:,}{size}"),
        ("features", ", ".join(contents.forms) or "none yet"),
    ]


def _origin_rows(origin: Origin) -> list[tuple[str, str]]:
    fingerprint, settings = origin.fingerprint, origin.settings or {}
    encoder, random = fingerprint.get("encoder"), fingerprint.get("augmentation")
    digest = encoder.get("digest") if isinstance(encoder, dict) else "unknown"
    weights = f"{settings.get('encoder_weights', 'unknown')}, digest {str(digest)[:16]}"
    rows = [
        ("encoder", _said(encoder, without=("digest",))),
        ("weights", weights),
        ("preprocessing", _said(settings, without=NOT_PREPROCESSING) or "not said"),
        ("precision", str(fingerprint.get("precision"))),
        ("engine", str(fingerprint.get("engine"))),
        ("augmented passes", f"yes, seed {random.get('seed')}" if isinstance(random, dict) else "none"),
        ("decoders", _said(fingerprint.get("decoders"))),
        ("libraries", _said(fingerprint.get("libraries"))),
        ("made with", _said(origin.made_with) or "not said"),
        ("fingerprint", origin.digest()[:16]),
    ]
    return [(name, value) for name, value in rows if value]


def _said(values: Any, without: tuple[str, ...] = ()) -> str:
    """Names and values on one line."""
    if not isinstance(values, dict):
        return str(values or "")
    return ", ".join(f"{name} {value}" for name, value in values.items() if name not in without)


def repair_command(folder: Path) -> str:
    """What to type to repair a store."""
    return REPAIR_COMMAND.format(shlex.quote(str(folder)))


def readable_bytes(n_bytes: int) -> str:
    """A size in the largest unit that leaves a number of at least 1."""
    size, unit = float(n_bytes), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 else f"{size:.1f} {UNITS[unit]}"

"""Store -> a table of what it holds and what it was made with, for people; no feature is read."""

import shlex
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.curation.inspection import among, hex_keys, leftovers, raw_keys, read_indexes
from scripts.errors import printable
from scripts.features.entries import pass_key
from scripts.keys import FEATURES
from scripts.pages import counted
from scripts.store.origin import Origin, read_origin
from scripts.store.shards import FORMAT_VERSION, REPAIR_COMMAND

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SAMPLE = 1000  # keys
TEXT_WIDTH = 100
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
    passes: int  # augmented ones beside an exam, by a sample
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
    rows = [*_content_rows(contents), *_origin_rows(origin, contents.passes)]
    if killed:
        rows.append(("left by killed runs", f"{counted(len(killed), 'file')}, {readable_bytes(sum(killed))}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{'store'.ljust(width)}  {folder}"]
    lines += [f"{name.ljust(width)}  {_wrapped(value, width + 2)}" for name, value in rows]
    lines += [f"DAMAGED: {reason}" for reason in contents.damaged]
    if not contents.damaged and (killed or contents.duplicates):
        lines.append(f"What is in excess goes with: {repair_command(folder)}")
    return "\n".join(lines), not contents.damaged


def read_contents(folder: Path, digest: str, progress: bool = True) -> Contents:
    """What is in the shards of a store, by their indexes."""
    keys, forms, damaged = [], Counter[str](), []
    sample: list[str] = []
    frames = longest = n_bytes = largest = shards = 0
    for shard, index in read_indexes(folder, digest, progress):
        shards, n_bytes, largest = shards + 1, n_bytes + shard.n_bytes, max(largest, shard.n_bytes)
        if isinstance(index, str):
            damaged.append(index)
            continue
        _, dtype, (count, *shape) = index.places[FEATURES]
        frames, longest = frames + count, max(longest, int(index.lengths.max()))
        forms[f"({', '.join(['T', *map(str, shape)])}) {np.dtype(dtype).name}"] += len(index.keys)
        if len(sample) < SAMPLE:
            sample += hex_keys(index.keys[:SAMPLE])
        # the first 8 bytes of a digest tell apart any number of entries a disk can hold, and sort ten times faster
        keys.append(index.keys.view("<u8").reshape(-1, 4)[:, 0].copy())
    entries = sum(map(len, keys))
    ordered = np.sort(np.concatenate(keys)) if keys else np.empty(0, np.uint64)
    different = int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (entries > 0)  # np.unique takes 8 times as long
    passes = _count_passes(sample, ordered)
    doubled = entries - different
    return Contents(
        different, doubled, frames, longest, n_bytes, largest, shards, dict(forms.most_common()), passes, damaged
    )


def _count_passes(keys: list[str], ordered: np.ndarray) -> int:
    """How many augmented passes the exams of some keys have at most.

    Args:
        keys: of entries, some of them of passes themselves.
        ordered: the first 8 bytes of every key there is, sorted.
    """
    number, found = 0, bool(keys)
    while found:
        passes = raw_keys([pass_key(key, number + 1) for key in keys]).view("<u8").reshape(-1, 4)[:, 0]
        found = bool(among(passes, ordered).any())
        number += found
    return number


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


def _origin_rows(origin: Origin, passes: int) -> list[tuple[str, str]]:
    fingerprint, settings = origin.fingerprint, origin.settings or {}
    encoder, random = fingerprint.get("encoder"), fingerprint.get("augmentation")
    name, digest = (encoder.get(key) if isinstance(encoder, dict) else "unknown" for key in ("name", "digest"))
    weights = f"{settings.get('encoder_weights', 'unknown')}, digest {str(digest)[:16]}"
    rows = [
        ("encoder", ", ".join(filter(None, [str(name), _said(encoder, without=("name", "digest"))]))),
        ("weights", weights),
        ("preprocessing", _said(settings, without=NOT_PREPROCESSING) or "not said"),
        ("precision", str(fingerprint.get("precision"))),
        ("engine", str(fingerprint.get("engine"))),
        ("augmented passes", f"{passes}, seed {random.get('seed')}" if passes and isinstance(random, dict) else "none"),
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


def _wrapped(value: str, indent: int) -> str:
    """A long value on lines of their own, none of its words cut."""
    lines = textwrap.wrap(printable(value), TEXT_WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join(lines)


def repair_command(folder: Path) -> str:
    """What to type to repair a store."""
    return REPAIR_COMMAND.format(shlex.quote(str(folder)))


def readable_bytes(n_bytes: int) -> str:
    """A size in the largest unit that leaves a number of at least 1."""
    size, unit = float(n_bytes), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 else f"{size:.1f} {UNITS[unit]}"

"""Stores of one fingerprint -> one store of large shards; every entry is verified while it is copied."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.curation.inspection import among, hex_keys, inspect_stores, raw_keys
from scripts.curation.maintenance import only_one
from scripts.curation.overview import readable_bytes, repair_command
from scripts.errors import bad_value
from scripts.pages import counted
from scripts.store.origin import Origin, differences, read_origin
from scripts.store.shards import list_shards
from scripts.store.store import FeatureStore

SHARD_BYTES = 128 * 2**20  # some five times that are in memory while a shard is written


class Copied(NamedTuple):
    """What became of the entries of some stores."""

    sequences: int  # copied
    known: int  # there already, or in several of the stores
    damaged: list[str]  # each shard with damage, in words


def merge_stores(output: str | Path, paths: Sequence[str | Path], progress: bool = True) -> tuple[str, bool]:
    """What was copied in words, and whether all of it was whole; the stores of `paths` stay as they are.

    A merge that was interrupted goes on when it is run again: what the output has is not read again.

    Args:
        output: a new or empty folder, or a store of the same fingerprint.
        paths: the stores.
        progress: show a progress bar.

    Raises:
        FileNotFoundError, ValueError: no store, or stores of several fingerprints, or one of them is the output.
    """
    target, folders = Path(output), [Path(path) for path in paths]
    if not folders:
        raise ValueError(bad_value("configuration", "stores to merge", "none", "at least one"))
    origin = common_origin(folders)
    for folder in folders:
        if target.exists() and target.samefile(folder):
            way_out = f"To clean one store, run: {repair_command(folder)}"
            raise ValueError(bad_value(target, "output", "one of the stores to merge", "another folder", way_out))
    store = FeatureStore.create(target, *origin)
    with only_one(target):
        copied = copy_entries(folders, store, label="merging", progress=progress)
    n_bytes = sum(shard.n_bytes for shard in list_shards(target))
    lines = [
        *copied.damaged,
        f"{target}: {counted(len(store), 'sequence')} in {counted(len(list_shards(target)), 'shard')}, "
        f"{readable_bytes(n_bytes)}; {copied.sequences} copied, {copied.known} were there or in several stores",
    ]
    if copied.damaged:
        lines.append("Damaged sequences were left out. Repair their stores, cache what is missing, and merge again.")
    return "\n".join(lines), not copied.damaged


def common_origin(folders: Sequence[Path]) -> Origin:
    """What all these stores were made with, settings and versions as the first says.

    Raises:
        FileNotFoundError, ValueError: no store, or one of another fingerprint than the first.
    """
    origins = [read_origin(folder) for folder in folders]
    for folder, origin in zip(folders, origins, strict=True):
        found = differences(origin.fingerprint, origins[0].fingerprint)
        if found:
            raise ValueError(
                f"{folder}: made with other settings than {folders[0]}: {'; '.join(found)}. "
                "Only stores of one fingerprint can be merged."
            )
    return origins[0]


def copy_entries(
    folders: Sequence[Path],
    target: FeatureStore,
    wanted: Sequence[str] | None = None,
    label: str = "copying",
    progress: bool = True,
) -> Copied:
    """Copy what the target does not have yet of stores of its fingerprint, shard by shard, into large shards.

    Args:
        folders: of the stores.
        target: gets the entries.
        wanted: their keys; None means all.
        label: of the progress bar.
        progress: show one.
    """
    chosen = None if wanted is None else np.sort(raw_keys(wanted))

    def missing(keys: np.ndarray) -> np.ndarray:
        absent = target.find(hex_keys(keys)) < 0
        return absent if chosen is None else absent & among(keys, chosen)

    sequences = known = 0
    damaged: list[str] = []
    stores = [(folder, target.digest) for folder in folders]
    with target.writer(shard_bytes=SHARD_BYTES, shard_seconds=math.inf) as writer:
        for shard in inspect_stores(stores, missing, label, progress):
            known += len(shard.keys) - int(shard.asked.sum())
            if shard.told:
                damaged.append(shard.told)
            for key, sequence in shard.entries(shard.good):
                new = key not in writer
                sequences, known = sequences + new, known + (not new)
                if new:
                    writer.add(key, sequence)
    return Copied(sequences, known, damaged)

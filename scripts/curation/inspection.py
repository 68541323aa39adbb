"""Folders of shards in any state -> which entries are what was written, which shards are not the store's own.

Opening a store refuses damage; these functions look past it, for the commands that tell of it and repair it.
"""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from scripts.keys import FEATURES
from scripts.pages import counted
from scripts.store.headers import read_head
from scripts.store.origin import FINGERPRINT_FILE
from scripts.store.shards import (
    FORMAT_VERSION,
    SHARD_PATTERN,
    ForeignShardError,
    MappedShard,
    Shard,
    ShardIndex,
    StoredSequence,
    list_shards,
    map_shard,
    read_index,
)

MAX_THREADS = 8  # that hash shards; SHA-256 lets them run at once
_KEY_BYTES = 32


class Inspected(NamedTuple):
    """What became of one shard."""

    folder: Path
    shard: Shard
    error: str | None  # why the store cannot be opened with it; some entries may still be whole
    spared: bool  # that is no damage: it belongs to another store, or the system does not let it be read
    keys: np.ndarray  # (n,) S32
    asked: np.ndarray  # (n,) bool: was to be looked at
    good: np.ndarray  # (n,) bool: was looked at and is what was written
    lengths: np.ndarray  # (n,) int64, frames
    mapped: MappedShard | None

    @property
    def path(self) -> Path:
        return self.folder / self.shard.name

    @property
    def damaged(self) -> int:
        """Entries that are not what was written."""
        return int((self.asked & ~self.good).sum())

    @property
    def told(self) -> str:
        """The damage in words; empty if there is none."""
        if self.error is not None:
            return self.error
        share = f"{self.damaged} of {counted(len(self.keys), 'sequence')} damaged"
        return f"{self.path}: {share}" if self.damaged else ""

    def entries(self, keep: np.ndarray) -> Iterator[tuple[str, StoredSequence]]:
        """Key and views of the entries chosen by `keep` (n,) bool, in the order of the shard."""
        if self.mapped is None:
            return
        ends = np.cumsum(self.lengths)
        for number in np.flatnonzero(keep).tolist():
            frames = slice(int(ends[number] - self.lengths[number]), int(ends[number]))
            arrays = self.mapped.features, self.mapped.frame_times_ms, self.mapped.frame_indices
            tensors = (torch.from_numpy(array[frames]) for array in arrays)
            yield self.mapped.keys[number].tobytes().hex(), StoredSequence(*tensors)


def hex_keys(keys: np.ndarray) -> list[str]:
    """Keys (n,) S32 as hex; NumPy's own items lose zero bytes at the end."""
    raw = keys.tobytes().hex()
    return [raw[at : at + 2 * _KEY_BYTES] for at in range(0, len(raw), 2 * _KEY_BYTES)]


def raw_keys(keys: Sequence[str]) -> np.ndarray:
    """Keys in hex as an array, (n,) S32."""
    return np.frombuffer(bytes.fromhex("".join(keys)), f"S{_KEY_BYTES}")


def inspect_stores(
    stores: Sequence[tuple[Path, str]],
    wanted: Callable[[np.ndarray], np.ndarray] | None = None,
    label: str = "verifying",
    progress: bool = True,
) -> Iterator[Inspected]:
    """Every shard of these stores, in order, its entries compared with their digests by threads that go ahead.

    At most a few shards are mapped at a time.

    Args:
        stores: folder and digest of the fingerprint of each.
        wanted: from keys (n,) S32 to which of them are looked at, (n,) bool; None means all.
        label: of the progress bar.
        progress: show one.
    """
    shards = [(folder, digest, shard) for folder, digest in stores for shard in list_shards(folder)]
    total = sum(shard.n_bytes for _, _, shard in shards)
    threads = min(os.cpu_count() or 1, MAX_THREADS)
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=total, desc=label, unit="B", unit_scale=True, mininterval=1, disable=not progress) as bar:
            pending: deque[Future[Inspected]] = deque()
            for position in range(len(shards) + threads):
                if position < len(shards):
                    pending.append(pool.submit(inspect_shard, *shards[position], wanted))
                if position >= threads:
                    inspected = pending.popleft().result()
                    yield inspected
                    bar.update(inspected.shard.n_bytes)
    finally:  # nothing is waited for: where the caller failed, it may be the garbage collector that ends this
        pool.shutdown(wait=False, cancel_futures=True)


def inspect_shard(
    folder: Path, digest: str, shard: Shard, wanted: Callable[[np.ndarray], np.ndarray] | None = None
) -> Inspected:
    """One shard, its entries compared with their digests; arguments as for `inspect_stores`."""
    path, error, spared = folder / shard.name, None, False
    index: ShardIndex | None
    try:
        index = read_index(path, digest)
    except (ValueError, OSError) as refusal:
        error, spared = str(refusal), isinstance(refusal, (ForeignShardError, OSError))
        index = _index_of_damaged(path, digest)
    try:
        mapped = index and map_shard(folder, shard, index.places)
    except (ValueError, OSError) as refusal:
        error, spared, index = str(refusal), True, None  # it was replaced or removed just now
    if index is None or mapped is None:
        none = np.empty(0, bool)
        keys, lengths = np.empty(0, f"S{_KEY_BYTES}"), np.empty(0, np.int64)
        return Inspected(folder, shard, error, spared, keys, none, none, lengths, None)
    asked = np.ones(len(index.keys), bool) if wanted is None else wanted(index.keys)
    good = np.zeros(len(index.keys), bool)
    ends = np.cumsum(index.lengths)
    for number in np.flatnonzero(asked).tolist():
        frames = slice(int(ends[number] - index.lengths[number]), int(ends[number]))
        good[number] = not mapped.fault(number, frames)
    return Inspected(folder, shard, error, spared, index.keys, asked, good, index.lengths, mapped)


def _index_of_damaged(path: Path, digest: str) -> ShardIndex | None:
    """The index of a shard although it is not what was written; each entry's own digest tells whether it is."""
    try:
        head = read_head(path)
    except (ValueError, OSError):
        return None
    n_frames = head.places[FEATURES][2][0]
    lengths = head.lengths
    apart = lengths.min() >= 1 and lengths.max() <= n_frames and lengths.sum() == n_frames
    said = head.metadata.get("format_version"), head.metadata.get("fingerprint_digest")
    if not apart or said != (FORMAT_VERSION, digest):
        return None
    return ShardIndex(head.keys.view(f"S{_KEY_BYTES}").ravel(), lengths, head.places)


def read_indexes(folder: Path, digest: str, progress: bool = True) -> Iterator[tuple[Shard, ShardIndex | str]]:
    """Each shard with its index, or the reason why it has none; no feature is read."""
    shards = list_shards(folder)
    for shard in tqdm(shards, desc="opening", unit="shard", mininterval=1, delay=1, disable=not progress):
        try:
            yield shard, read_index(folder / shard.name, digest)
        except (ValueError, OSError) as error:
            yield shard, str(error)


def leftovers(folder: Path) -> list[int]:
    """Sizes in bytes of the temporary files that killed processes left; what a living one holds is not among them."""
    found = []
    for path in [*folder.glob(f"{SHARD_PATTERN.format('*')}.tmp"), *folder.glob(f"{FINGERPRINT_FILE}.*.tmp")]:
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found.append(os.fstat(file.fileno()).st_size)
    return found


def among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which keys (n,) are in `known`, sorted (m,) of the same type: (n,) bool."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(known.searchsorted(keys), len(known) - 1)] == keys

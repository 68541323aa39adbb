"""Frame features on disk: what one encoder run leaves and every training epoch reads.

A store is a folder. `fingerprint.json` says what its features were made with; a store of another fingerprint
is refused. `rank{r}-{n}.safetensors` are the shards, which alone are the truth: each appears whole or not at
all, and opening a store reads their indexes. An entry's key is the digest of the source bytes and the frame
choice, so a store holds no path, name or label.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.errors import bad_value
from scripts.record import RUN
from scripts.store.index import EntryIndex
from scripts.store.origin import FINGERPRINT_FILE, Origin, canonical, differences, read_origin, write_origin
from scripts.store.shards import (
    CACHE_COMMAND,
    SHARD_NAME,
    DamagedShardError,
    ForeignShardError,
    MappedShard,
    Places,
    Shard,
    StoredSequence,
    damaged,
    key_bytes,
    list_shards,
    map_shard,
    read_index,
)
from scripts.store.writer import StoreWriter

# Linux allows 65,530 mappings a process; past this many the shard mapped first is let go.
_MAX_MAPPED_SHARDS = 16_384


class FeatureStore:
    """A folder of features that all have one fingerprint; made by `create` or `open`.

    A row is the number of an entry in the order in which shards were found. It stays what it is until `refresh`
    finds that a shard was removed.
    """

    def __init__(self, path: Path, origin: Origin, in_memory: bool = False):
        self.path = path
        self.fingerprint, self._settings = origin.fingerprint, origin.settings
        self.made_with = origin.made_with
        self.digest = origin.digest()
        self.in_memory = in_memory  # whether shards were read whole
        self._forget()
        self.refresh()

    def __reduce__(self) -> tuple:
        return FeatureStore.open, (self.path, self.fingerprint, self.in_memory)  # mappings stay in their process

    @classmethod
    def create(
        cls,
        path: Path,
        fingerprint: dict[str, Any],
        settings: dict[str, Any] | None = None,
        made_with: dict[str, Any] | None = None,
    ) -> "FeatureStore":
        """The store at `path`, made there if the folder is missing or empty, or lost its fingerprint.json.

        Args:
            path: the store's folder.
            fingerprint: what decides the features' values; nested, JSON-able.
            settings: the same in the names of the workflow's knobs, for training and inference; not compared.
            made_with: versions that decide no value; not compared.

        Raises:
            ValueError: the folder holds something else, or a store of another fingerprint.
        """
        path = Path(path)
        if path.is_file():
            way_out = "Name another features_dir."
            raise ValueError(bad_value("configuration", "feature store", path, "a folder", way_out))
        path.mkdir(parents=True, exist_ok=True)
        target = path / FINGERPRINT_FILE
        if not target.exists():
            foreign = [p.name for p in path.iterdir() if not _is_ours(p.name)]
            if foreign and not target.exists():  # looked at again: another rank may just have made it
                message = bad_value(
                    path,
                    "content",
                    ", ".join(sorted(foreign)),
                    f"a new or empty folder, or a store with its {FINGERPRINT_FILE}",
                    "Name another features_dir.",
                )
                raise ValueError(message)
            origin = Origin(fingerprint, settings, made_with or {})
            _refuse_foreign_shards(path, origin.digest())
            write_origin(path, origin)
        return cls.open(path, fingerprint)

    @classmethod
    def open(cls, path: Path, fingerprint: dict[str, Any] | None = None, in_memory: bool = False) -> "FeatureStore":
        """The store at `path`, checked against `fingerprint` where one is given.

        Args:
            path: the store's folder.
            fingerprint: that it must have.
            in_memory: read every shard now instead of mapping it.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: its fingerprint differs, a shard is damaged or belongs to another store, or the shards are
                larger than the memory that is free.
        """
        path = Path(path)
        origin = read_origin(path)
        if fingerprint is not None:
            found = differences(origin.fingerprint, json.loads(canonical(fingerprint)))
            if found:
                raise ValueError(
                    f"{path}: this store was made with other settings: {'; '.join(found)}. "
                    f"Name another features_dir, or delete this folder and run: {CACHE_COMMAND}"
                )
        return cls(path, origin, in_memory)

    @property
    def settings(self) -> dict[str, Any]:
        """What the workflow that made the store was told of encoder and input, by the names of its knobs.

        Raises:
            ValueError: the store was made without them.
        """
        if self._settings is None:
            item, allowed = self.path / FINGERPRINT_FILE, "the knobs the features were made with"
            raise ValueError(bad_value(item, "settings", "absent", allowed, f"Run: {CACHE_COMMAND}"))
        return self._settings

    def __contains__(self, key: str) -> bool:
        return self._index.row(key_bytes(key)) >= 0

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> Iterator[str]:
        """The entries' keys, oldest shard of the lowest rank first."""
        return self._index.keys()

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """The row of each key, (n,) int64; -1 where the store has no such entry."""
        return self._index.find(keys)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """The frames T of each row's entry, (n,) int64; IndexError where there is no such row."""
        return self._index.lengths(rows)

    def read(self, key: str) -> StoredSequence:
        """The entry of `key`, in memory of its own: features (T, D), times (T,), indices (T,).

        Raises:
            KeyError: the store has no such entry.
            ValueError: the entry is damaged.
        """
        # Copies, not views of the mapping: what a caller changes in place must not show at the next read.
        features, times, indices = self._arrays(self._row(key))
        from_numpy = torch.from_numpy
        return StoredSequence(from_numpy(features.copy()), from_numpy(times.copy()), from_numpy(indices.copy()))

    def view(self, row: int) -> StoredSequence:
        """The entry of a row as `read` gives it, without a copy: for callers that change nothing in place.

        What they would change shows at this process's later reads of the entry, never in the store.

        Raises:
            IndexError: no such row.
            ValueError: the entry is damaged.
        """
        features, times, indices = self._arrays(row)
        return StoredSequence(torch.from_numpy(features), torch.from_numpy(times), torch.from_numpy(indices))

    def check(self, key: str) -> None:
        """Compare an entry with its digest now, whether or not that was done before.

        Raises:
            KeyError: the store has no such entry.
            ValueError: the entry is damaged; the message names the shard and the command that repairs the store.
        """
        row = self._row(key)
        self._verified[row] = False
        self._arrays(row)

    def writer(self, rank: int = 0, shard_bytes: int = 64 * 2**20, shard_seconds: float = 60.0) -> "StoreWriter":
        """A writer whose shards are closed at `shard_bytes` or `shard_seconds`, whichever comes first."""
        return StoreWriter(self.path, self.digest, self.__contains__, self._take_in, rank, shard_bytes, shard_seconds)

    def refresh(self) -> None:
        """Take in shards that other processes wrote, and forget those they removed."""
        found, known = list_shards(self.path), set(self._shards)
        if known <= set(found):
            self._take_in(found)
        else:  # one was removed or replaced: its entries may be too
            self._take_in(found, alone=True)

    def _take_in(self, shards: Sequence[Shard], alone: bool = False) -> None:
        """Add the entries of shards, all or none, or have them `alone`; a key that is there already stays as it is."""
        known = set() if alone else set(self._shards)
        shards = [shard for shard in shards if shard not in known]
        if self.in_memory:
            _refuse_above_memory(self.path, sum(shard.n_bytes for shard in shards))
        indexes = [read_index(self.path / shard.name, self.digest) for shard in shards]
        if alone:
            self._forget()
        self._index.add(indexes)
        self._verified += bytes(self._index.n_rows - len(self._verified))
        self._shards += shards
        self._places += [index.places for index in indexes]
        if self.in_memory:
            for number in range(len(self._mapped), len(self._shards)):
                self._map(number)

    def _forget(self) -> None:
        self._index = EntryIndex()
        self._verified = bytearray()  # of each row, whether its digest was compared in this process
        self._shards: list[Shard] = []
        self._places: list[Places] = []
        self._mapped: dict[int, MappedShard] = {}

    def _row(self, key: str) -> int:
        row = self._index.row(key_bytes(key))
        if row < 0:
            raise KeyError(f"{self.path}: has no entry {key}. Make it with: {CACHE_COMMAND}")
        return row

    def _arrays(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The features, times and indices of a row's entry, which are what was written."""
        number, entry, frames = self._index.place(row)
        mapped = self._mapped.get(number) or self._map(number)
        if not self._verified[row]:
            fault = mapped.fault(entry, frames)
            if fault:
                raise damaged(self.path / self._shards[number].name, fault)
            self._verified[row] = True
        return mapped.features[frames], mapped.frame_times_ms[frames], mapped.frame_indices[frames]

    def _map(self, number: int) -> MappedShard:
        mapped = map_shard(self.path, self._shards[number], self._places[number], self.in_memory)
        if len(self._mapped) >= _MAX_MAPPED_SHARDS and not self.in_memory:
            self._mapped.pop(next(iter(self._mapped)))
        self._mapped[number] = mapped
        return mapped


def _is_ours(name: str) -> bool:
    """Whether a file of this name can be what a store lost its fingerprint.json beside."""
    return name.startswith((FINGERPRINT_FILE, RUN)) or SHARD_NAME.fullmatch(name.removesuffix(".tmp")) is not None


def _refuse_foreign_shards(path: Path, digest: str) -> None:
    """Raise ValueError if shards of a folder that lost its fingerprint.json are of another fingerprint."""
    for shard in list_shards(path):
        try:
            read_index(path / shard.name, digest)
        except DamagedShardError:
            pass  # `open` tells of it, in a store that can be repaired then
        except ForeignShardError:
            allowed = "shards of the fingerprint that is to be used"
            raise ValueError(bad_value(path, "content", shard.name, allowed, "Name another features_dir.")) from None


def _refuse_above_memory(path: Path, n_bytes: int) -> None:
    """Raise ValueError if the shards of the store at `path` do not fit into the memory that is free."""
    free = free_bytes()
    if n_bytes > free:
        allowed = f"at most {free / 2**30:.2f} GiB, the memory that is free"
        raise ValueError(
            bad_value(path, "size of the shards", f"{n_bytes / 2**30:.2f} GiB", allowed, "Open it without in_memory.")
        )


def free_bytes() -> int:
    """Memory that a process can still have."""
    with suppress(OSError, StopIteration), Path("/proc/meminfo").open() as lines:  # with what the cache would give back
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

"""Entries -> the shards of one rank, each whole or not at all."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from scripts.errors import bad_value
from scripts.store.files import remove_leftovers
from scripts.store.headers import MAX_SEQUENCES
from scripts.store.shards import (
    SHARD_PATTERN,
    Shard,
    StoredSequence,
    checked,
    key_bytes,
    list_shards,
    publish,
)


class StoreWriter:
    """Collects entries and writes them as whole shards; a context manager, made by `FeatureStore.writer`.

    Entries are kept on leaving the block, also when an exception ends it; then the store has them. A process that
    is killed loses at most the entries since its last shard.

    Args:
        path: of the store.
        digest: of its fingerprint.
        stored: whether the store has a key, which is then not written again.
        published: told of the shards when the writer is closed.
        rank: of this process.
        shard_bytes: size of its entries at which a shard is written.
        shard_seconds: age of its first entry at which the next one has the shard written.
    """

    def __init__(
        self,
        path: Path,
        digest: str,
        stored: Callable[[str], bool],
        published: Callable[[list[Shard]], None],
        rank: int,
        shard_bytes: int,
        shard_seconds: float,
    ):
        for name, value, least, most in (
            ("rank", rank, 0, 2**31),
            ("shard_bytes", shard_bytes, 1, 2**40),
            ("shard_seconds", shard_seconds, 0, math.inf),
        ):
            if not least <= value <= most:
                raise ValueError(bad_value(path, name, value, f"{least} to {most}"))
        self.path = path
        self.rank = rank
        self.shard_bytes = shard_bytes
        self.shard_seconds = shard_seconds
        self._digest, self._stored, self._published = digest, stored, published
        self._pending: dict[str, StoredSequence] = {}
        self._pending_bytes = 0
        self._first_at = 0.0  # when the first pending entry came
        self._written: set[bytes] = set()  # keys, so that the store need not take in each shard
        self._shards: list[Shard] = []
        numbers = [number for of, number in (shard.order for shard in list_shards(path)) if of == rank]
        self._number = max(numbers, default=-1) + 1  # where the search for a free one begins
        self._closed = False
        remove_leftovers(path, SHARD_PATTERN.format(rank))

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        """Whether the store has the key, or will."""
        return key in self._pending or key_bytes(key) in self._written or self._stored(key)

    def add(self, key: str, sequence: StoredSequence) -> None:
        """Keep a sequence, features (T, D) or (T, P, D), under `key`; what is stored under it already stays."""
        if self._closed:
            raise ValueError(f"{self.path}: entry {key} came after the writer was closed.")
        if key in self:
            return
        sequence = checked(key, sequence)
        last = next(reversed(self._pending.values()), sequence).features
        if (last.dtype, last.shape[1:]) != (sequence.features.dtype, sequence.features.shape[1:]):
            self.flush()  # a shard's features are one array
        if not self._pending:
            self._first_at = time.monotonic()
        self._pending[key] = sequence
        self._pending_bytes += sum(tensor.nbytes for tensor in sequence)
        if (
            self._pending_bytes >= self.shard_bytes
            or len(self._pending) >= MAX_SEQUENCES
            or time.monotonic() - self._first_at >= self.shard_seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write the entries collected so far as one shard; after an error they are still collected."""
        if not self._pending:
            return
        shard = publish(self.path, self.rank, self._number, self._pending, self._digest)
        self._number = shard.order[1] + 1
        self._shards.append(shard)
        self._written.update(map(key_bytes, self._pending))
        self._pending, self._pending_bytes = {}, 0

    def close(self) -> None:
        """Write what is collected, let the store have it, and take no more."""
        self.flush()
        self._closed = True
        self._published(self._shards)

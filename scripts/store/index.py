"""Indexes of shards -> the row of a key, the place of a row; 49 bytes an entry.

A row is the number of an entry in the order in which the shards were taken in.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from scripts.errors import bad_value
from scripts.store.shards import ShardIndex, key_bytes


class EntryIndex:
    """Which keys there are, and where; grows with `add`, by which no row changes."""

    def __init__(self) -> None:
        self._keys = np.empty(0, "S32")  # sorted; of a key in two shards the first is kept
        self._rows = np.empty(0, np.int64)  # of the sorted keys
        self._frames = np.zeros(1, np.int64)  # of each row, the frames in all rows before it; then of all
        self._first_rows: list[int] = []  # of each shard
        self.n_rows = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, shards: Sequence[ShardIndex]) -> None:
        """Take in the entries of shards, numbered on from those that are here."""
        if not shards:
            return
        before = self.n_rows
        for shard in shards:
            self._first_rows.append(self.n_rows)
            self.n_rows += len(shard.keys)
        keys = np.concatenate([self._keys, *(shard.keys for shard in shards)])
        order = np.argsort(keys, kind="stable")  # of equal keys the first row stays first
        keys = keys[order]
        rows = np.concatenate([self._rows, np.arange(before, self.n_rows)])[order]
        first = np.concatenate([[True], keys[1:] != keys[:-1]])
        self._keys, self._rows = (keys, rows) if first.all() else (keys[first], rows[first])
        lengths = np.concatenate([shard.lengths for shard in shards])
        self._frames = np.concatenate([self._frames, self._frames[-1] + np.cumsum(lengths)])

    def row(self, key: bytes) -> int:
        """The row of a key, -1 where it has none."""
        at = self._keys.searchsorted(key)
        return self._rows.item(at) if self._keys[at : at + 1].tobytes() == key else -1

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """The row of each key, (n,) int64, -1 where it has none."""
        wanted = np.frombuffer(b"".join(map(key_bytes, keys)), "S32")
        if not len(self):
            return np.full(len(wanted), -1)
        at = np.minimum(self._keys.searchsorted(wanted), len(self) - 1)
        return np.where(self._keys[at] == wanted, self._rows[at], -1)

    def keys(self) -> Iterator[str]:
        """Every key once, in the order of rows."""
        order = np.argsort(self._rows)
        for begin in range(0, len(order), 65_536):  # not all of them a second time in memory
            raw = self._keys[order[begin : begin + 65_536]].tobytes()
            yield from (raw[at : at + 32].hex() for at in range(0, len(raw), 32))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """The frames of each row's entry, (n,) int64.

        Raises:
            IndexError: no such row.
        """
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_rows:
            raise self._no_row(rows.min() if rows.min() < 0 else rows.max())
        return self._frames[rows + 1] - self._frames[rows]

    def place(self, row: int) -> tuple[int, int, slice]:
        """A row's shard, its number among the entries of that shard, and its frames among those of the shard.

        Raises:
            IndexError: no such row.
        """
        if not 0 <= row < self.n_rows:
            raise self._no_row(row)
        shard = bisect_right(self._first_rows, row) - 1
        first, item = self._first_rows[shard], self._frames.item
        before = item(first)
        return shard, row - first, slice(item(row) - before, item(row + 1) - before)

    def _no_row(self, row: int) -> IndexError:
        way_out = "find() gives -1 for a key that the store does not have."
        return IndexError(bad_value("feature store", "row", row, f"0 to below {self.n_rows}", way_out))

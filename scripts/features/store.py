"""Frame features on disk: what one encoder run leaves and every training epoch reads.

A store is a folder. `fingerprint.json` says what its features were made with; a store of another fingerprint
is refused. Beside it in that file stand the `settings` of the workflow that made the store, which training and
inference follow and which nothing is compared with. `rank{r}-{n}.safetensors` are the shards, which alone are
the truth: each appears whole or not at all, and opening a store reads their headers. `manifest.json` lists the
entries for people and tools; it is derived and never read here. An entry's key is the digest of the source
bytes and the frame choice, so a store holds no path, name or label.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.errors import bad_value
from scripts.features.shards import (
    CACHE_COMMAND,
    FORMAT_VERSION,
    MAX_SEQUENCES,
    RECORD,
    Shard,
    StoredSequence,
    checked,
    key_bytes,
    list_shards,
    map_shard,
    publish,
    read_header,
    read_sequence,
    remove_leftovers,
    write_whole,
)

FINGERPRINT_FILE = "fingerprint.json"
MANIFEST_FILE = "manifest.json"
SETTINGS = "settings"  # the field of the file that is no part of the fingerprint
# Linux allows 65,530 mappings a process; past this many the shard mapped first is let go.
_MAX_MAPPED_SHARDS = 16_384


class FeatureStore:
    """A folder of features that all have one fingerprint; made by `create` or `open`."""

    def __init__(self, path: Path, fingerprint: dict):
        self.path = path
        self.fingerprint = fingerprint
        self._shards: list[Shard] = []
        self._index: dict[bytes, bytes] = {}  # 32-byte key -> RECORD
        self._mapped: dict[int, memoryview] = {}
        self.refresh()

    def __reduce__(self) -> tuple:
        return FeatureStore.open, (self.path, self.fingerprint)  # mappings stay in their process

    @classmethod
    def create(cls, path: Path, fingerprint: dict) -> "FeatureStore":
        """The store at `path`, made there if the folder is missing or empty.

        Args:
            path: the store's folder.
            fingerprint: what the features are made with; nested, JSON-able.

        Raises:
            ValueError: the folder holds something else, or a store of another fingerprint.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        target = path / FINGERPRINT_FILE
        if not target.exists():
            foreign = [p.name for p in path.iterdir() if not p.name.startswith(FINGERPRINT_FILE)]
            if foreign and not target.exists():  # looked at again: another rank may just have made it
                message = bad_value(
                    path,
                    "content",
                    ", ".join(sorted(foreign)),
                    f"a new or empty folder, or a store with its {FINGERPRINT_FILE}",
                    "Name another features_dir.",
                )
                raise ValueError(message)
            content = json.loads(_canonical(fingerprint))
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            write_whole(target, text.encode(), keep_existing=True)
        return cls.open(path, fingerprint)

    @classmethod
    def open(cls, path: Path, fingerprint: dict | None = None) -> "FeatureStore":
        """The store at `path`, checked against `fingerprint` where one is given.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: its fingerprint differs, or a shard is damaged or belongs to another store.
        """
        path = Path(path)
        target = path / FINGERPRINT_FILE
        if not target.exists():
            raise FileNotFoundError(f"{path}: no feature store here. Make it first: {CACHE_COMMAND}")
        try:
            stored = json.loads(target.read_bytes())
            if not isinstance(stored, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            raise ValueError(
                f"{target}: cannot be read ({error}). Delete the folder {path} and run: {CACHE_COMMAND}"
            ) from None
        if fingerprint is not None:
            differences = _differences(_compared(stored), json.loads(_canonical(_compared(fingerprint))))
            if differences:
                raise ValueError(
                    f"{path}: this store was made with other settings: {'; '.join(differences)}. "
                    f"Name another features_dir, or delete this folder and run: {CACHE_COMMAND}"
                )
        return cls(path, stored)

    @property
    def digest(self) -> str:
        """SHA-256 of the fingerprint as canonical JSON, 64 hex digits."""
        return hashlib.sha256(_canonical(_compared(self.fingerprint))).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """What the workflow that made the store was told of encoder and input, by the names of its knobs.

        Raises:
            ValueError: the store was made without them.
        """
        if not isinstance(self.fingerprint.get(SETTINGS), dict):
            allowed = "the knobs the features were made with"
            raise ValueError(
                bad_value(self.path / FINGERPRINT_FILE, SETTINGS, "absent", allowed, f"Run: {CACHE_COMMAND}")
            )
        return self.fingerprint[SETTINGS]

    def __contains__(self, key: str) -> bool:
        return key_bytes(key) in self._index

    def __len__(self) -> int:
        return len(self._index)

    def keys(self) -> Iterator[str]:
        """The entries' keys, oldest shard of the lowest rank first."""
        return (key.hex() for key in self._index)

    def read(self, key: str) -> StoredSequence:
        """The entry of `key`, in memory of its own: features (T, D), times (T,), indices (T,).

        Raises:
            KeyError: the store has no such entry.
        """
        record = self._index.get(key_bytes(key))
        if record is None:
            raise KeyError(f"{self.path}: has no entry {key}. Make it with: {CACHE_COMMAND}")
        number, *entry = RECORD.unpack(record)
        mapped = self._mapped.get(number) or self._map(number)
        return read_sequence(mapped, *entry)

    def writer(self, rank: int = 0, shard_bytes: int = 64 * 2**20, shard_sequences: int = 64) -> "StoreWriter":
        """A writer whose shards are closed at `shard_bytes` or `shard_sequences`, whichever comes first."""
        return StoreWriter(self, rank, shard_bytes, shard_sequences)

    def refresh(self) -> None:
        """Take in shards that other processes wrote, and forget those they removed."""
        found = list_shards(self.path)
        if not set(self._shards) <= set(found):  # one is gone or was replaced: its entries may be too
            self._shards, self._index, self._mapped = [], {}, {}
        known = set(self._shards)
        for shard in found:
            if shard not in known:
                self._take_in(shard)

    def write_manifest(self) -> None:
        """Write `manifest.json` anew from the shards; the job of rank 0 at the end of a run."""
        self.refresh()
        keys: list[list[str]] = [[] for _ in self._shards]
        for key, record in self._index.items():
            keys[RECORD.unpack(record)[0]].append(key.hex())
        shards = sorted(zip(self._shards, keys, strict=True), key=lambda pair: pair[0].order)
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint_digest": self.digest,
            "sequences": len(self),
            "shards": [{"name": s.name, "bytes": s.n_bytes, "entries": sorted(k)} for s, k in shards],
        }
        write_whole(self.path / MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())

    def _take_in(self, shard: Shard) -> None:
        """Add a shard's entries to the index; a key that is there already stays as it is."""
        entries = list(read_header(self.path / shard.name, self.digest))  # all of a shard or nothing
        number = len(self._shards)
        self._shards.append(shard)
        for key, fields in entries:
            self._index.setdefault(key, RECORD.pack(number, *fields))

    def _map(self, number: int) -> memoryview:
        shard = self._shards[number]
        mapped = map_shard(self.path / shard.name, shard.n_bytes)
        if len(self._mapped) >= _MAX_MAPPED_SHARDS:
            self._mapped.pop(next(iter(self._mapped)))
        self._mapped[number] = mapped
        return mapped


class StoreWriter:
    """Collects entries and writes them as whole shards; a context manager.

    Entries are kept on leaving the block, also when an exception ends it. A process that is killed loses at
    most the entries since its last shard.
    """

    def __init__(self, store: FeatureStore, rank: int, shard_bytes: int, shard_sequences: int):
        for name, value, least, most in (
            ("rank", rank, 0, 2**31),
            ("shard_bytes", shard_bytes, 1, 2**40),
            ("shard_sequences", shard_sequences, 1, MAX_SEQUENCES),
        ):
            if not least <= value <= most:
                raise ValueError(bad_value(store.path, name, value, f"{least} to {most}"))
        self.store = store
        self.rank = rank
        self.shard_bytes = shard_bytes
        self.shard_sequences = shard_sequences
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        numbers = [number for of, number in (shard.order for shard in store._shards) if of == rank]
        self._number = max(numbers, default=-1) + 1  # where the search for a free one begins
        self._closed = False
        remove_leftovers(store.path, rank)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, key: str, sequence: StoredSequence) -> None:
        """Keep a sequence, features (T, D), under `key`; what is stored under it already stays."""
        if self._closed:
            raise ValueError(f"{self.store.path}: entry {key} came after the writer was closed.")
        if key in self.store or key in self._pending:
            return
        tensors = checked(key, sequence)
        self._pending[key] = tensors
        self._pending_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if self._pending_bytes >= self.shard_bytes or len(self._pending) >= self.shard_sequences:
            self.flush()

    def flush(self) -> None:
        """Write the entries collected so far as one shard; after an error they are still collected."""
        if not self._pending:
            return
        shard = publish(self.store.path, self.rank, self._number, self._pending, self.store.digest)
        self._number = shard.order[1] + 1
        self._pending, self._pending_bytes = {}, 0
        self.store._take_in(shard)

    def close(self) -> None:
        """Write what is collected and take no more."""
        self.flush()
        self._closed = True


def _compared(fingerprint: dict) -> dict:
    """The fingerprint without the settings beside it."""
    return {name: value for name, value in fingerprint.items() if name != SETTINGS}


def _canonical(fingerprint: object) -> bytes:
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _differences(stored: Any, wanted: Any, at: str = "") -> list[str]:
    """One phrase for each field that differs; 1 and 1.0 do, as in the digest."""
    if _canonical(stored) == _canonical(wanted):
        return []
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return [f"{at} is {json.dumps(stored)} in the store, {json.dumps(wanted)} wanted"]
    found = []
    for name in sorted(stored.keys() | wanted.keys()):
        pair = stored.get(name, "(absent)"), wanted.get(name, "(absent)")
        found += _differences(*pair, f"{at}.{name}" if at else name)
    return found

"""Frame features on disk: what one encoder run leaves and every training epoch reads.

A store is a folder. `fingerprint.json` says what its features were made with; a store of another fingerprint
is refused. `rank{r}-{n}.safetensors` are the shards, which alone are the truth: each appears whole or not at
all, and opening a store reads their headers. `manifest.json` lists the entries for people and tools; it is
derived and never read here. An entry's key is the digest of the source bytes and the frame choice, so a store
holds no path, name or label.
"""

import fcntl
import hashlib
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scripts.errors import bad_value
from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES

FORMAT_VERSION = "1"
FINGERPRINT_FILE = "fingerprint.json"
MANIFEST_FILE = "manifest.json"
CACHE_COMMAND = "python -m monai.bundle run --config_file configs/cache_features.yaml"

# an entry's tensors, "<key>.<name>" in a shard: how many dimensions, and which types by safetensors' names
_TENSORS = {
    FEATURES: (2, {"F16": torch.float16, "F32": torch.float32}),
    FRAME_TIMES: (1, {"F32": torch.float32}),
    FRAME_INDICES: (1, {"I64": torch.int64}),
}
_FEATURE_DTYPES = tuple(_TENSORS[FEATURES][1].values())
_KEY = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"rank(\d+)-(\d+)\.safetensors")
# shard, T, D, dtype, then where features, times and indices begin in the file: 37 bytes a sequence
_RECORD = struct.Struct("<IIIBQQQ")
# Linux allows 65,530 mappings a process; past this many the shard mapped first is let go.
_MAX_MAPPED_SHARDS = 16_384


@dataclass(frozen=True)
class StoredSequence:
    """Features of one sequence with the times and positions of their frames."""

    features: Tensor  # (T, D) float16 or float32, finite
    frame_times_ms: Tensor  # (T,) float32, NaN = unknown
    frame_indices: Tensor  # (T,) int64, 0-based in the source


class _Shard(NamedTuple):
    name: str
    n_bytes: int
    mtime_ns: int


class FeatureStore:
    """A folder of features that all have one fingerprint; made by `create` or `open`."""

    def __init__(self, path: Path, fingerprint: dict):
        self.path = path
        self.fingerprint = fingerprint
        self._shards: list[_Shard] = []
        self._index: dict[bytes, bytes] = {}  # 32-byte key -> _RECORD
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
            _write_whole(target, text.encode(), keep_existing=True)
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
            differences = _differences(stored, json.loads(_canonical(fingerprint)))
            if differences:
                raise ValueError(
                    f"{path}: this store was made with other settings: {'; '.join(differences)}. "
                    f"Name another features_dir, or delete this folder and run: {CACHE_COMMAND}"
                )
        return cls(path, stored)

    @property
    def digest(self) -> str:
        """SHA-256 of the fingerprint as canonical JSON, 64 hex digits."""
        return hashlib.sha256(_canonical(self.fingerprint)).hexdigest()

    def __contains__(self, key: str) -> bool:
        return _key_bytes(key) in self._index

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
        record = self._index.get(_key_bytes(key))
        if record is None:
            raise KeyError(f"{self.path}: has no entry {key}. Make it with: {CACHE_COMMAND}")
        number, n_frames, width, code, at_features, at_times, at_indices = _RECORD.unpack(record)
        shard = self._mapped.get(number) or self._map(number)
        dtype = _FEATURE_DTYPES[code]
        # Copies, not views of the mapping: what a caller changes in place must not show at the next read.
        n_bytes = n_frames * width * dtype.itemsize
        features = torch.frombuffer(bytearray(shard[at_features : at_features + n_bytes]), dtype=dtype)
        times = torch.frombuffer(bytearray(shard[at_times : at_times + 4 * n_frames]), dtype=torch.float32)
        indices = torch.frombuffer(
            bytearray(shard[at_indices : at_indices + 8 * n_frames]), dtype=torch.int64
        )
        return StoredSequence(features.view(n_frames, width), times, indices)

    def writer(
        self, rank: int = 0, shard_bytes: int = 64 * 2**20, shard_sequences: int = 64
    ) -> "StoreWriter":
        """A writer whose shards are closed at `shard_bytes` or `shard_sequences`, whichever comes first."""
        return StoreWriter(self, rank, shard_bytes, shard_sequences)

    def refresh(self) -> None:
        """Take in shards that other processes wrote, and forget those they removed."""
        found = []
        with os.scandir(self.path) as listing:
            for item in listing:
                if _SHARD.fullmatch(item.name):
                    found.append(_Shard(item.name, item.stat().st_size, item.stat().st_mtime_ns))
        if not set(self._shards) <= set(found):  # one is gone or was replaced: its entries may be too
            self._shards, self._index, self._mapped = [], {}, {}
        known = set(self._shards)
        for shard in sorted(found, key=_order):
            if shard not in known:
                self._take_in(shard)

    def write_manifest(self) -> None:
        """Write `manifest.json` anew from the shards; the job of rank 0 at the end of a run."""
        self.refresh()
        keys: list[list[str]] = [[] for _ in self._shards]
        for key, record in self._index.items():
            keys[_RECORD.unpack(record)[0]].append(key.hex())
        shards = sorted(zip(self._shards, keys, strict=True), key=lambda pair: _order(pair[0]))
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint_digest": self.digest,
            "sequences": len(self),
            "shards": [{"name": s.name, "bytes": s.n_bytes, "entries": sorted(k)} for s, k in shards],
        }
        _write_whole(self.path / MANIFEST_FILE, (json.dumps(manifest, indent=1) + "\n").encode())

    def _take_in(self, shard: _Shard) -> None:
        """Add a shard's entries to the index; a key that is there already stays as it is."""
        entries = list(_read_header(self.path / shard.name, self.digest))  # all of a shard or nothing
        number = len(self._shards)
        self._shards.append(shard)
        for key, fields in entries:
            self._index.setdefault(key, _RECORD.pack(number, *fields))

    def _map(self, number: int) -> memoryview:
        shard = self._shards[number]
        path = self.path / shard.name
        if path.stat().st_size != shard.n_bytes:  # reading past a shortened file's end would kill the process
            raise _damaged(path, "its size changed since it was opened")
        # torch's mapping keeps no descriptor open, Python's does and 1,024 is a common limit of those
        mapped = torch.from_file(str(path), shared=False, size=shard.n_bytes, dtype=torch.uint8).numpy().data
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
            ("shard_sequences", shard_sequences, 1, 100_000),  # safetensors reads headers up to 100 MB
        ):
            if not least <= value <= most:
                raise ValueError(bad_value(store.path, name, value, f"{least} to {most}"))
        self.store = store
        self.rank = rank
        self.shard_bytes = shard_bytes
        self.shard_sequences = shard_sequences
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._pending_bytes = 0
        numbers = [number for of, number in map(_order, store._shards) if of == rank]
        self._number = max(numbers, default=-1) + 1  # where the search for a free one begins
        self._closed = False
        for temporary in store.path.glob(f"rank{rank}-*.safetensors.tmp"):
            _remove_leftover(temporary)

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
        tensors = _checked(key, sequence)
        self._pending[key] = tensors
        self._pending_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if self._pending_bytes >= self.shard_bytes or len(self._pending) >= self.shard_sequences:
            self.flush()

    def flush(self) -> None:
        """Write the entries collected so far as one shard; after an error they are still collected."""
        if not self._pending:
            return
        tensors = {f"{key}.{name}": t for key, entry in self._pending.items() for name, t in entry.items()}
        metadata = {"format_version": FORMAT_VERSION, "fingerprint_digest": self.store.digest}
        shard, self._number = _publish(self.store.path, self.rank, self._number, save(tensors, metadata))
        self._pending, self._pending_bytes = {}, 0
        self.store._take_in(shard)

    def close(self) -> None:
        """Write what is collected and take no more."""
        self.flush()
        self._closed = True


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


def _key_bytes(key: str) -> bytes:
    if not _KEY.fullmatch(key):
        raise ValueError(bad_value("entry", "key", key, "64 lower-case hex digits, a SHA-256"))
    return bytes.fromhex(key)


def _checked(key: str, sequence: StoredSequence) -> dict[str, Tensor]:
    """An entry's tensors by name, copied: a view would keep the whole encoder batch it came from."""
    tensors = {name: getattr(sequence, name).detach().cpu() for name in _TENSORS}
    n_frames = max(len(tensors[FEATURES]) if tensors[FEATURES].ndim else 0, 1)
    for name, tensor in tensors.items():
        n_dims, dtypes = _TENSORS[name]
        fits = tensor.ndim == n_dims and len(tensor) == n_frames and tensor.numel() > 0
        if not fits or tensor.dtype not in dtypes.values():
            shape = f"({n_frames}, D)" if n_dims == 2 else f"({n_frames},)"
            allowed = f"{shape} of {' or '.join(str(dtype) for dtype in dtypes.values())}"
            raise ValueError(bad_value(f"entry {key}", name, (tuple(tensor.shape), tensor.dtype), allowed))
    n_bad = int((~torch.isfinite(tensors[FEATURES])).sum())
    if n_bad:
        way_out = "Above 65,504 float16 overflows: store float32 then."
        raise ValueError(bad_value(f"entry {key}", f"count of non-finite {FEATURES}", n_bad, "0", way_out))
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _damaged(path: Path, reason: object) -> ValueError:
    way_out = f"Delete this file, which loses only its own entries, and run: {CACHE_COMMAND}"
    return ValueError(f"{path}: damaged shard: {reason}. {way_out}")


def _read_header(path: Path, digest: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Each entry's key and its T, D, type code and three offsets in the file; no tensor is read."""
    try:
        with safe_open(path, "pt") as shard:  # refuses headers that are too long, overlap or leave gaps
            metadata = shard.metadata() or {}
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_header))
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from None
    found = metadata.get("format_version"), metadata.get("fingerprint_digest")
    if found != (FORMAT_VERSION, digest):
        allowed = f"({FORMAT_VERSION!r}, {digest!r}) like its store"
        way_out = f"It belongs to another store: remove this file and run: {CACHE_COMMAND}"
        raise ValueError(bad_value(path, "format version and fingerprint digest", found, allowed, way_out))
    header.pop("__metadata__")
    for key in dict.fromkeys(name.partition(".")[0] for name in header):
        tensors = [header.pop(f"{key}.{name}", None) for name in _TENSORS]
        if not _KEY.fullmatch(key) or None in tensors:
            raise _damaged(path, f"{key[:80]!r} names no whole entry")
        shapes = [tensor["shape"] for tensor in tensors]
        types = [tensor["dtype"] for tensor in tensors]
        n_frames, width = (*shapes[0], 0, 0)[:2]
        allowed_types = all(t in dtypes for t, (_, dtypes) in zip(types, _TENSORS.values(), strict=True))
        if shapes != [[n_frames, width], [n_frames], [n_frames]] or not n_frames * width or not allowed_types:
            raise _damaged(path, f"entry {key} has shapes {shapes} and types {types}")
        offsets = (8 + n_header + tensor["data_offsets"][0] for tensor in tensors)
        code = _FEATURE_DTYPES.index(_TENSORS[FEATURES][1][types[0]])
        yield bytes.fromhex(key), (n_frames, width, code, *offsets)
    if header:
        raise _damaged(path, f"{next(iter(header))[:80]!r} belongs to no entry")


def _order(shard: _Shard) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", shard.name))


def _publish(folder: Path, rank: int, number: int, content: bytes) -> tuple[_Shard, int]:
    """Write a shard under its rank's first free number from `number` on; returns it and the number after."""
    while True:
        target = folder / f"rank{rank}-{number}.safetensors"
        number += 1
        with _named_in_errors(target):
            if _write_shard(target, content):
                status = target.stat()
                return _Shard(target.name, status.st_size, status.st_mtime_ns), number


def _write_shard(target: Path, content: bytes) -> bool:
    """Whether the shard was written; it is not where another process has that name, or is about to."""
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        file = temporary.open("xb")  # who creates the temporary file, and still holds it, owns the name
    except FileExistsError:
        return False
    with file:
        with suppress(OSError):  # the lock tells a living owner from a killed one, where there are locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_named(file, temporary):  # taken for a leftover before it was locked
            return False
        try:
            if target.exists():
                return False
            _write_through(file, content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def _remove_leftover(temporary: Path) -> None:
    """Delete the temporary file of a killed run; one that a process is writing stays."""
    with suppress(FileNotFoundError), temporary.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if _is_named(file, temporary):
            temporary.unlink()


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_whole(target: Path, content: bytes, keep_existing: bool = False) -> None:
    """Write a file that is at no moment half there; with `keep_existing` the first process's stays."""
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    with _named_in_errors(target):
        try:
            with temporary.open("xb") as file:
                _write_through(file, content)
            if keep_existing:
                with suppress(OSError):  # it exists, or this file system has no hard links
                    os.link(temporary, target)  # unlike a rename, fails where the target exists
            if not keep_existing or not target.exists():
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


@contextmanager
def _named_in_errors(target: Path) -> Iterator[None]:
    """Put the path into what the system says; of a full disk it says none."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: not written, what was there before is whole"
        raise OSError(error.errno, reason, str(target)) from error


def _write_through(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems refuse to sync a folder; the rename is done
        os.fsync(descriptor)
    os.close(descriptor)

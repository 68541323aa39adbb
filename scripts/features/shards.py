"""Entries <-> one shard file, a safetensors file that is whole or absent.

What enters is checked and copied; what leaves was checked against the header first. A shard appears under its
name by a rename, after its bytes are on the disk. Files get the mode that the umask gives.
"""

import fcntl
import json
import os
import re
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scripts.errors import bad_value
from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES

FORMAT_VERSION = "1"
CACHE_COMMAND = "python -m monai.bundle run --config_file configs/cache_features.yaml"
MAX_SEQUENCES = 100_000  # in one shard: safetensors reads headers up to 100 MB

# an entry's tensors, "<key>.<name>" in a shard: how many dimensions, and which types by safetensors' names
_TENSORS = {
    FEATURES: (2, {"F16": torch.float16, "F32": torch.float32}),
    FRAME_TIMES: (1, {"F32": torch.float32}),
    FRAME_INDICES: (1, {"I64": torch.int64}),
}
_FEATURE_DTYPES = tuple(_TENSORS[FEATURES][1].values())
_KEY = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"rank(\d+)-(\d+)\.safetensors")
# an index's record: shard, T, D, type code, where features, times and indices begin; 37 bytes a sequence
RECORD = struct.Struct("<IIIBQQQ")


@dataclass(frozen=True)
class StoredSequence:
    """Features of one sequence with the times and positions of their frames."""

    features: Tensor  # (T, D) float16 or float32, finite
    frame_times_ms: Tensor  # (T,) float32, NaN = unknown
    frame_indices: Tensor  # (T,) int64, 0-based in the source


class Shard(NamedTuple):
    """A shard file as the folder lists it; a file that was replaced is another shard."""

    name: str
    n_bytes: int
    mtime_ns: int

    @property
    def order(self) -> tuple[int, int]:
        """Its writer's rank, and its number among the shards of that rank."""
        rank, number = re.findall(r"\d+", self.name)
        return int(rank), int(number)


def key_bytes(key: str) -> bytes:
    """The 32 bytes of an entry's key, refused if it is no SHA-256 in hex."""
    if not _KEY.fullmatch(key):
        raise ValueError(bad_value("entry", "key", key, "64 lower-case hex digits, a SHA-256"))
    return bytes.fromhex(key)


def checked(key: str, sequence: StoredSequence) -> dict[str, Tensor]:
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


def read_header(path: Path, digest: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Each entry's key and the fields of its `RECORD` after the first; no tensor is read.

    Args:
        path: of the shard.
        digest: of the store's fingerprint, which the shard's must equal.

    Raises:
        ValueError: the shard is damaged or belongs to another store.
    """
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


def map_shard(path: Path, n_bytes: int) -> memoryview:
    """The bytes of a shard, mapped and read when they are used."""
    if path.stat().st_size != n_bytes:  # reading past a shortened file's end would kill the process
        raise _damaged(path, "its size changed since it was opened")
    # torch's mapping keeps no descriptor open, Python's does and 1,024 is a common limit of those
    return torch.from_file(str(path), shared=False, size=n_bytes, dtype=torch.uint8).numpy().data


def read_sequence(
    mapped: memoryview, n_frames: int, width: int, code: int, at_features: int, at_times: int, at_indices: int
) -> StoredSequence:
    """The entry at these offsets of a mapped shard, in memory of its own."""

    # Copies, not views of the mapping: what a caller changes in place must not show at the next read.
    def copied(begin: int, count: int, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(mapped[begin : begin + count * dtype.itemsize]), dtype=dtype)

    return StoredSequence(
        copied(at_features, n_frames * width, _FEATURE_DTYPES[code]).view(n_frames, width),
        copied(at_times, n_frames, torch.float32),
        copied(at_indices, n_frames, torch.int64),
    )


def list_shards(folder: Path) -> list[Shard]:
    """The shards in a folder, lowest rank and oldest first."""
    found = []
    with os.scandir(folder) as listing:
        for item in listing:
            if _SHARD.fullmatch(item.name):
                status = item.stat()
                found.append(Shard(item.name, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda shard: shard.order)


def publish(folder: Path, rank: int, number: int, entries: Mapping[str, Mapping[str, Tensor]], digest: str) -> Shard:
    """Write entries (of `checked`, by key) as one shard under its rank's first free number from `number` on.

    Raises:
        OSError: it could not be written; the message names the path, and no part of the shard is left.
    """
    tensors = {f"{key}.{name}": t for key, entry in entries.items() for name, t in entry.items()}
    content = save(tensors, {"format_version": FORMAT_VERSION, "fingerprint_digest": digest})
    while True:
        target = folder / f"rank{rank}-{number}.safetensors"
        with _named_in_errors(target):
            if _write_shard(target, content):
                status = target.stat()
                return Shard(target.name, status.st_size, status.st_mtime_ns)
        number += 1


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


def remove_leftovers(folder: Path, rank: int) -> None:
    """Delete the temporary files of a rank's killed runs; one that a process is writing stays."""
    for temporary in folder.glob(f"rank{rank}-*.safetensors.tmp"):
        # gone meanwhile, or another person's: then its name is passed over like that of a living process
        with suppress(FileNotFoundError, PermissionError), temporary.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if _is_named(file, temporary):
                temporary.unlink()


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_whole(target: Path, content: bytes, keep_existing: bool = False) -> None:
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

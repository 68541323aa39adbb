"""Entries <-> one shard, a safetensors file of six tensors over its n entries and their F frames.

What enters is checked and copied. What leaves was checked: the header and the index (keys, lengths, digests) of
a shard when it is opened, an entry against its digest before it is first used. All of an entry is therefore
the bytes that were written, or is refused.
"""

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scripts.errors import bad_value
from scripts.features.files import write_new
from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES

FORMAT_VERSION = "2"
CACHE_COMMAND = "python -m monai.bundle run --config_file configs/cache_features.yaml"
REPAIR_COMMAND = "python -m scripts store prune {}"  # of the store's path, quoted for a shell
MAX_SEQUENCES = 100_000  # in one shard: what is read at once when it is opened stays below 10 MB
SHARD_PATTERN = "rank{}-*.safetensors"

KEYS, DIGESTS, FRAME_COUNTS = "keys", "digests", "lengths"  # the index of a shard, in the order it is digested
_INDEX = (KEYS, FRAME_COUNTS, DIGESTS)
_TYPES = {  # of each tensor of a shard, by safetensors' names
    KEYS: ("U8",),
    FRAME_COUNTS: ("I64",),
    DIGESTS: ("U8",),
    FEATURES: ("F16", "F32"),
    FRAME_TIMES: ("F32",),
    FRAME_INDICES: ("I64",),
}
_NUMPY = {"U8": "u1", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
_MAX_HEADER = 4096  # bytes; ours have some 700, whatever the shard holds
_SHARD = re.compile(r"rank(\d+)-(\d+)\.safetensors")


class StoredSequence(NamedTuple):
    """Features of one sequence with the times and positions of their frames."""

    features: Tensor  # (T, D), or (T, P, D) of P patch tokens; float16 or float32, finite
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


Places = dict[str, tuple[int, str, tuple[int, ...]]]  # of a shard's tensors: first byte, NumPy type, shape


class ShardIndex(NamedTuple):
    """What opening a shard reads of it, all of it checked."""

    keys: np.ndarray  # (n,) S32
    lengths: np.ndarray  # (n,) int64, frames of each entry, at least 1
    places: Places


class MappedShard(NamedTuple):
    """A shard's arrays, read when they are used; what is written into them is this process's own."""

    features: np.ndarray  # (F, D) or (F, P, D)
    frame_times_ms: np.ndarray  # (F,)
    frame_indices: np.ndarray  # (F,)
    keys: np.ndarray  # (n, 32) uint8
    digests: np.ndarray  # (n, 32) uint8

    def fault(self, number: int, frames: slice) -> str:
        """What is wrong with an entry, by its number and frames in the shard; empty if it is what was written."""
        key, features = self.keys[number].tobytes(), self.features[frames]
        digest = _digest(key, features, self.frame_times_ms[frames], self.frame_indices[frames])
        if digest != self.digests[number].tobytes():
            return f"entry {key.hex()} is not what was written"
        return "" if np.isfinite(features).all() else f"entry {key.hex()} has {FEATURES} that are not finite"


def key_bytes(key: str) -> bytes:
    """The 32 bytes of an entry's key, refused if it is no SHA-256 in hex."""
    try:
        raw = bytes.fromhex(key)
    except (ValueError, TypeError):
        raw = b""
    if len(raw) != 32 or raw.hex() != key:
        raise ValueError(bad_value("entry", "key", key, "64 lower-case hex digits, a SHA-256"))
    return raw


def entry_digest(key: str, sequence: StoredSequence) -> str:
    """SHA-256, in hex, of an entry: its key, the form of its features, and every byte of its tensors."""
    arrays = (np.ascontiguousarray(tensor.detach().cpu().numpy()) for tensor in sequence)
    return _digest(key_bytes(key), *arrays).hex()


def _digest(key: bytes, features: np.ndarray, *others: np.ndarray) -> bytes:
    hashed = hashlib.sha256(key + f"{features.dtype} {features.shape[1:]}\n".encode())
    for array in (features, *others):
        hashed.update(array.data)
    return hashed.digest()


def checked(key: str, sequence: StoredSequence) -> StoredSequence:
    """The sequence, copied: a view would keep the whole encoder batch it came from.

    Raises:
        ValueError: a shape, a type or a number that no store holds.
    """
    own = StoredSequence(*(tensor.detach().cpu() for tensor in sequence))
    n_frames = max(len(own.features) if own.features.ndim else 0, 1)
    for name, tensor, dims, dtypes in (
        (FEATURES, own.features, (2, 3), (torch.float16, torch.float32)),
        (FRAME_TIMES, own.frame_times_ms, (1,), (torch.float32,)),
        (FRAME_INDICES, own.frame_indices, (1,), (torch.int64,)),
    ):
        fits = tensor.ndim in dims and len(tensor) == n_frames and tensor.numel() > 0
        if not fits or tensor.dtype not in dtypes:
            shape = f"({n_frames},)" if dims == (1,) else f"({n_frames}, D) or ({n_frames}, P, D)"
            allowed = f"{shape} of {' or '.join(str(dtype) for dtype in dtypes)}"
            raise ValueError(bad_value(f"entry {key}", name, (tuple(tensor.shape), tensor.dtype), allowed))
    n_bad = int((~torch.isfinite(own.features)).sum())
    if n_bad:
        way_out = "Above 65,504 float16 overflows: store float32 then."
        raise ValueError(bad_value(f"entry {key}", f"count of non-finite {FEATURES}", n_bad, "0", way_out))
    return StoredSequence(*(tensor.contiguous().clone() for tensor in own))


def damaged(path: Path, reason: object) -> ValueError:
    """The refusal of a shard, with the command that drops what is damaged of its store."""
    repair = REPAIR_COMMAND.format(shlex.quote(str(path.parent)))
    way_out = f"Drop what is damaged with: {repair}; then compute it again with: {CACHE_COMMAND}"
    return ValueError(f"{path}: damaged shard: {reason}. {way_out}")


def read_index(path: Path, digest: str) -> ShardIndex:
    """The keys and lengths of a shard's entries and where its arrays lie; no feature is read.

    Args:
        path: of the shard.
        digest: of the store's fingerprint, which the shard's must equal.

    Raises:
        ValueError: the shard is damaged or belongs to another store.
    """
    try:
        header, begin = _read_header(path)
        with safe_open(path, "np") as shard:  # refuses tensors that overlap, leave gaps or pass the file's end
            metadata = shard.metadata() or {}
            found = metadata.get("format_version"), metadata.get("fingerprint_digest")
            if found != (FORMAT_VERSION, digest):
                raise _foreign(path, found, digest)
            places = _places(header, begin)
            index = [shard.get_tensor(name) for name in _INDEX]
    except (SafetensorError, _FaultError) as error:
        raise damaged(path, error) from None
    if hashlib.sha256(b"".join(array.tobytes() for array in index)).hexdigest() != metadata.get("index_digest"):
        raise damaged(path, "its index is not what was written")
    keys, lengths = index[0].view("S32").ravel(), index[1]
    n_frames = places[FEATURES][2][0]
    ends = np.cumsum(lengths)  # below 0 where the sum leaves int64: no length is above a number of frames in memory
    if lengths.min() < 1 or lengths.max() > n_frames or ends.min() < 1 or ends[-1] != n_frames:
        raise damaged(path, f"the lengths of its entries are not those of its {n_frames} frames")
    return ShardIndex(keys, lengths, places)


class _FaultError(ValueError):
    """What is wrong with a header."""


def _foreign(path: Path, found: object, digest: str) -> ValueError:
    allowed = f"({FORMAT_VERSION!r}, {digest!r}) like its store"
    repair = REPAIR_COMMAND.format(shlex.quote(str(path.parent)))
    way_out = f"It belongs to another store or is damaged: move it away, or drop it with: {repair}"
    return ValueError(bad_value(path, "format version and fingerprint digest", found, allowed, way_out))


def _read_header(path: Path) -> tuple[dict, int]:
    """A shard's header, and the position of its first tensor."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        if n_bytes > _MAX_HEADER:
            raise _FaultError(f"a header of {n_bytes} bytes, at most {_MAX_HEADER} are written")
        content = file.read(n_bytes)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        raise _FaultError("its header is no JSON") from None
    # One spelling is allowed: of a name that stands there twice, JSON's readers each choose one.
    if not isinstance(header, dict) or json.dumps(header, separators=(",", ":")).encode().ljust(n_bytes) != content:
        raise _FaultError("its header is not as safetensors writes it")
    return header, 8 + n_bytes


def _places(header: dict, begin: int) -> Places:
    """Where each tensor of a header that safetensors accepted lies, its type and its shape."""
    header.pop("__metadata__", None)
    if header.keys() != _TYPES.keys():
        raise _FaultError(f"its tensors are {', '.join(sorted(header))[:200]!r}, not {', '.join(sorted(_TYPES))!r}")
    for name, tensor in header.items():
        if tensor["dtype"] not in _TYPES[name]:
            raise _FaultError(f"{name} are {tensor['dtype']}, not {' or '.join(_TYPES[name])}")
    shapes = {name: tensor["shape"] for name, tensor in header.items()}
    n, n_frames = (*shapes[KEYS], 0)[0], (*shapes[FEATURES], 0)[0]
    right = {KEYS: [n, 32], DIGESTS: [n, 32], FRAME_COUNTS: [n], FRAME_TIMES: [n_frames], FRAME_INDICES: [n_frames]}
    if {**shapes, **right} != shapes or len(shapes[FEATURES]) not in (2, 3) or math.prod([n, *shapes[FEATURES]]) < 1:
        raise _FaultError(f"its tensors have the shapes {shapes}")
    return {
        name: (begin + tensor["data_offsets"][0], _NUMPY[tensor["dtype"]], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }


def map_shard(folder: Path, shard: Shard, places: Places, in_memory: bool = False) -> MappedShard:
    """The arrays of a shard: mapped, or with `in_memory` read."""
    path = folder / shard.name
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) != shard[1:]:  # past a shortened file's end a read kills the process
            raise damaged(path, "it changed since it was opened")
        if in_memory:
            content = np.fromfile(path, np.uint8, shard.n_bytes)
        else:
            # torch's mapping keeps no descriptor open, Python's does and 1,024 is a common limit of those
            content = torch.from_file(str(path), shared=False, size=shard.n_bytes, dtype=torch.uint8).numpy()
    except FileNotFoundError:
        raise damaged(path, "it is gone since it was opened") from None
    arrays = {
        name: content[at : at + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        for name, (at, dtype, shape) in places.items()
    }
    return MappedShard(arrays[FEATURES], arrays[FRAME_TIMES], arrays[FRAME_INDICES], arrays[KEYS], arrays[DIGESTS])


def list_shards(folder: Path) -> list[Shard]:
    """The shards in a folder, lowest rank and oldest first."""
    found = []
    with os.scandir(folder) as listing:
        for item in listing:
            if _SHARD.fullmatch(item.name) and item.is_file():
                status = item.stat()
                found.append(Shard(item.name, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda shard: shard.order)


def publish(folder: Path, rank: int, number: int, entries: Mapping[str, StoredSequence], digest: str) -> Shard:
    """Write entries (of `checked`, by key, of one form) as one shard under its rank's first free number from `number`.

    Raises:
        OSError: it could not be written; the message names the path, and no part of the shard is left.
    """
    features, times, indices = (torch.cat(tensors) for tensors in zip(*entries.values(), strict=True))
    keys = b"".join(map(key_bytes, entries))
    digests = b"".join(bytes.fromhex(entry_digest(key, sequence)) for key, sequence in entries.items())
    lengths = np.array([len(sequence.features) for sequence in entries.values()], np.int64)
    metadata = {
        "format_version": FORMAT_VERSION,
        "fingerprint_digest": digest,
        "index_digest": hashlib.sha256(keys + lengths.tobytes() + digests).hexdigest(),
    }
    tensors = {
        KEYS: torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(-1, 32),
        DIGESTS: torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 32),
        FRAME_COUNTS: torch.from_numpy(lengths),
        FEATURES: features,
        FRAME_TIMES: times,
        FRAME_INDICES: indices,
    }
    content = save(tensors, metadata)
    while not write_new(target := folder / f"rank{rank}-{number}.safetensors", content):
        number += 1
    status = target.stat()
    return Shard(target.name, status.st_size, status.st_mtime_ns)

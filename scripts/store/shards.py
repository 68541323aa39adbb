"""Entries <-> one shard, a safetensors file of six tensors over its n entries and their F frames.

What enters is checked and copied. What leaves was checked: the header and the index (keys, lengths, digests) of
a shard when it is opened, an entry against its digest before it is first used. All of an entry is therefore
the bytes that were written, or is refused.
"""

import hashlib
import math
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from scripts.errors import bad_value, printable
from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES, LENGTHS
from scripts.store.files import write_new
from scripts.store.headers import DIGESTS, KEYS, HeaderError, Places, read_head

FORMAT_VERSION = "2"
CACHE_COMMAND = "python -m monai.bundle run --config_file configs/cache_features.yaml"
REPAIR_COMMAND = "python -m scripts store prune {}"  # of the store's path, quoted for a shell
SHARD_PATTERN = "rank{}-*.safetensors"

SHARD_NAME = re.compile(r"rank(\d+)-(\d+)\.safetensors")


class DamagedShardError(ValueError):
    """A shard, or an entry of it, that is not what was written."""


class ForeignShardError(ValueError):
    """A whole shard, of a store of another fingerprint."""


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
        return f"entry {key.hex()} has {FEATURES} that are not finite" if _count_not_finite(features) else ""


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
    features, *others = (tensor.detach().cpu().contiguous().numpy() for tensor in sequence)
    return _digest(key_bytes(key), features, *others).hex()


def _digest(key: bytes, features: np.ndarray, *others: np.ndarray) -> bytes:
    hashed = hashlib.sha256(key + f"{features.dtype.str} {features.shape[1:]}\n".encode())
    for array in (features, *others):
        hashed.update(array.data)
    return hashed.digest()


def _count_not_finite(features: np.ndarray) -> int:
    """How many numbers are infinite or NaN."""
    if features.dtype == np.float16:  # by the bits of the exponent, 4 times as fast as isfinite
        return int(np.count_nonzero((features.view(np.uint16) & 0x7C00) == 0x7C00))
    return features.size - int(np.count_nonzero(np.isfinite(features)))


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
    own = StoredSequence(*(tensor.contiguous().clone() for tensor in own))
    n_bad = _count_not_finite(own.features.numpy())
    if n_bad:
        way_out = "Above 65,504 float16 overflows: store float32 then."
        raise ValueError(bad_value(f"entry {key}", f"count of non-finite {FEATURES}", n_bad, "0", way_out))
    return own


def damaged(path: Path, reason: object) -> DamagedShardError:
    """The refusal of a shard, with the command that drops what is damaged of its store."""
    way_out = f"Drop what is damaged with: {_repair_command(path)}; then compute it again with: {CACHE_COMMAND}"
    return DamagedShardError(f"{printable(path)}: damaged shard: {printable(reason)}. {way_out}")


def _repair_command(path: Path) -> str:
    return REPAIR_COMMAND.format(shlex.quote(str(path.parent)))


def read_index(path: Path, digest: str) -> ShardIndex:
    """The keys and lengths of a shard's entries and where its arrays lie; no feature is read.

    Args:
        path: of the shard.
        digest: of the store's fingerprint, which the shard's must equal.

    Raises:
        DamagedShardError: it is not what was written, or of another format.
        ForeignShardError: it belongs to another store.
    """
    try:
        metadata, keys, lengths, digests, places = read_head(path)
    except HeaderError as error:
        raise damaged(path, error) from None
    if metadata.get("format_version") != FORMAT_VERSION:
        raise damaged(path, f"format version {metadata.get('format_version')}, {FORMAT_VERSION} is read here")
    of = metadata.get("fingerprint_digest", "")
    if _index_digest(of, keys.tobytes(), lengths.tobytes(), digests.tobytes()) != metadata.get("index_digest"):
        raise damaged(path, "its index is not what was written")
    n_frames = places[FEATURES][2][0]
    ends = np.cumsum(lengths)  # falls below 0 where it passes int64, since no length is above the frames of a file
    if lengths.min() < 1 or lengths.max() > n_frames or ends.min() < 1 or ends[-1] != n_frames:
        raise damaged(path, f"the lengths of its entries are not those of its {n_frames} frames")
    if of != digest:
        way_out = f"It belongs to another store: move it there, or set it aside with: {_repair_command(path)}"
        raise ForeignShardError(bad_value(path, "fingerprint digest", of, f"{digest} like its store", way_out))
    return ShardIndex(keys.view("S32").ravel(), lengths, places)


def _index_digest(fingerprint_digest: str, keys: bytes, lengths: bytes, digests: bytes) -> str:
    return hashlib.sha256(fingerprint_digest.encode() + keys + lengths + digests).hexdigest()


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
            with suppress(FileNotFoundError):  # removed meanwhile
                if not SHARD_NAME.fullmatch(item.name) or not item.is_file():
                    continue
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
        "index_digest": _index_digest(digest, keys, lengths.tobytes(), digests),
    }
    tensors = {
        KEYS: torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(-1, 32),
        DIGESTS: torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, 32),
        LENGTHS: torch.from_numpy(lengths),
        FEATURES: features,
        FRAME_TIMES: times,
        FRAME_INDICES: indices,
    }
    content = save(tensors, metadata)
    while not write_new(target := folder / f"rank{rank}-{number}.safetensors", content):
        number += 1
    status = target.stat()
    return Shard(target.name, status.st_size, status.st_mtime_ns)

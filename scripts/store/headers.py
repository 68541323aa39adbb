"""A file that may hold anything -> what it says of itself as a shard, and where its arrays lie."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES, LENGTHS

MAX_SEQUENCES = 100_000  # in one shard: what is read of it when it is opened stays below 10 MB
KEYS, DIGESTS = "keys", "digests"  # of a shard's entries, (n, 32)
_MAX_HEADER = 4096  # bytes; ours have some 700, whatever the shard holds
_TYPES = {  # of each tensor, by safetensors' names
    KEYS: ("U8",),
    DIGESTS: ("U8",),
    LENGTHS: ("I64",),
    FEATURES: ("F16", "F32"),
    FRAME_TIMES: ("F32",),
    FRAME_INDICES: ("I64",),
}
_NUMPY = {"U8": "u1", "I64": "<i8", "F16": "<f2", "F32": "<f4"}

Places = dict[str, tuple[int, str, tuple[int, ...]]]  # of a shard's tensors: first byte, NumPy type, shape


class HeaderError(ValueError):
    """What is wrong with a header, without the path."""


class Head(NamedTuple):
    """What stands in a shard but the frames."""

    metadata: dict[str, str]
    keys: np.ndarray  # (n, 32) uint8
    lengths: np.ndarray  # (n,) int64
    digests: np.ndarray  # (n, 32) uint8
    places: Places


def read_head(path: Path) -> Head:
    """The head of a shard of which the types and shapes are right, and nothing else is checked.

    Raises:
        HeaderError: it is no shard.
    """
    header, begin = _read_header(path)
    try:
        with safe_open(path, "np") as shard:  # refuses tensors that overlap, leave gaps or pass the file's end
            places = _places(header, begin)
            keys, lengths, digests = (shard.get_tensor(name) for name in (KEYS, LENGTHS, DIGESTS))
            return Head(shard.metadata() or {}, keys, lengths, digests, places)
    except SafetensorError as error:
        raise HeaderError(error) from None


def _read_header(path: Path) -> tuple[dict, int]:
    """A shard's header, and the position of its first tensor."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
        if n_bytes > _MAX_HEADER:
            raise HeaderError(f"a header of {n_bytes} bytes, at most {_MAX_HEADER} are written")
        content = file.read(n_bytes)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        raise HeaderError("its header is no JSON") from None
    # One spelling is allowed: of a name that stands there twice, JSON's readers each choose one.
    if not isinstance(header, dict) or json.dumps(header, separators=(",", ":")).encode().ljust(n_bytes) != content:
        raise HeaderError("its header is not as safetensors writes it")
    return header, 8 + n_bytes


def _places(header: dict, begin: int) -> Places:
    """Where each tensor of a header that safetensors accepted lies, its type and its shape."""
    header.pop("__metadata__", None)
    if header.keys() != _TYPES.keys():
        raise HeaderError(f"its tensors are {', '.join(sorted(header))[:200]!r}, not {', '.join(sorted(_TYPES))!r}")
    for name, tensor in header.items():
        if tensor["dtype"] not in _TYPES[name]:
            raise HeaderError(f"{name} are {tensor['dtype']}, not {' or '.join(_TYPES[name])}")
    shapes = {name: tensor["shape"] for name, tensor in header.items()}
    n, n_frames = (*shapes[KEYS], 0)[0], (*shapes[FEATURES], 0)[0]
    right = {KEYS: [n, 32], DIGESTS: [n, 32], LENGTHS: [n], FRAME_TIMES: [n_frames], FRAME_INDICES: [n_frames]}
    filled = 0 < n <= MAX_SEQUENCES and math.prod(shapes[FEATURES]) > 0
    if not filled or {**shapes, **right} != shapes or len(shapes[FEATURES]) not in (2, 3):
        raise HeaderError(f"its tensors have the shapes {shapes}")
    places = {
        name: (begin + tensor["data_offsets"][0], _NUMPY[tensor["dtype"]], tuple(tensor["shape"]))
        for name, tensor in header.items()
    }
    if any(at % int(dtype[-1]) for at, dtype, _ in places.values()):
        raise HeaderError("its tensors are not aligned")
    return places

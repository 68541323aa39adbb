"""Small feature stores, and their files byte by byte, for the tests of store, shards and writer."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from scripts.store.shards import StoredSequence
from scripts.store.store import FeatureStore

ROOT = Path(__file__).parent.parent
FINGERPRINT = {"encoder": {"name": "tiny", "digest": "ab"}, "image_size": [224, 224], "mean": 0.5}

# What `forked` runs: a process for each range of numbers, all at once; each is killed where a time for it is given,
# which begins when the store has no, one or two more shards, by turns.
_FORKS = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from scripts.store.store import FeatureStore
from tests.stores import FINGERPRINT, key_of, sequence_of

def write(folder, numbers, per_shard, pause_s):
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        for count, i in enumerate(n for n in range(*numbers) if key_of(n) not in store):
            writer.add(key_of(i), sequence_of(i))
            os.write(1, f"{i} ".encode())
            if count % per_shard == per_shard - 1:
                writer.flush()
            time.sleep(pause_s)

def shards():
    return len(list(Path(folder).glob("*.safetensors")))

folder, ranges, per_shard, pause_s, kills_s = map(json.loads, sys.argv[1:])
torch.set_num_threads(1)
for kill_s in kills_s or [None]:
    pids = []
    for numbers in ranges:
        pids.append(os.fork())
        if not pids[-1]:
            write(Path(folder), numbers, per_shard, pause_s)
            os._exit(0)
    if kill_s is not None:
        begun, least = time.monotonic(), shards() + kills_s.index(kill_s) % 3
        while shards() < least and time.monotonic() - begun < 10:
            time.sleep(0.0005)
        time.sleep(kill_s)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitpid(pid, 0)[1] for pid in pids]
    if kill_s is None:
        assert not any(codes), codes
        break
    stored = len(FeatureStore.open(Path(folder))) if Path(folder, "fingerprint.json").exists() else 0
    print(f"killed {stored}", flush=True)
"""


def forked(folder: Path, ranges: list[tuple[int, int]], per_shard: int, pause_s: float = 0.0, kills_s=()) -> list[str]:
    """What processes print that write these entries at once; again for each time after which they are killed.

    Each number as it is added, and after each kill `killed` and how many the store has.
    """
    arguments = [json.dumps(value) for value in (str(folder), ranges, per_shard, pause_s, list(kills_s))]
    command = [sys.executable, "-W", "error", "-c", _FORKS, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def sequence_of(number: int) -> StoredSequence:
    """An entry that `number` alone determines, of 1 to 9 frames."""
    generator = torch.Generator().manual_seed(number)
    n_frames = 1 + number % 9
    times = torch.rand(n_frames, generator=generator)
    times[n_frames // 2] = torch.nan
    features = torch.randn(n_frames, 8, generator=generator).half()
    return StoredSequence(features, times, torch.arange(n_frames) * 3)


def assert_equal(found: StoredSequence, wanted: StoredSequence) -> None:
    for name in StoredSequence._fields:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0, equal_nan=True)


def assert_holds(store: FeatureStore, numbers: range) -> None:
    """The store has these entries and no others, by every way of reading."""
    assert set(store.keys()) == {key_of(i) for i in numbers}
    assert len(store) == len(numbers)
    rows = store.find([key_of(i) for i in numbers])
    assert store.lengths(rows).tolist() == [len(sequence_of(i).features) for i in numbers]
    for i, row in zip(numbers, rows.tolist(), strict=True):
        assert key_of(i) in store
        assert_equal(store.read(key_of(i)), sequence_of(i))
        assert_equal(store.view(row), sequence_of(i))


def fill(store: FeatureStore, numbers: range, per_shard: int = 10**9, rank: int = 0) -> FeatureStore:
    with store.writer(rank) as writer:
        for count, i in enumerate(numbers, 1):
            writer.add(key_of(i), sequence_of(i))
            if count % per_shard == 0:
                writer.flush()
    return store


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def flip(path: Path, position: int, mask: int = 0xFF) -> None:
    """Change a byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        (old,) = file.read(1)
        file.seek(position)
        file.write(bytes([old ^ mask]))


# --- shards that nobody would write ---


def spelled(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def arrays_of(numbers: list[int]) -> dict[str, np.ndarray]:
    """The tensors of a shard of these entries, without their digests, in the order of safetensors."""
    sequences = [sequence_of(i) for i in numbers]
    features, times, indices = (torch.cat(tensors).numpy() for tensors in zip(*sequences, strict=True))
    keys = np.frombuffer(bytes.fromhex("".join(map(key_of, numbers))), np.uint8).reshape(-1, 32)
    lengths = np.array([len(s.features) for s in sequences])
    return {"frame_indices": indices, "lengths": lengths, "frame_times_ms": times, "features": features, "keys": keys}


def forged(arrays: dict[str, np.ndarray], digest: str, **metadata: str) -> bytes:
    """A shard of any arrays, its digests right where they can be."""
    arrays = dict(arrays)
    if "digests" not in arrays and arrays.keys() >= {"keys", "lengths", "features"}:
        digests, begin = [], 0
        for key, length in zip(arrays["keys"].reshape(-1, 32), arrays["lengths"].ravel().tolist(), strict=False):
            names = [name for name in ("features", "frame_times_ms", "frame_indices") if name in arrays]
            entry = [arrays[name][begin : begin + length] for name in names]
            form = f"{entry[0].dtype.str} {entry[0].shape[1:]}\n".encode()
            content = b"".join([key.tobytes(), form, *(array.tobytes() for array in entry)])
            digests.append(hashlib.sha256(content).digest())
            begin += length
        arrays["digests"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    index = b"".join(arrays[name].tobytes() for name in ("keys", "lengths", "digests") if name in arrays)
    says = {
        "format_version": "2",
        "fingerprint_digest": digest,
        "index_digest": hashlib.sha256(digest.encode() + index).hexdigest(),
    }
    header, at = {"__metadata__": says | metadata}, 0
    for name, array in arrays.items():
        kind = {"f": "F", "i": "I", "u": "U"}[array.dtype.kind] + str(8 * array.itemsize)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    return spelled(header, b"".join(array.tobytes() for array in arrays.values()))

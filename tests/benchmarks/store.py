"""The feature store: random reads against a raw memmap and one .pt a sequence, writing, opening, an epoch of batches.

    python -m tests.benchmarks.store [--quick] [--check]

The features are synthetic: 20 frames of 384 half-precision numbers a sequence. Files lie in the system's folder for
temporary files and stay in its cache: what is measured is the store, not the disk.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from scripts.features.batching import FeatureDataset, collate_sequences
from scripts.features.sampling import LengthBatches
from scripts.keys import ENTRY, LABEL, SOURCE
from scripts.store.store import FeatureStore, StoredSequence
from tests.benchmarks.report import Figure, finish, peak_bytes, print_table, seconds, timed_pairs

NUM_FRAMES, WIDTH, BATCH_SIZE = 20, 384, 64
RECORD_BYTES = NUM_FRAMES * (2 * WIDTH + 4 + 8)  # features, times, indices, one after the other
OF_MEMMAP, OVER_PT, INDEX_BYTES = 0.6, 10, 200
PT_FILES = 2_000  # enough to time; 100,000 files would measure the file system


def key_of(number: int) -> str:
    """A key as digests are: spread evenly, so that neighbours in the store are none in its index."""
    return np.random.default_rng(number).bytes(32).hex()


def write_store(folder: Path, number: int) -> tuple[FeatureStore, float]:
    """A store of that many sequences, and the bytes it wrote a second, each shard synced to disk."""
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((64, NUM_FRAMES, WIDTH))).half()
    times, indices = torch.arange(NUM_FRAMES) * 66.7, torch.arange(NUM_FRAMES)
    keys = [key_of(n) for n in range(number)]
    store = FeatureStore.create(folder, {"benchmark": "store"})

    def write() -> None:
        with store.writer() as writer:
            for n, key in enumerate(keys):
                writer.add(key, StoredSequence(features[n % 64], times, indices))

    return store, number * RECORD_BYTES / seconds(write)


def write_memmap(path: Path, store: FeatureStore) -> np.ndarray:
    """The same bytes, one record after the other."""
    with path.open("wb") as file:
        for key in list(store.keys()):
            for tensor in store.read(key):
                file.write(tensor.numpy().tobytes())
    return np.asarray(np.memmap(path, np.uint8, "r")).reshape(len(store), RECORD_BYTES)  # quicker than its subclass


def write_pt_files(folder: Path, store: FeatureStore) -> list[Path]:
    """One file a sequence, as torch.save writes it."""
    folder.mkdir()
    paths = [folder / f"{n}.pt" for n in range(min(len(store), PT_FILES))]
    for path, key in zip(paths, store.keys(), strict=False):
        torch.save(store.read(key)._asdict(), path)
    return paths


def read_raw(raw: np.ndarray, n: int) -> tuple[torch.Tensor, ...]:
    """A record in memory of its own, as the three tensors that the store gives."""
    record = raw[n].copy()
    features, rest = record[: 2 * NUM_FRAMES * WIDTH].view(np.float16), record[2 * NUM_FRAMES * WIDTH :]
    times, indices = rest[: 4 * NUM_FRAMES].view(np.float32), rest[4 * NUM_FRAMES :].view(np.int64)
    return torch.from_numpy(features.reshape(NUM_FRAMES, WIDTH)), torch.from_numpy(times), torch.from_numpy(indices)


def compare(folder: Path, number: int, quick: bool) -> tuple[list[Figure], list[tuple]]:
    """All measurements of a store of that size: figures, and rows of the table."""
    store, rate = write_store(folder / "store", number)
    opening = seconds(lambda: FeatureStore.open(store.path))
    raw, pt = write_memmap(folder / "raw", store), write_pt_files(folder / "pt", store)
    keys = list(store.keys())
    picked = np.random.default_rng(1).permutation(number)[: 2_000 if quick else 10_000].tolist()
    first_s = seconds(lambda: [store.read(keys[n]) for n in picked])  # each entry's digest is compared once
    repeats = 3 if quick else 9
    reads = timed_pairs(
        lambda: [store.read(keys[n]) for n in picked], lambda: [read_raw(raw, n) for n in picked], repeats
    )
    bare = timed_pairs(lambda: [store.read(keys[n]) for n in picked], lambda: [raw[n].copy() for n in picked], repeats)
    few = picked[:500]
    of_pt = timed_pairs(
        lambda: [store.read(keys[n]) for n in few],
        lambda: [torch.load(pt[n % len(pt)], weights_only=True) for n in few],
        3,
    )
    items = [{ENTRY: key, SOURCE: key[:16], LABEL: 0} for key in keys]
    dataset = FeatureDataset(items, store)
    loader = DataLoader(
        dataset, batch_sampler=LengthBatches(dataset.lengths, BATCH_SIZE, seed=0), collate_fn=collate_sequences
    )
    order = np.random.default_rng(2).permutation(number).tolist()
    epoch = timed_pairs(
        lambda: [None for _ in loader], lambda: [None for n in order if read_raw(raw, n) is None], 1 if quick else 3
    )
    index = peak_bytes(
        "from pathlib import Path\nfrom scripts.store.store import FeatureStore",
        f"store = FeatureStore.open(Path({str(store.path)!r}))",
    )
    label = f"{number:,} sequences"
    rows = [
        ("written, MB/s", f"{rate / 1e6:.0f}"),
        ("opened, s", f"{opening:.2f}"),
        ("peak memory while opening, bytes a sequence", f"{index / number:.0f}"),
        ("first reads, sequences/s (digests compared)", f"{len(picked) / first_s:,.0f}"),
        ("random reads, sequences/s", f"{len(picked) / reads.first_s:,.0f}"),
        ("raw memmap to the same tensors, sequences/s", f"{len(picked) / reads.second_s:,.0f}"),
        ("raw memmap, bytes alone, sequences/s", f"{len(picked) / bare.second_s:,.0f}"),
        ("one .pt each, sequences/s", f"{len(few) / of_pt.second_s:,.0f}"),
        (f"epoch in batches of {BATCH_SIZE}, sequences/s", f"{number / epoch.first_s:,.0f}"),
        ("all records of the memmap, sequences/s", f"{number / epoch.second_s:,.0f}"),
    ]
    figures = [
        Figure(f"{label}: read rate over a raw memmap", reads.ratio, OF_MEMMAP),
        Figure(f"{label}: read rate over a copy of the bytes alone, no tensor made", bare.ratio),
        Figure(f"{label}: read rate over one .pt each", of_pt.ratio, OVER_PT),
        Figure(f"{label}: epoch of batches over the raw read", epoch.ratio),
    ]
    if number >= 100_000:  # what opening takes besides is the larger part of a small store
        figures.append(Figure(f"{label}: bytes of memory a sequence", index / number, at_most=INDEX_BYTES))
    return figures, rows


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small store and fewer repeats, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as training sets it for a small head
    figures: list[Figure] = []
    for number in (10_000,) if options.quick else (10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            found, rows = compare(Path(folder), number, options.quick)
        figures += found
        print_table(f"{number:,} sequences of {NUM_FRAMES} x {WIDTH}, float16", ("", ""), rows)
    settings = {"quick": options.quick, "frames": NUM_FRAMES, "width": WIDTH, "batch_size": BATCH_SIZE}
    return finish("store", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())

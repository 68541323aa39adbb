"""Training through the config, all handlers included, against a bare PyTorch loop that does the same mathematics.

    python -m tests.benchmarks.training [--quick] [--check]

An epoch: 10,000 cached sequences of T = 20 frames, D = 384, in batches of B = 64 with frames left out at random, then
validation on 1,000. The bare loop has all features in one tensor in memory, keeps no file and shows nothing.
"""

import argparse
import copy
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.keys import CLASSES, ENTRY, LABEL, PATIENT, TASK, TYPE
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import load_into
from scripts.store.store import FeatureStore, StoredSequence
from tests.benchmarks.report import ROOT, Figure, finish, print_table, seconds
from tests.benchmarks.store import NUM_FRAMES, WIDTH, key_of

BATCH_SIZE, NUM_CLASSES, FRAME_DROPOUT, SMOOTHING, LONGEST_GRADIENT = 64, 5, 0.1, 0.05, 1.0
LEARNING_RATE, WEIGHT_DECAY = 0.003, 0.01
MORE_TIME = 1.25
SETTINGS = {
    "encoder_name": "vit_small_patch14_dinov2",
    "encoder_weights": "random:0",
    "pooling": "avg",
    "layers": 1,
    "image_size": 224,
}


def write_features(folder: Path, training: int, validation: int) -> tuple[dict[str, str], Tensor, Tensor]:
    """A store and its datalist as overrides, all features (N, T, D) float16, and labels (N,)."""
    encoder = FrameEncoder(SETTINGS["encoder_name"])
    digest = load_into(encoder, SETTINGS["encoder_weights"], folder)
    fingerprint = {"encoder": {"name": SETTINGS["encoder_name"], "digest": digest}}
    store = FeatureStore.create(folder / "features", fingerprint, SETTINGS)
    labels = torch.arange(training + validation) % NUM_CLASSES
    features = torch.randn(len(labels), NUM_FRAMES, WIDTH, generator=torch.Generator().manual_seed(0)).half()
    times, indices = torch.arange(NUM_FRAMES) * 66.7, torch.arange(NUM_FRAMES)
    items = []
    with store.writer() as writer:
        for n, label in enumerate(labels.tolist()):
            writer.add(key_of(n), StoredSequence(features[n], times, indices))
            items.append({ENTRY: key_of(n), LABEL: label, PATIENT: f"P{n}"})
    task = {TYPE: "multiclass", CLASSES: [f"class {n}" for n in range(NUM_CLASSES)]}
    content = {TASK: task, "training": items[:training], "validation": items[training:]}
    (folder / "datalist.json").write_text(json.dumps(content))
    return {"dataset_dir": str(folder), "features_dir": str(folder / "features")}, features, labels


def bare_epoch(head: nn.Module, features: Tensor, labels: Tensor, training: int, epochs: int) -> Callable[[], None]:
    """A call that trains for an epoch and validates, as one would write it by hand."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-training // BATCH_SIZE))
    times = torch.arange(NUM_FRAMES) * 66.7

    def epoch() -> None:
        head.train()
        for chosen in torch.randperm(training).split(BATCH_SIZE):
            keep = torch.rand(len(chosen), NUM_FRAMES) >= FRAME_DROPOUT
            keep[:, 0] |= ~keep.any(dim=1)
            lengths = keep.sum(dim=1)
            order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
            batch = features[chosen[:, None], order].float()
            logits = head(batch, lengths, times[order])
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), LONGEST_GRADIENT)
            optimizer.step()
            schedule.step()
        head.eval()
        with torch.no_grad():
            held_out = features[training:].split(BATCH_SIZE)
            logits = torch.cat([head(x.float(), None, times.expand(len(x), -1)) for x in held_out])
            torch.exp(-F.cross_entropy(logits, labels[training:]))

    return epoch


def timed_epochs(
    folder: Path, places: dict[str, str], threads: int, bare: Callable[[nn.Module], Callable[[], None]], repeats: int
) -> list[tuple[float, float]]:
    """Seconds of the bare loop's epoch and of ours, one pair after the other, without the first."""
    overrides: dict[str, Any] = {"num_threads": threads, "batch_size": BATCH_SIZE, "max_epochs": repeats + 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI 1.6.1: configs run code
        workflow = create_workflow(
            workflow_type="train",
            config_file=str(ROOT / "configs" / "train.yaml"),
            bundle_root=str(ROOT),
            logging_file=False,
            output_dir=str(folder),
            device="cpu",
            **places,
            **overrides,
        )
        workflow.initialize()
    trainer = workflow.trainer
    epoch = bare(copy.deepcopy(trainer.network))
    pairs: list[list[float]] = []

    def start() -> None:  # the bare loop's turn is in the pause between two epochs of ours
        pairs.append([seconds(epoch), time.perf_counter()])

    trainer.add_event_handler(Events.EPOCH_STARTED, start)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: pairs[-1].append(time.perf_counter()))
    workflow.run()
    return [(bare_s, stop - start) for bare_s, start, stop in pairs[1:]]


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sequences and repeats, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    training, validation, repeats = (2_000, 200, 3) if options.quick else (10_000, 1_000, 5)
    logging.disable(logging.WARNING)
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places, features, labels = write_features(folder, training, validation)
        for threads in sorted({1, min(2, os.cpu_count() or 1)}):
            pairs = timed_epochs(
                folder / f"{threads}",
                places,
                threads,
                lambda head: bare_epoch(head, features, labels, training, repeats + 1),
                repeats,
            )
            ratio = statistics.median(ours / bare for bare, ours in pairs)
            bare_s, ours_s = (statistics.median(pair[n] for pair in pairs) for n in range(2))
            steps = -(-training // BATCH_SIZE)
            rows.append((threads, f"{bare_s:.2f}", f"{ours_s:.2f}", f"{1e3 * ours_s / steps:.1f}", f"{ratio:.3f}"))
            figures.append(Figure(f"{threads} threads: epoch over the bare loop's", ratio, at_most=MORE_TIME))
    title = f"An epoch of {training} sequences, T = {NUM_FRAMES}, D = {WIDTH}, B = {BATCH_SIZE}, GRU head"
    print_table(title, ("threads", "bare loop s", "train.yaml s", "ms a step", "time ratio"), rows)
    settings = {"quick": options.quick, "training": training, "validation": validation}
    return finish("training", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""A training step of a full ViT-GRU as a peer trains it, against ours: plain, planned, and on cached features.

    python -m tests.benchmarks.peer [--quick] [--check]

The peer is mednet 2.1.0 (GPL-3, not used here): timm's vit_small_patch14_reg4_dinov2 at 224 pixels with drop path 0.1,
all of it trained, a GRU of 256 over its mean-pooled frames, a linear layer on the last state, AdamW, float32. The
network below was written from those facts; it trains as PyTorch does by itself. Weights and frames are random numbers.
One thread; memory is what lives in the step (scripts.memory.tracking), time is wall-clock, the ways taking turns.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from scripts.memory import checkpointing, steps
from scripts.memory.search import Workload, search, whole_batch
from scripts.memory.tracking import track_training_step
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head
from tests.benchmarks.report import Figure, finish, print_table, seconds

ENCODER, IMAGE_SIZE, NUM_CLASSES = "vit_small_patch14_reg4_dinov2", 224, 2
SHAPES = ((1, 8), (2, 12))  # sequences, frames
BUDGET = 0.5  # of the plain step's peak, which is all that the planner is told


class ViTGRU(nn.Module):
    """The peer's architecture: image (B, T, 3, H, W) -> logits (B, K)."""

    def __init__(self) -> None:
        super().__init__()
        options = {"num_classes": 0, "global_pool": "avg", "img_size": IMAGE_SIZE, "drop_path_rate": 0.1}
        self.backbone = timm.create_model(ENCODER, pretrained=False, **options)
        self.gru = nn.GRU(self.backbone.num_features, 256, batch_first=True)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(256, NUM_CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(image.flatten(0, 1)).unflatten(0, image.shape[:2])  # (B, T, D)
        return self.classifier(self.gru(features)[0][:, -1])


def ours() -> SequenceClassifier:
    """The classifier of finetune.yaml, all of it trained."""
    encoder = FrameEncoder(ENCODER)
    return SequenceClassifier(encoder, make_head("gru", encoder.num_features, NUM_CLASSES), chunk_frames=64)


@dataclass
class Way:
    """One way to take a step: its network, its micro-batch, and how many of those make the step."""

    network: nn.Module
    inputs: tuple[Tensor, ...]
    accumulation: int = 1

    def stepper(self) -> Callable[[], None]:
        """Takes a step whenever it is called."""
        optimizer = steps.make_optimizer(self.network.train(), "adamw", "cpu")
        autocast = steps.autocast_on("cpu", amp=False)
        return lambda: steps.training_step(
            self.network, self.inputs, steps.mean_square, optimizer, autocast, self.accumulation
        )

    def peak_bytes(self) -> int:
        """What lives at most."""
        return track_training_step(self.network, self.inputs, accumulation=self.accumulation).peak_bytes


def measure(batch: int, frames: int, repeats: int) -> list[Figure]:
    """One shape: a table, and its figures."""
    image = torch.randn(batch, frames, 3, IMAGE_SIZE, IMAGE_SIZE)
    workload = Workload(ours, tuple(image.shape[1:]), batch, amp=False, device_type="cpu")
    plain_peak = whole_batch(workload, {"kind": "none"}).peak_bytes
    best, _ = search(workload, int(BUDGET * plain_peak))
    if best is None:
        raise RuntimeError(f"nothing fits {BUDGET:.0%} of the plain step")
    planned = checkpointing.apply(ours(), best.strategy)
    head = make_head("gru", 384, NUM_CLASSES)
    ways = {
        "peer's architecture": Way(ViTGRU(), (image,)),
        "plain": Way(ours(), (image,)),
        "planned": Way(planned, (image[: batch // best.accumulation],), best.accumulation),
        "cached features": Way(head, (torch.randn(batch, frames, 384),)),
    }
    steppers = {name: way.stepper() for name, way in ways.items()}
    for take in steppers.values():
        take()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, take in steppers.items():
            times[name].append(seconds(take))
    extraction = seconds(torch.inference_mode()(lambda: ways["plain"].network.encoder(image.flatten(0, 1))))
    taken = {name: statistics.median(found) for name, found in times.items()}
    peaks = {name: way.peak_bytes() for name, way in ways.items()}
    of_peer = {
        name: [taken[name] / taken["peer's architecture"], peaks[name] / peaks["peer's architecture"]] for name in ways
    }
    rows = [
        (name, f"{taken[name]:.3f}", f"{peaks[name] / 1e6:,.1f}", *(f"{share:.4f}" for share in of_peer[name]))
        for name in ways
    ]
    title = (
        f"(B, T) = ({batch}, {frames}); plan: {best.strategy} x {best.accumulation}, {best.extra_flops:.1%} more FLOPs"
    )
    print_table(title, ("step", "seconds", "peak MB", "time of the peer's", "peak of the peer's"), rows)
    print(f"The features of the cached row took {extraction:.1f} s, once for all epochs.")
    where = f"({batch}, {frames})"
    return [
        Figure(f"{where} plain over peer: time", of_peer["plain"][0]),
        Figure(f"{where} plain over peer: peak", of_peer["plain"][1], at_most=1.05),
        Figure(f"{where} planned over peer: time", of_peer["planned"][0]),
        Figure(f"{where} planned over plain: peak", peaks["planned"] / peaks["plain"], at_most=BUDGET),
        Figure(f"{where} cached over peer: time", of_peer["cached features"][0], at_most=0.01),
        Figure(f"{where} cached over peer: peak", of_peer["cached features"][1], at_most=0.05),
    ]


def main() -> int:
    """Print tables and figures; the exit status is 1 if a bar is missed and --check was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller batch alone, one repeat")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = []
    for batch, frames in SHAPES[: 1 if options.quick else None]:
        figures += measure(batch, frames, 1 if options.quick else 3)
    return finish("peer", figures, {"quick": options.quick, "budget": BUDGET, "threads": 1}, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""Memory: plans against plain training, the simulation against steps that run, by cause and by network.

    python -m tests.benchmarks.memory [--quick] [--check]

Nothing here has data: weights are random, inputs are noise. What is said of a card is simulated unless a card is there.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from scripts.memory import checkpointing
from scripts.memory.measure import simulate_training_step
from scripts.memory.search import Candidate, Workload, search, whole_batch
from scripts.memory.subjects import PRESETS, named_workload
from scripts.memory.tracking import track_training_step
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head
from tests.benchmarks.report import Figure, finish, print_table

VIT = named_workload("vit_small_patch14_reg4_dinov2", (16, 20, 3, 224, 224))
VOLUMES = ("UNet", "VNet", "DynUNet", "AttentionUnet", "SwinUNETR")


@dataclass(frozen=True)
class Case:
    """One training step that is simulated and run."""

    name: str
    make_network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def tiny() -> SequenceClassifier:
    """ViT-Tiny with a GRU head."""
    encoder = FrameEncoder("vit_tiny_patch16_224")
    return SequenceClassifier(encoder, make_head("gru", encoder.num_features, 3), chunk_frames=64)


def cases(quick: bool) -> list[Case]:
    """Encoders x image sizes x strategies, heads, 3D networks."""
    strategies: list[dict[str, Any]] = [
        {"kind": "none"},
        {"kind": "blocks", "every": 1},
        {"kind": "blocks", "every": 2},
        {"kind": "selective"},
        {"kind": "chunks", "frames": 2},
        {"kind": "segments", "number": 4},
    ]
    found = [
        Case(
            f"ViT-Ti {size}, {' '.join(map(str, strategy.values()))}",
            tiny,
            (2, 3, 3, size, size),
            {"strategy": strategy},
        )
        for size in ((96,) if quick else (96, 160, 224))
        for strategy in strategies
    ]
    vit = (2, 3, 3, 96, 96)
    found += [
        Case("ViT-Ti 96, AMP", tiny, vit, {"amp": True}),
        Case("ViT-Ti 96, 2 micro-batches", tiny, vit, {"accumulation": 2}),
    ]
    for head in ("gru", "transformer", "tcn", "attention"):
        found.append(Case(f"head {head}", lambda head=head: make_head(head, 384, 3), (32, 20, 384)))
    makers: dict[str, Callable[[], nn.Module]] = {
        "UNet": lambda: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1),
        "VNet": lambda: nets.VNet(3, 1, 2),
        "DynUNet": lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[8, 16, 32]),
        "AttentionUnet": lambda: nets.AttentionUnet(3, 1, 2, (8, 16, 32), (2, 2)),
        "SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
    }
    for name, make in makers.items():
        shape = (1, 1, *[64 if name == "SwinUNETR" else 32] * 3)
        for kind in ("none", "selective"):
            found.append(Case(f"{name} {shape[-1]}^3, {kind}", make, shape, {"strategy": {"kind": kind}}))
    return found


def agreement(device_type: str, quick: bool) -> list[Figure]:
    """Simulated against tracked steps; on a card also against what its allocator counted."""
    rows, errors, allocated = [], [], []
    for case in cases(quick):
        said = simulate_training_step(
            case.make_network, lambda shape=case.shape: (torch.empty(shape),), device_type=device_type, **case.options
        )
        torch.manual_seed(0)
        options = dict(case.options)
        network = checkpointing.apply(case.make_network(), options.pop("strategy", "none")).to(device_type)
        found = track_training_step(network, (torch.rand(case.shape, device=device_type),), **options)
        errors.append(abs(said.peak_bytes / found.peak_bytes - 1))
        row = [case.name, f"{said.peak_bytes / 1e6:.1f}", f"{found.peak_bytes / 1e6:.1f}", f"{errors[-1]:.3%}"]
        if found.allocated_bytes is not None:
            allocated.append(abs(said.peak_bytes / found.allocated_bytes - 1))
            row += [f"{found.allocated_bytes / 1e6:.1f}", f"{allocated[-1]:.2%}"]
        rows.append(row)
    columns = ["step", "simulated MB", "tracked MB", "apart"] + ["allocator MB", "apart"] * bool(allocated)
    print_table(f"Simulated against run, {device_type}", columns, rows)
    figures = [
        Figure(f"{device_type}: configurations", len(errors), at_least=None if quick else 24),
        Figure(f"{device_type}: apart at most, %", 100 * max(errors), at_most=2),
    ]
    if allocated:
        figures.append(Figure("allocator: median apart, %", 100 * statistics.median(allocated), at_most=5))
        figures.append(Figure("allocator: most apart, %", 100 * max(allocated), at_most=10))
    return figures


def activations_of_an_image() -> list[Figure]:
    """Held for one more image by the encoder, with and without autocast."""
    encoder, figures = FrameEncoder("vit_small_patch14_reg4_dinov2"), []
    for amp, said in ((False, 87.1), (True, 48.9)):
        one, two = (
            simulate_training_step(lambda: encoder, lambda n=n: (torch.empty(n, 3, 224, 224),), amp=amp).held_bytes
            for n in (1, 2)
        )
        name = f"ViT-S/14 reg4 at 224: activations of an image, MB, {'AMP' if amp else 'fp32'}"
        figures.append(Figure(name, (two - one) / 1e6, said - 0.05, said + 0.05))
    return figures


def found_by_budget(
    title: str, workload: Workload, plain: Candidate, asks: list[tuple[float, float]], held: bool = False
) -> list[Figure]:
    """What the search finds when it is told nothing but the bytes: plain peak / least saving wanted.

    Args:
        title: of the workload.
        workload: what is planned.
        plain: it, trained plainly in one piece.
        asks: how many times less, at how many extra FLOPs at most.
        held: it is the activations at the peak that are to be so many times less; the rest of the peak stays.
    """
    reducible = plain.measurement.by_cause["activations"] if held and plain.measurement else plain.peak_bytes
    rows, figures = [], []
    for saving, extra in asks:
        start = time.process_time()
        best, candidates = search(workload, int(plain.peak_bytes - reducible * (1 - 1 / saving)))
        took = time.process_time() - start
        name = f"{title}, >= {saving:g}x less"
        figures.append(
            Figure(f"{name}: extra FLOPs, %", 100 * best.extra_flops if best else math.inf, at_most=100 * extra)
        )
        least = best or min(candidates, key=lambda found: found.peak_bytes)
        how = f"{'' if best else 'does not fit: '}{least.strategy} x {least.accumulation}"
        peak = f"{least.peak_bytes / 1e9:.3f}"
        rows.append(
            [f"{saving:g}x", peak, f"{100 * least.extra_flops:.1f} %", str(len(candidates)), f"{took:.1f}", how[:70]]
        )
    columns = ("less", "peak GB", "extra FLOPs", "candidates", "CPU s", "plan")
    print_table(f"{title}: plain {plain.peak_bytes / 1e9:.2f} GB, {plain.extra_flops:.0%}", columns, rows)
    return figures


def main() -> int:
    """Print tables and figures; the exit status is 1 if a bar is missed and --check was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer configurations, the ViT's plans alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    arguments = parser.parse_args()
    figures = activations_of_an_image()
    plain = whole_batch(VIT, {"kind": "none"})
    figures.append(Figure("ViT-S + GRU, B=16 T=20 224 AMP: plain peak, GB", plain.peak_bytes / 1e9, 16.2, 16.6))
    figures += found_by_budget("B=16 T=20 AMP", VIT, plain, [(12, 0.02), (17, 0.35)])
    whole = replace(VIT, splittable=False)
    asks = [(1.5, 0.005), (2.1, 0.10), (9, 0.35)]
    asks = asks[:1] if arguments.quick else asks
    figures += found_by_budget("the same, not split: activations", whole, plain, asks, held=True)
    if not arguments.quick:
        for name in VOLUMES:
            volume = replace(named_workload(f"monai.networks.nets.{name}", (1, 1, 96, 96, 96)), amp=False)
            asked = (1.9, 0.05) if name == "DynUNet" else (1 / 0.6, 0.30)
            options = PRESETS.get(name, {})
            title = f"{name} 96^3 ({', '.join(options) or 'as it is'})"
            figures += found_by_budget(title, volume, whole_batch(volume, {"kind": "none"}), [asked])
    figures += agreement("cpu", arguments.quick)
    if torch.cuda.is_available():
        figures += agreement("cuda", arguments.quick)
    else:
        print("\nNo card here: max_memory_allocated was not compared; run this where there is one.")
    return finish("memory", figures, {"quick": arguments.quick, "torch": torch.__version__}, arguments.check)


if __name__ == "__main__":
    sys.exit(main())

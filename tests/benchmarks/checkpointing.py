"""What recomputation costs in time: a training step with each strategy against the plain one, in pairs, on the CPU.

    python -m tests.benchmarks.checkpointing [--quick] [--check]

Frames and volumes are random numbers. The extra FLOPs are those of scripts.memory.measure; time has no bar, since what
a strategy costs beside FLOPs (norms and activations once more, bookkeeping) depends on the machine.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from monai.networks import nets
from torch import nn

from scripts.memory.checkpointing import apply
from scripts.memory.measure import simulate_training_step
from scripts.networks.encoder import FrameEncoder
from tests.benchmarks.report import Figure, finish, print_table, timed_pairs

STRATEGIES = (
    {"kind": "selective"},
    {"kind": "selective", "flops_per_value": 1000},
    {"kind": "blocks"},
)


def subjects(quick: bool) -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """Name -> what makes the network, and the shape of its input."""
    return {
        "ViT-S, 4 frames of 224 px": (lambda: FrameEncoder("vit_small_patch14_reg4_dinov2"), (4, 3, 224, 224)),
        "DynUNet": (
            lambda: nets.DynUNet(3, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[16, 32, 64, 128]),
            (1, 1, *[32 if quick else 64] * 3),
        ),
    }


def step(network: nn.Module, image: torch.Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        network.zero_grad()
        (network(image) ** 2).mean().backward()

    return run


def main() -> int:
    """Time, print, and exit 1 with --check if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and a smaller volume")
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    rows, figures = [], []
    for name, (make, shape) in subjects(options.quick).items():
        torch.manual_seed(0)
        network, image = make(), torch.randn(shape)
        plain = simulate_training_step(make, lambda shape=shape: (torch.empty(shape),), device_type="cpu")
        for strategy in STRATEGIES:
            measured = simulate_training_step(
                make, lambda shape=shape: (torch.empty(shape),), strategy=strategy, device_type="cpu"
            )
            checkpointed = apply(copy.deepcopy(network), strategy)
            pair = timed_pairs(step(network, image), step(checkpointed, image), 2 if options.quick else 7)
            label = ", ".join(f"{key} {value}" for key, value in strategy.items() if key != "kind")
            label = f"{name}: {strategy['kind']}" + (f" ({label})" if label else "")
            extra, saved = 100 * (measured.flops / plain.flops - 1), plain.held_bytes / measured.held_bytes
            times = f"{pair.first_s:.2f}", f"{pair.second_s:.2f}", f"{100 * (pair.ratio - 1):+.0f} %"
            rows.append((label, *times, f"{extra:+.1f} %", f"{saved:.1f}x"))
            figures.append(Figure(f"{label}, time of the plain step", pair.ratio))
    title = (
        f"One forward and backward pass, float32, {torch.get_num_threads()} threads; FLOPs and activations simulated"
    )
    print_table(title, ("", "plain, s", "with it, s", "extra time", "extra FLOPs", "fewer activations"), rows)
    return finish("checkpointing", figures, {"quick": options.quick}, options.check)


if __name__ == "__main__":
    sys.exit(main())

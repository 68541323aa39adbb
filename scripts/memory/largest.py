"""A workload, bytes that are free -> the largest batch, number of frames, image or volume whose step fits."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from scripts.errors import bad_value
from scripts.memory.measure import Simulation, training_steps
from scripts.memory.search import Workload

STEPS = {"batch": 1, "frames": 1, "image": 32, "volume": 32}  # what can be made larger, and in which steps
SIDES = {"batch": 0, "frames": 0, "image": 2, "volume": 3}  # last numbers of a shape that grow alike
DIMENSIONS = {"frames": (4, 5), "image": (3, 4), "volume": (4,)}  # of a sample that has such a size
LARGEST = 2**16  # of any of them that is tried
SIMULATED = 128  # frames: a head goes through them one by one, and 500 take a quarter of a minute
BOLD = 64  # times the largest known to fit, the most that is tried next: the foretold may be wild
PATIENCE = 6  # sizes tried before the interval is halved instead


class Sizes:
    """Peaks of a workload that grows, each simulated once, however many strategies and budgets ask.

    Args:
        workload: the input to start from; the rest of its shape stays.
        what: one of STEPS.
        simulate: of its network (scripts.memory.measure).
        step: by which it grows.
    """

    def __init__(self, workload: Workload, what: str, simulate: Simulation, step: int) -> None:
        self.workload, self.what, self.simulate, self.step = workload, what, simulate, step
        self.peaks: dict[str, dict[int, int]] = {}

    def shape(self, size: int) -> tuple[int, ...]:
        """Of a batch when what grows has that size."""
        sample = self.workload.shape
        if self.what == "batch":
            return (size, *sample)
        sides = SIDES[self.what]
        return (self.workload.batch_size, *((*sample[:-sides], *[size] * sides) if sides else (size, *sample[1:])))

    def peak(self, strategy: dict[str, Any], size: int) -> int:
        """Bytes of the step at that size, simulated.

        Of more than SIMULATED frames the line through that many and half as many is read: at 512 frames within 0.006 %
        of what is simulated, for a ViT-Tiny and a ViT-S of 224 and 392 pixels.
        """
        known = self.peaks.setdefault(str(strategy), {})
        if size not in known and self.what == "frames" and size > SIMULATED:
            half, whole = self.peak(strategy, SIMULATED // 2), self.peak(strategy, SIMULATED)
            known[size] = half + (whole - half) * (size - SIMULATED // 2) // (SIMULATED // 2)
        elif size not in known:
            known[size] = self.simulate(lambda: (torch.empty(self.shape(size)),), strategy).peak_bytes
        return known[size]

    def largest(self, strategy: dict[str, Any], free_bytes: int) -> int:
        """The largest size that fits, at most LARGEST, 0 if none does; one step more does not fit.

        The next size to try is read off the line through the two nearest known ones: bytes grow with the frames, with
        the area of an image, with the volume.
        """
        step, power = self.step, max(SIDES[self.what], 1)
        known = self.peaks.setdefault(str(strategy), {})
        sizes = {"batch": self.workload.batch_size, "frames": self.workload.shape[0]}
        start = max(sizes.get(self.what, self.workload.shape[-1]) // step, 1)
        for at in () if len(known) > 1 else (start, 2 * start):
            self.peak(strategy, at * step)
        for tried in itertools.count():
            low = max((size // step for size, peak in known.items() if peak <= free_bytes), default=0)
            above = [size // step for size, peak in known.items() if peak > free_bytes and size // step > low]
            high = min(above, default=LARGEST // step + 1)
            if high - low <= 1:
                break
            one, two = sorted(known, key=lambda size: abs(known[size] - free_bytes))[:2]
            rise = (known[two] - known[one]) / (two**power - one**power)
            foretold = low + high
            if above and (rise <= 0 or tried > PATIENCE):
                foretold = (low + high) // 2
            elif rise > 0:
                room = one**power + (free_bytes - known[one]) / rise
                foretold = int(max(room, 0) ** (1 / power) / step)
            highest = high - 1 if above else min(high - 1, max(BOLD * low, 1))
            self.peak(strategy, min(max(foretold, low + 1), highest) * step)
        return low * step


@contextmanager
def sizes_of(workload: Workload, what: str) -> Iterator[Sizes]:
    """The workload, to be made larger; its network is made once.

    Raises:
        ValueError: something else to enlarge, or a sample that has no such size.
    """
    if what not in STEPS:
        raise ValueError(bad_value("plan", "largest", what, f"one of {', '.join(STEPS)}"))
    sizes = [name for name in STEPS if len(workload.shape) in DIMENSIONS.get(name, (len(workload.shape),))]
    if what not in sizes:
        way_out = f"A sample of shape {', '.join(map(str, workload.shape))} has no such size."
        raise ValueError(bad_value("plan", "largest", what, f"one of {', '.join(sizes)}", way_out))
    options: dict[str, Any] = {"loss": workload.loss, "optimizer": workload.optimizer, "amp": workload.amp}
    step = _patch(workload.make_network()) if what == "image" else STEPS[what]
    with training_steps(workload.make_network, device_type=workload.device_type, **options) as simulate:
        yield Sizes(workload, what, simulate, step)


def _patch(network: nn.Module) -> int:
    """Pixels by which an image grows: a ViT takes whole patches, other networks halve it five times."""
    backbone = getattr(getattr(network, "encoder", None), "backbone", None)
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", STEPS["image"])
    return int(patch[0] if isinstance(patch, (tuple, list)) else patch)

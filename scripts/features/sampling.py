"""Lengths of sequences -> batches of positions, alike in length, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from scripts.errors import bad_value

# Batches that are sorted by length together. More leave less padding; fewer give a sequence other company each epoch.
MAX_WINDOW = 32
MIN_WINDOWS = 4


class LengthBatches(Sampler[list[int]]):
    """Batches of positions for a DataLoader's `batch_sampler`: random, but for sequences of similar length together.

    In an epoch every sequence stands in one batch of one process. All are shuffled, cut into windows, sorted by length
    within each and cut into batches, which come in random order; equal lengths make plain random batches. Batches
    differ in size by one at most, so that none is a small rest: 33 sequences by 32 are batches of 16 and 17.

    Each iteration is another epoch; `set_epoch` chooses one. The global random state is left alone.

    Args:
        lengths: frames of each sequence, (N,).
        batch_size: sequences a batch, at most; one more if batches of one do not divide among the processes.
        rank: of this process, which gets as many batches as any other and, step by step, as long ones.
        world_size: number of processes.
        seed: the same in all processes.
        groups: (N,), such as the class of each; an epoch then has as many sequences as without, but draws each group
            as often as any other: those of a small one several times, of a large one some alone.
        together: batches whose gradients make one step; an epoch has whole steps, so that none is of less than others.

    Raises:
        ValueError: fewer sequences than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        groups: Sequence[int] | np.ndarray | None = None,
        together: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.members = [np.arange(len(self.lengths))]  # of each group
        if groups is not None:
            by_group = np.argsort(groups, kind="stable")
            self.members = np.split(by_group, np.flatnonzero(np.diff(np.asarray(groups)[by_group])) + 1)
        if len(self.lengths) < world_size:
            found, allowed = f"{len(self.lengths)} sequences", f"at least one for each of {world_size} processes"
            raise ValueError(bad_value("configuration", "training", found, allowed))
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch = seed, 0
        steps = together * -(-len(self.lengths) // (together * batch_size * world_size))
        self.steps = min(steps, len(self.lengths) // world_size)  # no batch is empty

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of `epoch`, and those after it follow."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order = self._drawn(random)
        edges = np.arange(self.steps * self.world_size + 1) * len(order) // (self.steps * self.world_size)
        window = min(MAX_WINDOW, -(-self.steps // MIN_WINDOWS)) * self.world_size
        for first in range(0, len(edges) - 1, window):
            part = order[edges[first] : edges[min(first + window, len(edges) - 1)]]
            part[:] = part[np.argsort(self.lengths[part], kind="stable")]
        for step in random.permutation(self.steps):  # its batches are neighbours in length
            batch = step * self.world_size + (self.rank + random.integers(self.world_size)) % self.world_size
            yield order[edges[batch] : edges[batch + 1]].tolist()

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """Positions of an epoch, (N,), in random order; none a second time before all of its group were drawn once."""
        number, num_groups = len(self.lengths), len(self.members)
        shares = number // num_groups + (random.permutation(num_groups) < number % num_groups)
        drawn = []
        for members, share in zip(self.members, shares.tolist(), strict=True):
            passes = [random.permutation(members) for _ in range(-(-share // len(members)))]
            drawn.append(np.concatenate(passes)[:share] if passes else members[:0])
        return random.permutation(np.concatenate(drawn)) if num_groups > 1 else drawn[0]

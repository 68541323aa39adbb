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
    within each and cut into steps, which come in random order, and each step into batches; equal lengths make plain
    random batches. Steps differ in size by one at most, so that none is a small rest: 33 sequences by 32 are 16 and 17.
    Which sequences make a step follows from how many there are in one, not from how many batches and processes they are
    shared among, so that a step has the same gradients whichever way it is fitted into memory.

    Each iteration is another epoch; `set_epoch` chooses one. The global random state is left alone.

    Args:
        lengths: frames of each sequence, (N,).
        batch_size: sequences a batch, at most; one more if batches of one do not divide among the processes.
        rank: of this process, which gets as many batches as any other and, step by step, as long ones.
        world_size: number of processes.
        seed: the same in all processes.
        groups: (N,), such as the class of each; an epoch then has as many sequences as without, but draws each group
            as often as any other: those of a small one several times, of a large one some alone.
        together: batches of one process whose gradients make one step. With batches of one sequence the last step of
            an epoch may have fewer.

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
        number, batches = len(self.lengths), together * world_size
        steps = -(-number // (batch_size * batches))
        self.edges = np.arange(steps + 1) * number // steps  # of the steps of an epoch
        if steps > 1 and number // steps < batches:  # batches of one sequence: none may be empty
            self.edges = np.append(np.arange(0, number - world_size + 1, batches), number)
        self.batches = np.minimum(np.diff(self.edges) // world_size, together)  # of this process in each step

    def __len__(self) -> int:
        return int(self.batches.sum())

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of `epoch`, and those after it follow."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        order, num_steps = self._drawn(random), len(self.batches)
        window = min(MAX_WINDOW, -(-num_steps // MIN_WINDOWS))
        for first in range(0, num_steps, window):
            part = order[self.edges[first] : self.edges[min(first + window, num_steps)]]
            part[:] = part[np.argsort(self.lengths[part], kind="stable")]
        steps = random.permutation(num_steps)
        for step in sorted(steps, key=lambda step: self.batches[step], reverse=True):  # one with fewer batches is last
            drawn, count = order[self.edges[step] : self.edges[step + 1]], self.batches[step] * self.world_size
            cuts = np.arange(count + 1) * len(drawn) // count
            for first in range(0, count, self.world_size):  # neighbours in length, one for each process
                batch = first + (self.rank + random.integers(self.world_size)) % self.world_size
                yield drawn[cuts[batch] : cuts[batch + 1]].tolist()

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        """Positions of an epoch, (N,), in random order; none a second time before all of its group were drawn once."""
        number, num_groups = len(self.lengths), len(self.members)
        shares = number // num_groups + (random.permutation(num_groups) < number % num_groups)
        drawn = []
        for members, share in zip(self.members, shares.tolist(), strict=True):
            passes = [random.permutation(members) for _ in range(-(-share // len(members)))]
            drawn.append(np.concatenate(passes)[:share] if passes else members[:0])
        return random.permutation(np.concatenate(drawn)) if num_groups > 1 else drawn[0]

"""Head, one batch -> the number of CPU threads that trains it fastest, set for the run.

The steps of a small recurrent head are so short that handing them to a second thread takes longer than it saves; a wide
one gains. Which it is depends on the machine, so it is measured.
"""

import copy
import logging
import statistics
import time

import numpy as np
import torch
from torch import nn

from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset, collate_sequences
from scripts.keys import FEATURES, FRAME_TIMES
from scripts.training.engine import prepare_batch

logger = logging.getLogger("angiography")

AUTO = "auto"
MANY = 1024  # more can break the process down
MOST_THREADS = 8
MEASURED_S = 0.8  # all measurements together; each has two batches at least
MOST_BATCHES = 16  # of each number of threads
WORTH = 1.1  # more threads must be this much faster: they cost others their cores, and change the order of sums


def set_threads(
    num_threads: str | int, head: nn.Module, dataset: FeatureDataset, batch_size: int, device: torch.device | str
) -> None:
    """Set the number of threads that PyTorch computes with on the CPU; head and random states stay as they are.

    Args:
        num_threads: a number, or `auto`: the fastest of 1, 2, 4, ... up to as many as PyTorch has, which keeps to
            OMP_NUM_THREADS; on a GPU as many as there are.
        head: (B, T, D) -> (B, K), measured in a copy.
        dataset: sequences of middle length are the batch.
        batch_size: B.
        device: where the head trains.

    Raises:
        ValueError: neither `auto` nor a number of threads.
    """
    if num_threads != AUTO:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int) or not 1 <= num_threads <= MANY:
            allowed = f"{AUTO} or a whole number of at least 1 and at most {MANY}"
            raise ValueError(bad_value("configuration", "num_threads", num_threads, allowed))
        torch.set_num_threads(num_threads)
    elif torch.device(device).type == "cpu":
        most = min(torch.get_num_threads(), MOST_THREADS)
        tried = [n for n in (2**i for i in range(most.bit_length())) if n < most] + [most]
        taken_ms = _measure(tried, head, dataset, batch_size) if most > 1 else {1: 0.0}
        chosen = fastest(taken_ms)
        torch.set_num_threads(chosen)
        if most > 1:
            others = ", ".join(f"{n} take{'s' * (n == 1)} {ms:.1f}" for n, ms in taken_ms.items() if n != chosen)
            logger.info(f"training on {chosen} of {most} threads: {taken_ms[chosen]:.1f} ms a batch, {others}")


def fastest(taken_ms: dict[int, float]) -> int:
    """The number of threads to use, of those measured: the fewest that no larger number beats by much."""
    chosen = min(taken_ms)
    for threads in sorted(taken_ms):
        if taken_ms[threads] * WORTH < taken_ms[chosen]:
            chosen = threads
    return chosen


def _measure(tried: list[int], head: nn.Module, dataset: FeatureDataset, batch_size: int) -> dict[int, float]:
    """Median milliseconds that a batch takes, forward and backward, for each number of threads."""
    by_length = np.argsort(dataset.lengths, kind="stable")
    first = max(0, (len(by_length) - batch_size) // 2)
    stored = [dataset.plain(n) for n in by_length[first : first + batch_size]]
    batch = collate_sequences([{FEATURES: s.features, FRAME_TIMES: s.frame_times_ms} for s in stored])
    features, _, _, others = prepare_batch(batch, torch.device("cpu"))
    head = copy.deepcopy(head).train()  # its gradients and buffers are not the run's
    taken_ms = {}
    with torch.random.fork_rng(devices=[]):  # dropout draws
        for threads in tried:
            torch.set_num_threads(threads)
            taken: list[float] = []
            while len(taken) < 2 or (sum(taken) < MEASURED_S / len(tried) and len(taken) < MOST_BATCHES):
                start = time.perf_counter()
                head(features, **others).sum().backward()
                taken.append(time.perf_counter() - start)
            taken_ms[threads] = 1000 * statistics.median(taken[1:])  # the first batch wakes the threads
    return taken_ms

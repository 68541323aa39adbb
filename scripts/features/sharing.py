"""Exams -> those that this process encodes, when several share a list."""

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scripts.errors import bad_value
from scripts.keys import ENTRY, IMAGE
from scripts.sequences.reader import source_files

_COUNTER = "exams claimed"


def share(items: Sequence[dict[str, Any]], rank: int, world_size: int) -> Iterator[int]:
    """Positions of the exams of this process, one at a time as it gets to them.

    Under torchrun the processes take the next exam from one counter, the largest first, so that a slow device or a list
    of uneven exams leaves none of them waiting at the end. Without a process group, as in a job array, each takes every
    `world_size`-th one.

    Args:
        items: the same list in every process.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: a rank that the number of processes does not have.
    """
    if not 0 <= rank < world_size:
        allowed = f"0 to {world_size - 1}, for a world_size of {world_size}"
        raise ValueError(bad_value("configuration", "rank", rank, allowed))
    if world_size == 1 or not dist.is_initialized():
        yield from range(rank, len(items), world_size)
        return
    order = _largest_first(items, rank, world_size)
    # a second connection to the store at which torchrun's processes met
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(minutes=5))
    if rank == 0:
        store.set(_COUNTER, "0")
    dist.barrier()
    while (claimed := store.add(_COUNTER, 1) - 1) < len(order):
        yield order[claimed]


def _largest_first(items: Sequence[dict[str, Any]], rank: int, world_size: int) -> list[int]:
    """Positions by size of the source, sized by all processes together; an unreadable exam has size 0."""
    mine = [_source_bytes(item) for item in items[rank::world_size]]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, mine)
    sizes = [gathered[i % world_size][i // world_size] for i in range(len(items))]
    return sorted(range(len(items)), key=lambda i: -sizes[i])


def _source_bytes(item: dict[str, Any]) -> int:
    if ENTRY in item:
        return 0
    try:
        source = Path(item[IMAGE]) if isinstance(item[IMAGE], str) else item[IMAGE]
        return sum(path.stat().st_size for path in source_files(source))
    except (OSError, ValueError):
        return 0

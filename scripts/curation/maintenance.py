"""Store -> the same without what is damaged, doubled, left behind or no longer needed."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts.curation.inspection import (
    Inspected,
    among,
    inspect_shard,
    inspect_stores,
    leftovers,
    raw_keys,
)
from scripts.curation.lookup import all_keys, listed_items, with_passes
from scripts.curation.overview import readable_bytes
from scripts.errors import bad_value
from scripts.pages import counted
from scripts.store.files import remove_leftovers
from scripts.store.origin import FINGERPRINT_FILE, read_origin
from scripts.store.shards import CACHE_COMMAND, SHARD_PATTERN, publish


class Plan(NamedTuple):
    """What is to become of a shard."""

    shard: Inspected  # without its arrays
    keep: np.ndarray  # (n,) bool
    doubled: int  # good entries that an earlier shard has
    unlisted: int  # good entries that no exam of the lists needs


def prune_store(
    path: str | Path,
    datalists: str | Sequence[str] | None = None,
    dataset_dir: str | Path | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> tuple[str, bool]:
    """Drop what is damaged or doubled in a store, what killed runs left, and what no exam of the lists needs.

    Only shards concerned are written again, each under a new name before the old one goes, so that whenever this is
    killed every sequence is still there. A shard of another store, or one that the system does not let be read, is
    told of and left alone.

    Args:
        path: of the store.
        datalists: paths, several separated by commas; None keeps every sequence.
        dataset_dir: what the lists' paths are relative to; each list's own folder if not given.
        dry_run: only say what would go.
        progress: show progress bars.

    Returns:
        What went, in words, and whether the store can be opened then.

    Raises:
        FileNotFoundError, ValueError: there is no store, its fingerprint.json is damaged, an exam of the lists cannot
            be read, or the store has none of them.
    """
    folder = Path(path)
    digest = read_origin(folder).digest()
    exams = None if datalists is None else all_keys(listed_items(datalists, dataset_dir), progress)
    with only_one(folder):
        plans = list(_plans(folder, digest, exams, progress))
        killed = leftovers(folder)
        if not dry_run:
            for pattern in (SHARD_PATTERN.format("*"), f"{FINGERPRINT_FILE}.*"):
                remove_leftovers(folder, pattern)
        freed = sum(killed)
        for plan in sorted(plans, key=lambda plan: bool(plan.keep.any())):  # the disk may be full: first what only goes
            freed += _carry_out(plan, digest, dry_run)
    whole = not any(plan.shard.spared for plan in plans)
    return "\n".join(_report(plans, len(killed), freed, dry_run)), whole


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep a second command that moves entries out of this folder; two at once could each drop the other's copy.

    Raises:
        ValueError: one is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = "at work here"
            raise ValueError(bad_value(folder, "another prune or merge", found, "to wait until it has ended")) from None
        except OSError:  # some network file systems lock no folders
            pass
        yield
    finally:
        os.close(descriptor)


def _plans(folder: Path, digest: str, exams: Sequence[str] | None, progress: bool) -> Iterator[Plan]:
    """For each shard what is kept of it, all bytes of the store read."""
    shards = [shard._replace(mapped=None) for shard in inspect_stores([(folder, digest)], progress=progress)]
    keys = np.concatenate([shard.keys for shard in shards]) if shards else raw_keys([])
    good = np.concatenate([shard.good for shard in shards]) if shards else np.empty(0, bool)
    needed = good if exams is None else good & among(keys, _needed(folder, keys[good], exams))
    kept = np.zeros(len(keys), bool)
    rows = np.flatnonzero(needed)
    kept[rows[np.unique(keys[rows], return_index=True)[1]]] = True  # of equal ones the first
    ends = np.cumsum([len(shard.keys) for shard in shards])
    for shard, end in zip(shards, ends, strict=True):
        own = slice(end - len(shard.keys), end)
        yield Plan(shard, kept[own], int((needed & ~kept)[own].sum()), int((good & ~needed)[own].sum()))


def _needed(folder: Path, keys: np.ndarray, exams: Sequence[str]) -> np.ndarray:
    """The keys of exams and of their augmented passes that are among those stored, sorted."""
    stored = np.sort(keys)
    found = [key for passes in with_passes(exams, lambda some: among(raw_keys(some), stored)) for key in passes]
    if not found:
        way_out = "Nothing was dropped. Are these the lists the store was made from?"
        raise ValueError(
            bad_value(folder, "content", f"none of the {len(exams)} exams of the lists", "at least one", way_out)
        )
    return np.sort(raw_keys(found))


def _carry_out(plan: Plan, digest: str, dry_run: bool) -> int:
    """Do with a shard what is planned; returns the bytes that this frees, on a dry run by estimate.

    Raises:
        ValueError: the shard was changed since it was planned.
    """
    (folder, shard), path, keep = plan.shard[:2], plan.shard.path, plan.keep
    if plan.shard.spared or (plan.shard.error is None and keep.all()):
        return 0
    if dry_run:
        return int(shard.n_bytes * (1 - keep.mean())) if len(keep) else shard.n_bytes
    left = 0
    if keep.any():
        again = inspect_shard(folder, digest, shard, lambda keys: keep)
        if not again.good.any():
            raise ValueError(bad_value(path, "content", "changed meanwhile", "a shard that nobody writes to"))
        left = publish(folder, shard.order[0], shard.order[1] + 1, dict(again.entries(again.good)), digest).n_bytes
    with suppress(FileNotFoundError):
        path.unlink()
    return shard.n_bytes - left


def _report(plans: Sequence[Plan], num_killed: int, freed: int, dry_run: bool) -> list[str]:
    """What was wrong, what went, what is left."""
    lines = [plan.shard.told for plan in plans if plan.shard.told]
    lost = sum(plan.shard.error is not None and not plan.shard.spared and not len(plan.keep) for plan in plans)
    damaged = sum(plan.shard.damaged for plan in plans)
    doubled, unlisted = sum(plan.doubled for plan in plans), sum(plan.unlisted for plan in plans)
    left = sum(int(plan.keep.sum()) for plan in plans)
    went = [
        (damaged, f"{counted(damaged, 'damaged sequence')}"),
        (doubled, f"{counted(doubled, 'duplicate')}"),
        (unlisted, f"{counted(unlisted, 'sequence')} of no exam in the lists"),
        (lost, f"{counted(lost, 'shard')} that cannot be opened"),
        (num_killed, f"{counted(num_killed, 'file')} of killed runs"),
    ]
    said = ", ".join(text for count, text in went if count)
    lines.append(f"{'would drop' if dry_run else 'dropped'}: {said or 'nothing'}")
    lines.append(f"{'would free' if dry_run else 'freed'} {readable_bytes(freed)}; {counted(left, 'sequence')} left")
    if damaged or lost:
        lines.append(f"Compute what was damaged again with: {CACHE_COMMAND}")
    return lines

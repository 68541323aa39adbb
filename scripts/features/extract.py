"""Exams -> feature store: the frozen encoder runs once a frame, and only for what the store does not hold."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from torch import nn
from tqdm import tqdm

from scripts.errors import RunFailedError, bad_value
from scripts.features.engines import AUTO, Engine
from scripts.features.exams import Exam, ExamReader, encode, read_ahead
from scripts.features.sharing import share
from scripts.keys import ERROR, SOURCE
from scripts.record import RunRecord
from scripts.sequences.dataset import refuse_failures
from scripts.store.store import FeatureStore

logger = logging.getLogger("angiography")

MAX_READERS = 16  # they share one interpreter: more wait for each other
MAX_PASSES = 64  # those of an exam are in memory together, 10 MB each of 16 frames of 224 pixels


def cache_features(
    items: Sequence[dict[str, Any]],
    preprocessing: Compose,
    encoder: nn.Module,
    features_dir: str | Path,
    fingerprint: dict[str, Any],
    device: torch.device | str,
    settings: dict[str, Any] | None = None,
    made_with: dict[str, Any] | None = None,
    batch_frames: str | int = AUTO,
    num_readers: str | int = AUTO,
    augmentation: Compose | None = None,
    augmented_passes: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
    record: RunRecord | None = None,
) -> None:
    """Fill the store with the features of every item; several processes share the list.

    Entries that are there already are kept, once their bytes have been found whole, so a run that was stopped goes on
    where it was. A bad exam is reported at the end and does not stop the others.

    Args:
        items: datalist items.
        preprocessing: from an item to image (T, 3, H, W).
        encoder: (N, 3, H, W) -> (N, D) or (N, P, D), on `device`.
        features_dir: the store, made if absent.
        fingerprint: of `make_fingerprint`; names the engine, its precision and the seed of the augmentation.
        device: where the encoder runs.
        settings: the workflow's knobs, kept with the features.
        made_with: versions, kept with the features.
        batch_frames: frames a forward pass; `auto` tries a few sizes.
        num_readers: threads that read ahead; `auto` for one to four cores of a CPU that also encodes, one a core
            for a GPU.
        augmentation: random transforms for the augmented passes.
        augmented_passes: stored beside the plain features of each exam, at most 64.
        rank: of this process.
        world_size: number of processes.
        progress: show a progress bar.
        record: of this run; rank 0 leaves it beside the features.

    Raises:
        ValueError: a number out of its range; the folder holds a store of another fingerprint, or a damaged one.
        RunFailedError: the run is complete but some exams could not be used.
    """
    if not 0 <= augmented_passes <= MAX_PASSES:
        raise ValueError(bad_value("configuration", "augmented_passes", augmented_passes, f"0 to {MAX_PASSES}"))
    store = FeatureStore.create(Path(features_dir), fingerprint, settings, made_with)
    engine = Engine(encoder, fingerprint["engine"], fingerprint["precision"], device)
    seed = (fingerprint["augmentation"] or {}).get("seed", 0)
    reader = ExamReader(items, preprocessing, store, augmentation, augmented_passes, seed)
    exams = read_ahead(reader, share(items, rank, world_size), _count_readers(num_readers, engine.device))
    tally = _Tally()
    with (
        store.writer(rank=rank) as writer,
        tqdm(
            total=-(-len(items) // world_size), desc="caching", unit="exam", mininterval=1, disable=not progress
        ) as bar,
    ):
        for exam, entries in encode(exams, engine, batch_frames):
            for key, sequence in entries:
                writer.add(key, sequence)
            tally.count(exam, [len(sequence.features) for _, sequence in entries])
            bar.set_postfix_str(f"{tally.frames / tally.seconds:.1f} frames/s", refresh=False)
            bar.update()
    tally.report()
    failures, seconds = tally.failures(), [tally.seconds]
    if world_size > 1 and torch.distributed.is_initialized():
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, (failures, seconds[0]))
        failures = [failure for part, _ in gathered for failure in part]
        seconds = [taken for _, taken in gathered]
    if rank == 0 and len(seconds) > 1:
        logger.info(f"{world_size} processes took {min(seconds):.1f} to {max(seconds):.1f} s")
    if rank == 0 and record is not None:
        counts = {"exams": len(items), "failed": len(failures), "frames_computed_by_this_process": tally.frames}
        record.write([features_dir], {"store_digest": store.digest, "settings": settings, **counts})
    if rank == 0 or len(seconds) < world_size:
        refuse_failures(failures, len(items), "cache_features")
    elif failures:
        raise RunFailedError(f"cache_features: {len(failures)} exams could not be used; rank 0 lists them")


def _count_readers(wanted: str | int, device: torch.device) -> int:
    """How many threads read: of a CPU that also encodes a quarter of the cores, of one that feeds a GPU all."""
    if wanted == AUTO:
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return min(max(cores // 4, 1) if device.type == "cpu" else max(cores, 2), MAX_READERS)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= MAX_READERS:
        raise ValueError(bad_value("configuration", "num_readers", wanted, f"{AUTO} or 1 to {MAX_READERS}"))
    return wanted


@dataclass
class _Tally:
    """What became of the exams of this process."""

    new: int = 0
    found: int = 0  # were in the store
    frames: int = 0  # computed
    odd: int = 0  # usable, with a warning
    stills: int = 0  # runs of which one frame was chosen
    failed: list[Exam] = field(default_factory=list)
    again: list[Exam] = field(default_factory=list)  # share their content with another exam of this run
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    def count(self, exam: Exam, lengths: Sequence[int]) -> None:
        """Take in an exam and the frames of each entry that came of it."""
        if exam.error:
            self.failed.append(exam)
        elif exam.again:
            self.again.append(exam)
        elif not lengths:
            self.found += 1
        else:
            self.new += 1
            self.frames += sum(lengths)
            self.odd += exam.num_warnings > 0
            self.stills += lengths[0] == 1 < exam.num_frames

    def failures(self) -> list[dict[str, str]]:
        """Source and reason of each exam that could not be used; one fails with the exam whose content it has."""
        failed = {exam.key: exam for exam in self.failed}
        copies = [(copy, failed[copy.key]) for copy in self.again if copy.key in failed]
        return [{SOURCE: exam.item[SOURCE], ERROR: str(exam.error)} for exam in self.failed] + [
            {SOURCE: copy.item[SOURCE], ERROR: str(exam.error).replace(exam.item[SOURCE], copy.item[SOURCE])}
            for copy, exam in copies
        ]

    def report(self) -> None:
        """Say what was done, and what looked odd, in the log."""
        failed = len(self.failures())
        copies = len(self.again) - (failed - len(self.failed))
        total = self.new + self.found + copies + failed
        logger.info(
            f"{self.frames} frames computed in {self.seconds:.1f} s for {self.new + copies} new exams; "
            f"{self.found} of {total} were in the store; {failed} failed"
        )
        if self.stills:
            logger.warning(
                f"{self.stills} runs came down to one frame, in which nothing moves; frame_choice does not suit them"
            )
        if self.odd:
            logger.warning(
                f"{self.odd} exams are odd but usable; python -m scripts check DATALIST tells what is odd in each"
            )

"""Exams on their way from a list to the store: read ahead in threads, encoded in full batches."""

import copy
import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.transforms import Compose
from threadpoolctl import threadpool_limits
from torch import Tensor

from scripts.errors import bad_value
from scripts.features.engines import AUTO, Engine
from scripts.features.entries import entry_key, pass_key
from scripts.features.packing import encode_packed
from scripts.keys import ERROR, FRAME_INDICES, FRAME_TIMES, HEADER, IMAGE, SOURCE
from scripts.sequences.dataset import SequenceDataset, relative_message
from scripts.store.store import FeatureStore, StoredSequence

NICENESS = 10  # of a thread that reads: a tenth of the weight of one that computes


@dataclass
class Exam:
    """One exam on its way from a list to the store: what became of it, and what is still to be encoded."""

    item: dict[str, Any]
    key: str = ""
    error: str | None = None
    again: bool = False  # another exam of this run has the same content
    images: list[tuple[str, Tensor]] = field(default_factory=list)  # key and (T, 3, H, W) of each pass
    frame_times_ms: Tensor | None = None  # (T,)
    frame_indices: Tensor | None = None  # (T,)
    num_warnings: int = 0
    num_frames: int = 0  # of the source

    def keep(self, features: Tensor) -> StoredSequence | None:
        """The features (T, ...) as they are stored; None, with the reason as error, where they cannot be."""
        if not torch.isfinite(features).all():
            allowed = "numbers within 65504 of zero"
            self.error = bad_value(self.item[SOURCE], "features", "not finite as float16", allowed)
            return None
        assert self.frame_times_ms is not None and self.frame_indices is not None
        return StoredSequence(features, self.frame_times_ms, self.frame_indices)


class ExamReader:
    """Position in a list -> Exam: its key, and its images if the store does not have it. Called by several threads.

    Args:
        items: datalist items.
        preprocessing: Compose from an item to image (T, 3, H, W); augmentation goes before its last transform.
        store: what it holds is not read again, only found whole; None reads every exam.
        augmentation: random transforms of brightness (T, H, W).
        passes: augmented passes beside the plain one.
        seed: of the augmentation.
    """

    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        preprocessing: Compose,
        store: FeatureStore | None = None,
        augmentation: Compose | None = None,
        passes: int = 0,
        seed: int = 0,
    ) -> None:
        *first, self._last = preprocessing.transforms
        self._dataset = SequenceDataset(items, Compose(first))
        self._store, self._augmentation = store, augmentation
        self._passes, self._seed = passes, seed
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Exam:
        exam = Exam(self._dataset.data[index])
        try:
            exam.key = entry_key(exam.item)
        except (OSError, ValueError) as error:
            exam.error = relative_message(error, exam.item)
            return exam
        missing = [number for number in range(self._passes + 1) if not self._stored(pass_key(exam.key, number))]
        if missing:
            with self._lock:  # exams of one content are encoded once
                exam.again = exam.key in self._claimed
                self._claimed.add(exam.key)
            if not exam.again:
                self._read(exam, index, missing)
        return exam

    def _stored(self, key: str) -> bool:
        """Whether the store has the entry; a damaged one ends the run, which names the way to repair it."""
        if self._store is None or key not in self._store:
            return False
        self._store.check(key)
        return True

    def _read(self, exam: Exam, index: int, passes: Sequence[int]) -> None:
        read = self._dataset[index]
        if ERROR in read:
            exam.error = read[ERROR]
            return
        exam.frame_times_ms, exam.frame_indices = read[FRAME_TIMES], read[FRAME_INDICES]
        if HEADER in read:
            exam.num_warnings, exam.num_frames = len(read[HEADER].warnings), read[HEADER].num_frames
        exam.images = [(pass_key(exam.key, n), self._last(self._augmented(read, exam.key, n))[IMAGE]) for n in passes]

    def _augmented(self, read: dict[str, Any], key: str, number: int) -> dict[str, Any]:
        """The item as a pass sees it: drawn by seed, exam and number alone, whoever reads it and when."""
        if number == 0 or self._augmentation is None:
            return read
        drawn = hashlib.sha256(f"{self._seed} {pass_key(key, number)}".encode()).digest()
        augmentation = copy.deepcopy(self._augmentation)  # its random state is not for several threads
        augmentation.set_random_state(seed=int.from_bytes(drawn[:4], "little"))
        return augmentation(dict(read))


def read_ahead(reader: Callable[[int], Exam], positions: Iterable[int], readers: int) -> Iterator[Exam]:
    """The exams in order, the next ones being read in threads while the caller computes.

    MONAI's ThreadDataLoader does this too, but ends silently when reading raises (1.6.1).
    """
    pool = ThreadPoolExecutor(readers, initializer=_give_way)
    try:
        pending: deque[Future[Exam]] = deque()
        for position in positions:
            pending.append(pool.submit(reader, position))
            if len(pending) > readers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # nothing is waited for: where the caller failed, it may be the garbage collector that ends this
        pool.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Keep the calling thread to one core, behind those that compute: each waits for all others at every product."""
    torch.get_num_threads()  # first, for a thread's first call takes over the number of the process
    threadpool_limits(1, user_api="openmp")  # that of the calling thread alone
    if sys.platform == "linux":  # where a thread has a niceness of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(os.getpriority(os.PRIO_PROCESS, thread), NICENESS))


def encode(
    exams: Iterable[Exam], engine: Engine, batch_frames: str | int = AUTO
) -> Iterator[tuple[Exam, list[tuple[str, StoredSequence]]]]:
    """Each exam with the entries that it gives the store: none if there was nothing to encode, or an error."""
    waiting: deque[tuple[Exam, list[str]]] = deque()  # exams on their way, the keys of what they still await

    def images() -> Iterator[Tensor | None]:
        for exam in exams:
            waiting.append((exam, [key for key, _ in exam.images]))
            if not exam.images:
                yield None
            while exam.images:
                yield exam.images.pop(0)[1]

    entries: list[tuple[str, StoredSequence]] = []
    for features in encode_packed(images(), engine, batch_frames):
        exam, keys = waiting[0]
        stored = None if features is None else exam.keep(features)
        if stored is not None:
            entries.append((keys[0], stored))
        del keys[:1]
        if not keys:
            waiting.popleft()
            yield exam, [] if exam.error else entries
            entries = []

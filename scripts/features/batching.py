"""Feature store and labels -> padded batches (B, T, D), read in process."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scripts.errors import bad_value
from scripts.features.entries import exam_keys, pass_key
from scripts.keys import (
    ERROR,
    FEATURES,
    FRAME_TIMES,
    IMAGE,
    LABEL,
    LENGTHS,
    PATIENT,
    SEQUENCE,
    SOURCE,
)
from scripts.store.store import FeatureStore, StoredSequence

logger = logging.getLogger("angiography")

FRAMES_SHOWN = ("all", "shuffled")
OF_FRAMES, OF_PASS = 0, 1  # purposes of a draw
FRESH = {"bit_generator": "Philox", "buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}
SCALE_SEQUENCES = 256  # read together for the mean and deviation of their frames


class FeatureDataset(Dataset):
    """Cached sequences with their labels.

    An item has features (T, D) float32, frame_times_ms (T,) float32, label, and source, sequence, patient. Of patch
    tokens (T, P, D) the features are the mean over P.

    What a reading draws follows from seed, epoch, sequence and how often it was read in the epoch: the order of reading
    does not matter, nor, where an epoch has each sequence once, the number of processes.

    Args:
        data: datalist items.
        store: holds their features.
        frames_shown: `all`, or `shuffled`: features in random order while times stay, the control for order.
        frame_dropout: share of frames left out at random at each reading, for training.
        time_jitter: at each reading every frame is moved at random towards the one before or after it, up to this
            share of the way, 0.5 at most; features and time there are those of both, mixed.
        skip_missing: leave out sequences the store does not hold, with a warning, instead of refusing.
        augmented: at each reading draw the plain sequence or one of its augmented passes, of those the store has.
        seed: of shuffling, dropout and passes; the global random state is left alone.

    Raises:
        ValueError: sequences that the store does not hold, or not in all passes that it has of others.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        store: FeatureStore,
        frames_shown: str = "all",
        frame_dropout: float = 0.0,
        time_jitter: float = 0.0,
        skip_missing: bool = False,
        augmented: bool = False,
        seed: int = 0,
    ) -> None:
        if frames_shown not in FRAMES_SHOWN:
            raise ValueError(bad_value("configuration", "frames_shown", frames_shown, f"one of {FRAMES_SHOWN}"))
        if not 0.0 <= frame_dropout < 1.0:
            raise ValueError(bad_value("configuration", "frame_dropout", frame_dropout, "0.0 up to below 1.0"))
        if not 0.0 <= time_jitter <= 0.5:
            raise ValueError(bad_value("configuration", "time_jitter", time_jitter, "0.0 to 0.5, half of the way"))
        self.store = store
        self.frames_shown = frames_shown
        self.frame_dropout, self.time_jitter = frame_dropout, time_jitter
        self.draws = frames_shown == "shuffled" or frame_dropout > 0.0 or time_jitter > 0.0
        self.augmented = augmented
        self.seed, self._generator = seed, np.random.Generator(np.random.Philox(seed))
        keys = exam_keys(data)
        rows = _rows(store, keys, augmented)
        here: list[bool] = np.all(rows >= 0, axis=1).tolist()
        missing = [item[SOURCE] for item, found in zip(data, here, strict=True) if not found]
        if missing:
            message = bad_value(
                store.path,
                "store",
                f"without {len(missing)} of {len(data)} sequences, first {missing[0]}",
                "the features of every sequence",
                "Run configs/cache_features.yaml with this datalist, or pass --skip_missing True if it reported them "
                "as unusable.",
            )
            if not skip_missing or len(missing) == len(data):
                raise ValueError(message)
            logger.warning(message)
        self.data = [item for item, found in zip(data, here, strict=True) if found]
        self.keys = [key for key, found in zip(keys, here, strict=True) if found and key is not None]
        self._rows = rows[here]  # (N, passes)
        self.set_epoch(0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process the store is opened anew, and may have grown."""
        self.__dict__ = state
        self._rows = _rows(self.store, self.keys, self.augmented)

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Let what is drawn from now on be that of `epoch`."""
        self.epoch, self.readings = epoch, np.zeros(len(self.data), np.uint32)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each sequence before dropout, (N,) int64."""
        return self.store.lengths(self._rows[:, 0])

    def plain(self, index: int) -> StoredSequence:
        """A sequence as it is, features (T, D), in memory that is not to be written to: the store's, mostly."""
        return self._stored(index, 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._draw(index)
        return item | {FEATURES: item[FEATURES].to(torch.float32, copy=True), FRAME_TIMES: item[FRAME_TIMES].clone()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items for `collate_sequences`, whose tensors may be the store's own: it copies and converts them once."""
        return [self._draw(index) for index in indices]

    def _stored(self, index: int, number: int) -> StoredSequence:
        stored = self.store.view(self._rows.item(index, number))
        if stored.features.ndim == 2:
            return stored
        return stored._replace(features=stored.features.mean(dim=1, dtype=torch.float32))  # of P patches

    def _draw(self, index: int) -> dict[str, Any]:
        passes = self._rows.shape[1]
        number = int(self._random(index, OF_PASS).integers(passes)) if passes > 1 else 0
        features, times, _ = self._stored(index, number)
        random = self._random(index, OF_FRAMES) if self.draws else self._generator
        self.readings[index] += 1
        if self.time_jitter and len(features) > 1:
            moved = np.arange(len(features)) + random.uniform(-self.time_jitter, self.time_jitter, len(features))
            features, times = _between(features, times, moved.clip(0, len(features) - 1))
        if self.frames_shown == "shuffled":
            features = features.index_select(0, torch.from_numpy(random.permutation(len(features))))
        if self.frame_dropout and len(features) > 1:
            (kept,) = (random.random(len(features)) >= self.frame_dropout).nonzero()
            keep = torch.from_numpy(kept if len(kept) else np.array([random.integers(len(features))]))
            features, times = features.index_select(0, keep), times.index_select(0, keep)
        item = self.data[index]
        out = {FEATURES: features, FRAME_TIMES: times, SOURCE: item[SOURCE]}
        for key in (LABEL, SEQUENCE, PATIENT):
            if item.get(key) is not None:
                out[key] = item[key]
        return out

    def _random(self, index: int, purpose: int) -> np.random.Generator:
        """The generator, about to draw what belongs to this reading and purpose."""
        counter = np.array([0, index, self.epoch, self.readings.item(index)], np.uint64)  # the first counts the draws
        key = np.array([self.seed, purpose], np.uint64)
        self._generator.bit_generator.state = {"state": {"counter": counter, "key": key}, **FRESH}
        return self._generator


def _between(features: Tensor, times: Tensor, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features (T, D) and times (T,) at positions between the frames, (T,), of the two beside each in its share."""
    before = torch.from_numpy(np.minimum(positions.astype(np.int64), len(positions) - 2))
    share = torch.from_numpy(positions).to(torch.float32) - before
    features = features.to(torch.float32)
    features = torch.lerp(features.index_select(0, before), features.index_select(0, before + 1), share[:, None])
    return features, torch.lerp(times.index_select(0, before), times.index_select(0, before + 1), share)


def _rows(store: FeatureStore, keys: Sequence[str | None], augmented: bool) -> np.ndarray:
    """Where the store has each sequence, plain and, if asked for, in its augmented passes: (N, passes), -1 = absent."""
    known = np.array([key is not None for key in keys], dtype=bool)
    passes: list[np.ndarray] = []
    while not passes or (augmented and (passes[-1] >= 0).any()):
        rows = np.full(len(keys), -1)
        rows[known] = store.find([pass_key(key, len(passes)) for key in keys if key is not None])
        passes.append(rows)
    return np.stack(passes[:-1] if augmented and len(passes) > 1 else passes, axis=1)


def collate_sequences(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One padded batch.

    Args:
        items: each with features (T, D) of any float type or image (T, 3, H, W), and frame_times_ms (T,), label
            optional; or an exam that could not be read, with `error`. What they hold is copied.

    Returns:
        features (B, T, D) or image (B, T, 3, H, W), float32, zeros on padding; frame_times_ms (B, T), NaN on padding;
        lengths (B,) int64; label (B,) int64 or (B, K) float32; other keys as lists; `error`: the unreadable items,
        which are in nothing else. All unreadable: `error` alone.
    """
    failures = [item for item in items if ERROR in item]
    items = [item for item in items if ERROR not in item]
    out: dict[str, Any] = {ERROR: failures} if failures else {}
    if not items:
        return out
    out |= {key: [item.get(key) for item in items] for key in {key: None for item in items for key in item}}
    main = FEATURES if FEATURES in out else IMAGE
    out[LENGTHS] = torch.tensor([x.shape[0] for x in out[main]])
    out[main] = _padded(out[main], 0.0).to(torch.float32)  # (B, T, ...), padded as stored: half the bytes
    out[FRAME_TIMES] = _padded(out[FRAME_TIMES], float("nan"))  # (B, T)
    if LABEL in out:
        label = torch.tensor(out[LABEL])
        out[LABEL] = label if label.ndim == 1 else label.to(torch.float32)
    return out


def _padded(parts: Sequence[Tensor], value: float) -> Tensor:
    """Tensors (T, ...) as one of its own memory, (B, T, ...), the shorter ones filled up with `value`."""
    if len({part.shape[0] for part in parts}) == 1:
        return torch.stack(list(parts))  # takes a third of the time
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)


def feature_scale(dataset: FeatureDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every frame's plain features over a dataset, (D,) each, for `fit_scale`."""
    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for first in range(0, len(dataset), SCALE_SEQUENCES):  # a store need not fit in memory
        part = range(first, min(first + SCALE_SEQUENCES, len(dataset)))
        frames = torch.cat([dataset.plain(n).features for n in part]).to(torch.float64)  # (N, D)
        apart, both = frames.mean(dim=0) - mean, count + len(frames)
        mean = mean + apart * len(frames) / both
        squares = squares + frames.var(dim=0, correction=0) * len(frames) + apart**2 * count * len(frames) / both
        count = both
    return mean.to(torch.float32), (squares / count).sqrt().to(torch.float32)

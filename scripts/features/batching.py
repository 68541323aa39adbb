"""Feature store and labels -> padded batches (B, T, D), read in process."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scripts.errors import SequenceError, bad_value
from scripts.features.extract import entry_key
from scripts.features.store import FeatureStore
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

logger = logging.getLogger("angiography")

FRAMES_SHOWN = ("all", "shuffled")


class FeatureDataset(Dataset):
    """Cached sequences with their labels.

    An item has features (T, D) float32, frame_times_ms (T,) float32, label, and source, sequence, patient.

    Args:
        data: datalist items.
        store: holds their features.
        frames_shown: `all`, or `shuffled`: features in random order while times stay, the control for order.
        frame_dropout: share of frames left out at random at each reading, for training.
        skip_missing: leave out sequences the store does not hold, with a warning, instead of refusing.
        seed: of shuffling and dropout; the global random state is left alone.

    Raises:
        ValueError: sequences that the store does not hold.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        store: FeatureStore,
        frames_shown: str = "all",
        frame_dropout: float = 0.0,
        skip_missing: bool = False,
        seed: int = 0,
    ) -> None:
        if frames_shown not in FRAMES_SHOWN:
            raise ValueError(bad_value("configuration", "frames_shown", frames_shown, f"one of {FRAMES_SHOWN}"))
        if not 0.0 <= frame_dropout < 1.0:
            raise ValueError(bad_value("configuration", "frame_dropout", frame_dropout, "0.0 up to below 1.0"))
        self.store = store
        self.frames_shown = frames_shown
        self.frame_dropout = frame_dropout
        self.random = np.random.default_rng(seed)
        keyed = [(item, _key_or_none(item)) for item in data]
        missing = [item[SOURCE] for item, key in keyed if key is None or key not in store]
        if missing:
            message = bad_value(
                store.path,
                "store",
                f"without {len(missing)} of {len(keyed)} sequences, first {missing[0]}",
                "the features of every sequence",
                "Run configs/cache_features.yaml with this datalist, or pass --skip_missing True if it reported them "
                "as unusable.",
            )
            if not skip_missing or len(missing) == len(keyed):
                raise ValueError(message)
            logger.warning(message)
        stored = [(item, key) for item, key in keyed if key is not None and key in store]
        self.data, self.keys = [item for item, _ in stored], [key for _, key in stored]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = self.store.read(self.keys[index])
        features, times = stored.features.to(torch.float32), stored.frame_times_ms
        if self.frames_shown == "shuffled":
            features = features[torch.from_numpy(self.random.permutation(len(features)))]
        if self.frame_dropout and len(features) > 1:
            keep = np.flatnonzero(self.random.random(len(features)) >= self.frame_dropout)
            keep = keep if len(keep) else np.array([self.random.integers(len(features))])
            features, times = features[keep], times[keep]
        item = self.data[index]
        out = {FEATURES: features, FRAME_TIMES: times, SOURCE: item[SOURCE]}
        return out | {key: item[key] for key in (LABEL, SEQUENCE, PATIENT) if item.get(key) is not None}


def _key_or_none(item: dict[str, Any]) -> str | None:
    """The exam's key, or None if it cannot be read."""
    try:
        return entry_key(item)
    except (OSError, SequenceError):
        return None


def collate_sequences(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One padded batch.

    Args:
        items: each with features (T, D) or image (T, 3, H, W), and frame_times_ms (T,), label optional; or an exam
            that could not be read, with `error`.

    Returns:
        features (B, T, D) or image (B, T, 3, H, W), zeros on padding; frame_times_ms (B, T), NaN on padding;
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
    out[LENGTHS] = torch.tensor([len(x) for x in out[main]])
    out[main] = torch.nn.utils.rnn.pad_sequence(out[main], batch_first=True)  # (B, T, ...)
    out[FRAME_TIMES] = torch.nn.utils.rnn.pad_sequence(
        out[FRAME_TIMES], batch_first=True, padding_value=float("nan")
    )  # (B, T)
    if LABEL in out:
        label = torch.tensor(out[LABEL])
        out[LABEL] = label if label.ndim == 1 else label.to(torch.float32)
    return out


def feature_scale(dataset: FeatureDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every frame's features over a dataset, (D,) each, for `fit_scale`."""
    frames = torch.cat([dataset.store.read(key).features for key in dataset.keys]).to(torch.float64)  # (N, D)
    return frames.mean(dim=0).to(torch.float32), frames.std(dim=0, correction=0).to(torch.float32)

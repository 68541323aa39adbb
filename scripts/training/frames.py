"""Exams -> frames drawn for an epoch, or features of the encoder as it is by now; exams that cannot be read."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch.utils.data import Dataset

from scripts.datalists.datalist import labelled_split
from scripts.errors import SequenceError, bad_value
from scripts.keys import ERROR, FEATURES, FRAME_TIMES, FRAMES, IMAGE, LABEL, NUM_FRAMES, SOURCE
from scripts.networks.classifier import SequenceClassifier
from scripts.sequences.dataset import SequenceDataset, refuse_failures, relative_message
from scripts.store.store import StoredSequence

logger = logging.getLogger("angiography")

ALL_FRAMES = "all"


def readable_split(
    path: str | Path, dataset_dir: str | Path, split: str, preprocessing: Compose, skip_unreadable: bool = False
) -> list[dict[str, Any]]:
    """The labelled items of a split, `num_frames` added, after the header of each was read: before the first epoch.

    Args:
        path: of the datalist.
        dataset_dir: what its paths are relative to.
        split: of the list.
        preprocessing: from item to encoder input; its first transform reads headers.
        skip_unreadable: leave out exams that cannot be read, with a warning that lists them.

    Raises:
        ValueError: exams that cannot be read, all of them named; or what `labelled_split` raises.
    """
    items, failures = labelled_split(path, dataset_dir, split), []
    kept = []
    for item in items:
        try:
            source = [Path(image) for image in item[IMAGE]] if isinstance(item[IMAGE], list) else Path(item[IMAGE])
            kept.append(item | {NUM_FRAMES: preprocessing.transforms[0].read_header(source).num_frames})
        except (SequenceError, OSError) as error:
            failures.append(relative_message(error, item))
    if failures:
        found = f"{len(failures)} of {len(items)} exams unreadable"
        way_out = "Take them out of the datalist, or pass --skip_unreadable True."
        lines = "\n".join(f"  {failure}" for failure in failures)
        message = f"{bad_value(path, split, found, 'exams that can be read', way_out)}\n{lines}"
        if not skip_unreadable or not kept:
            raise ValueError(message)
        logger.warning(message)
    return kept


class FrameDataset(SequenceDataset):
    """Exams as encoder input, read at each access: image (T, 3, H, W) or (T, 1, X, Y, Z), frame_times_ms (T,), label,
    source.

    An exam that breaks only when its pixels are read does not end a run of a thousand: the next one of its class, in
    the order of the list, is read in its place, at each access alike, and `report` names it in the end.

    Args:
        data: items of `readable_split`.
        transform: `preprocessing` of cache_features.yaml.
        augmentation: random transforms of brightness (T, H, W), before the last of those; None changes nothing.
        seed: of the augmentation. What is drawn follows from seed, epoch and exam: neither the order of reading matters
            nor how many processes read. An exam that balanced sampling draws twice in an epoch is changed alike.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Compose, augmentation: Compose | None = None, seed: int = 0
    ) -> None:
        *first, self.last = transform.transforms
        super().__init__(data, Compose(first))
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0
        self.failed = torch.zeros(len(data), dtype=torch.bool).share_memory_()  # told by processes that read ahead too

    def set_epoch(self, epoch: int) -> None:
        """Let what is drawn from now on be that of `epoch`."""
        self.epoch = epoch

    @property
    def lengths(self) -> np.ndarray:
        """Ones, (N,): most exams have as many frames as `max_frames` allows."""
        return np.ones(len(self.data), dtype=np.int64)

    def _transform(self, index: int) -> dict[str, Any]:
        read = super()._transform(index)
        if ERROR in read:
            if not self.failed[index]:
                logger.warning(f"{read[ERROR]} Another exam of its class is taken in its place.")
            self.failed[index] = True
            return self._transform(self._stand_in(index))
        if self.augmentation is not None:
            drawn = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            read = self.augmentation.set_random_state(seed=int(drawn[0]))(read)
        made = self.last(read)
        return {key: made[key] for key in (IMAGE, FRAME_TIMES, LABEL, SOURCE)}

    def why(self, index: int) -> str:
        """Why an exam has failed, found out by reading it once more."""
        again = "could not be read while training, and can be now: look at its disk or network"
        return super()._transform(index).get(ERROR, f"{self.data[index][SOURCE]}: {again}")

    def _stand_in(self, index: int) -> int:
        """The next exam with the same label that has not failed.

        Raises:
            ValueError: there is none.
        """
        label = self.data[index][LABEL]
        for step in range(1, len(self.data)):
            other = (index + step) % len(self.data)
            if self.data[other][LABEL] == label and not self.failed[other]:
                return other
        found = f"unreadable, as are all exams of label {label}"
        raise ValueError(bad_value(self.data[index][SOURCE], "pixel data", found, "at least one that can be read"))


class EncodedDataset(Dataset):
    """The same exams as the head gets them, features (T, D) float32 in place of frames; encoded at each access.

    Args:
        dataset: frames, without augmentation.
        network: its encoder encodes them, on its device, without dropout or drop path.
    """

    def __init__(self, dataset: FrameDataset, network: SequenceClassifier) -> None:
        self.dataset, self.network, self.data = dataset, network, dataset.data

    def __len__(self) -> int:
        return len(self.data)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        device = next(self.network.parameters()).device
        features = self.network.eval().encode(item.pop(IMAGE)[None].to(device))
        return item | {FEATURES: features[0].float().cpu()}

    def plain(self, index: int) -> StoredSequence:
        """As a FeatureDataset gives it."""
        item = self[index]
        return StoredSequence(item[FEATURES], item[FRAME_TIMES], torch.arange(len(item[FEATURES])))


def most_frames(datasets: Sequence[FrameDataset], frame_choice: str, max_frames: int) -> int:
    """T of the longest sequence that the datasets can give: `all` has no limit, nor have frames that the list names."""
    items = [item for dataset in datasets for item in dataset.data]
    limit = max_frames if frame_choice != ALL_FRAMES else max(item[NUM_FRAMES] for item in items)
    wanted = (len(item[FRAMES]) if item.get(FRAMES) else limit for item in items)
    return max(min(item[NUM_FRAMES], frames) for item, frames in zip(items, wanted, strict=True))


def report_unreadable(datasets: Sequence[FrameDataset]) -> None:
    """End a finished run with an error if any exam broke when its pixels were read, naming each.

    Raises:
        RunFailedError: at least one did; everything else has been written by then.
    """
    failures = [
        {ERROR: dataset.why(int(index))} for dataset in datasets for index in torch.nonzero(dataset.failed)[:, 0]
    ]
    refuse_failures(failures, sum(len(dataset.data) for dataset in datasets), "finetuning")

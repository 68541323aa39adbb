"""Datalist, feature store -> the labelled exams of training and validation, as lists that folds train on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.datalists.datalist import datalist_digest, is_synthetic, labelled_split, read_datalist
from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import (
    CLASSES,
    ENTRY,
    LABEL,
    MULTILABEL,
    ORDERED,
    PATIENT,
    SEQUENCE,
    SOURCE,
    SYNTHETIC,
    TASK,
    TRAINING,
    TYPE,
    VALIDATION,
)
from scripts.store.store import FeatureStore
from scripts.training.classes import BALANCED, labels_of, sampling_groups


@dataclass(frozen=True)
class Exams:
    """Exams that a recipe may be chosen by; those of the test split are not among them.

    Attributes:
        items: N, each naming its entry of the store, so that no image is read again.
        labels: (N,) int64, or (N, K) ones, zeros, and -1 where not known, for multilabel.
        strata: what folds are balanced by, (N,): the class; of several labels the rarest that the exam has.
        patients: names, N; an exam without one is its own.
        task: type and classes.
        synthetic: the exams were made by a program.
        digest: of the datalist.
    """

    items: list[dict[str, Any]]
    labels: np.ndarray
    strata: np.ndarray
    patients: list[str]
    task: Task
    synthetic: bool
    digest: str

    def datalist(self, **splits: Sequence[int] | np.ndarray) -> str:
        """The JSON of a datalist with the exams at these positions in each split."""
        task = {TYPE: self.task.type, CLASSES: list(self.task.classes), ORDERED: self.task.ordered}
        content: dict[str, Any] = {TASK: task, SYNTHETIC: self.synthetic}
        for split, positions in splits.items():
            content[split] = [{**self.items[n], LABEL: self._label(n)} for n in positions]
        return json.dumps(content)

    def select(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Items for a FeatureDataset."""
        return [{**self.items[n], SOURCE: self.items[n][SEQUENCE], LABEL: self.items[n][LABEL]} for n in positions]

    def _label(self, position: int) -> Any:
        label = self.items[position][LABEL]
        return [None if value < 0 else value for value in label] if self.task.type == MULTILABEL else label


def find_exams(
    datalist: str | Path, dataset_dir: str | Path, store: FeatureStore, task: Task, skip_missing: bool
) -> Exams:
    """The exams of the splits training and validation; the test split is not looked at.

    A content that is in the list twice counts once.

    Args:
        datalist: the JSON file.
        dataset_dir: what its paths are relative to.
        store: has their features.
        task: of the datalist.
        skip_missing: leave out exams that the store does not have, with a warning, instead of refusing.

    Raises:
        ValueError: no exam, one without a label or without features, or one content with two labels or patients.
    """
    content = read_datalist(datalist, dataset_dir)
    splits = [split for split in (TRAINING, VALIDATION) if content[split]] or [TRAINING]
    listed = [item for split in splits for item in labelled_split(datalist, dataset_dir, split)]
    found = FeatureDataset(listed, store, skip_missing=skip_missing)
    first: dict[str, dict[str, Any]] = {}
    for key, item in zip(found.keys, found.data, strict=True):
        other = first.setdefault(key, item)
        if (other[LABEL], other.get(PATIENT)) != (item[LABEL], item.get(PATIENT)):
            seen = f"that of {other[SOURCE]}, with another label or patient"
            way_out = "Find such exams with: python -m scripts check DATALIST"
            raise ValueError(bad_value(item[SOURCE], "content", seen, "each content once", way_out))
    once = FeatureDataset([{**item, ENTRY: key} for key, item in first.items()], store)
    return Exams(
        items=[_exported(item) for item in once.data],
        labels=labels_of(once),
        strata=np.asarray(sampling_groups(BALANCED, once, task)),
        patients=[str(item.get(PATIENT, item[SOURCE])) for item in once.data],
        task=task,
        synthetic=is_synthetic(datalist),
        digest=datalist_digest(datalist),
    )


def _exported(item: dict[str, Any]) -> dict[str, Any]:
    """The item as a list of entries has it; its `sequence` is what names it in messages."""
    out = {ENTRY: item[ENTRY], SEQUENCE: item[SOURCE], LABEL: item[LABEL]}
    return out if item.get(PATIENT) is None else {**out, PATIENT: item[PATIENT]}

"""Labels of a split -> weights of the classes, groups to draw evenly, and what is too little to learn from."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import LABEL, MULTILABEL, PATIENT, TRAINING, VALIDATION

logger = logging.getLogger("angiography")

NONE, BALANCED, SHUFFLED = "none", "balanced", "shuffled"
NAMED = 5  # classes in one message


def labels_of(dataset: FeatureDataset) -> np.ndarray:
    """Labels (N,) int64, or (N, K) ones, zeros, and -1 where not known, for multilabel."""
    return np.asarray([item[LABEL] for item in dataset.data], dtype=np.int64)


def class_weights(weights: str | Sequence[float], dataset: FeatureDataset, task: Task) -> Tensor | None:
    """What the loss weighs the classes by, (K,) float32.

    Args:
        weights: `none`; `balanced`: the inverse of how often a class is in the dataset, so that all classes count
            alike, or of multilabel how many negatives a label has for each positive; or a list of K numbers.
        dataset: the training split.
        task: its classes.

    Raises:
        ValueError: none of these.
    """
    num_classes = len(task.classes)
    if isinstance(weights, str) and weights in (NONE, BALANCED):
        return None if weights == NONE else torch.from_numpy(_balanced(labels_of(dataset), task)).to(torch.float32)
    given = [] if isinstance(weights, str) or not isinstance(weights, Iterable) else list(weights)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
    if len(given) != num_classes or not numbers or not all(0 < value < float("inf") for value in given):
        allowed = f"{NONE}, {BALANCED}, or {num_classes} numbers above 0, one for each class"
        raise ValueError(bad_value("configuration", "class_weights", weights, allowed))
    return torch.tensor(given, dtype=torch.float32)


def _balanced(labels: np.ndarray, task: Task) -> np.ndarray:
    """Weights (K,); 1 for a class that is never there, or a label that has one answer only."""
    if task.type == MULTILABEL:
        yes, no = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
        return np.where((yes > 0) & (no > 0), no / np.maximum(yes, 1), 1.0)
    counts = np.bincount(labels, minlength=len(task.classes))
    return np.where(counts > 0, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)


def sampling_groups(sampling: str, dataset: FeatureDataset, task: Task) -> np.ndarray | None:
    """The group of each sequence, (N,); an epoch draws one as often as the other. None: it draws each sequence once.

    Args:
        sampling: `shuffled`, or `balanced`: the groups are the classes. Of several labels a sequence counts for the
            rarest that it has; those without any are a group too.
        dataset: the training split.
        task: its classes.

    Raises:
        ValueError: unknown sampling.
    """
    if sampling not in (SHUFFLED, BALANCED):
        raise ValueError(bad_value("configuration", "sampling", sampling, f"{SHUFFLED} or {BALANCED}"))
    if sampling == SHUFFLED:
        return None
    labels = labels_of(dataset)
    if task.type != MULTILABEL:
        return labels
    positive = labels == 1
    rarity = np.where(positive, positive.sum(axis=0), len(labels) + 1)  # (N, K)
    return np.where(positive.any(axis=1), rarity.argmin(axis=1), len(task.classes))


def check_labels(training: FeatureDataset, validation: FeatureDataset, task: Task) -> None:
    """Refuse labels that nothing can be learnt from or no epoch be chosen by; warn of classes and patients that lack.

    Raises:
        ValueError: one class only in the training split, or no known label in the validation split.
    """
    for split, dataset in ((TRAINING, training), (VALIDATION, validation)):
        labels = labels_of(dataset)
        if task.type == MULTILABEL:
            yes, no = (labels == 1).any(axis=0), (labels == 0).any(axis=0)
            usable, lacking = bool((yes & no).any()), ~(yes & no)
            missing, wanted = "one-sided for", "both answers of every label"
        else:
            counts = np.bincount(labels, minlength=len(task.classes))
            usable, lacking = bool(np.count_nonzero(counts) > 1), counts == 0
            missing, wanted = "never", "sequences of every class"
        if split == TRAINING and not usable:
            found = f"{_names(task, ~lacking)} alone" if task.type != MULTILABEL else "the same everywhere"
            raise ValueError(bad_value(split, LABEL, found, "two classes or more, to tell apart"))
        if (labels < 0).all():
            raise ValueError(bad_value(split, LABEL, "nowhere known", "known labels, to choose the best epoch by"))
        if lacking.any():
            effect = "What is missing is not learnt." if split == TRAINING else "The best epoch is chosen without."
            logger.warning(bad_value(split, LABEL, f"{missing} {_names(task, lacking)}", wanted, effect))
        patients = {item.get(PATIENT) for item in dataset.data}
        if len(dataset) == 1 or (len(patients) == 1 and None not in patients):
            found = "of one sequence" if len(dataset) == 1 else "of one patient"
            logger.warning(bad_value(split, "split", found, "many patients", "Its numbers will say little."))


def _names(task: Task, chosen: np.ndarray) -> str:
    names = [name for name, is_chosen in zip(task.classes, chosen, strict=True) if is_chosen]
    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + others

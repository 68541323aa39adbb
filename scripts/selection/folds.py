"""Classes and patients of exams -> folds: exams to train on, stop by and be judged by, no patient in two of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.keys import MULTILABEL, PATIENT

MIN_FOLDS = 3  # one part is held out, one is the validation split, the rest is trained on


class Fold(NamedTuple):
    """Positions of exams, (n,) int64 each.

    Attributes:
        repeat: 0 for the first partition of the exams, and so on.
        number: of the part that is held out, from 0.
        training: what is learnt from.
        validation: what the best epoch is chosen by.
        held_out: what the fold is judged by; seen by neither.
    """

    repeat: int
    number: int
    training: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray


def make_folds(
    strata: np.ndarray, patients: Sequence[str], num_folds: int, num_repeats: int, seed: int = 0
) -> list[Fold]:
    """Folds of `num_repeats` partitions of the exams into `num_folds` parts of whole patients, alike in strata.

    Each part is held out once and is once the validation split, that of the fold before it. So every exam is judged
    once in each repeat, and what is trained on has the share of a datalist made with as many folds. Patients are dealt
    out by scikit-learn's StratifiedGroupKFold, greedily: parts are alike, not equal.

    Args:
        strata: what the parts shall be alike in, (N,), such as the class. Those with fewer patients than folds cannot
            be dealt out evenly and count with the largest.
        patients: who each exam belongs to, N.
        num_folds: 3 or more.
        num_repeats: 1 or more.
        seed: of the first partition; the next has the next.

    Raises:
        ValueError: numbers that are too small, or fewer patients than folds.
    """
    for name, number, least in (("folds", num_folds, MIN_FOLDS), ("repeats", num_repeats, 1)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(bad_value("cross-validation", name, number, f"a whole number of at least {least}"))
    names, group = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < num_folds:
        raise ValueError(bad_value("cross-validation", "patients", len(names), f"at least {num_folds}, one a fold"))
    dealt, number_of = np.unique(strata, return_inverse=True)
    few = np.array([len(np.unique(group[number_of == n])) < num_folds for n in range(len(dealt))])
    balanced = np.where(few[number_of], np.bincount(number_of).argmax(), number_of)
    folds = []
    for repeat in range(num_repeats):
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed + repeat)
        parts = [held_out for _, held_out in splitter.split(balanced, balanced, group)]
        for n, held_out in enumerate(parts):
            validation = parts[(n + 1) % num_folds]
            training = np.setdiff1d(np.arange(len(group)), np.concatenate([held_out, validation]))
            folds.append(Fold(repeat, n, training, validation, held_out))
    return folds


def check_classes(labels: np.ndarray, patients: Sequence[str], task: Task, num_folds: int) -> None:
    """Refuse a class that has patients, but too few for one in each fold; a class that nobody has is no matter here.

    Args:
        labels: (N,) class indices, or (N, K) ones, zeros, and -1 where not known.
        patients: N.
        task: its classes.
        num_folds: of the cross-validation.

    Raises:
        ValueError: names the class and how many patients it has.
    """
    has = labels == 1 if task.type == MULTILABEL else labels[:, None] == np.arange(len(task.classes))  # (N, K)
    names = np.asarray(patients)
    for k, name in enumerate(task.classes):
        number = len(np.unique(names[has[:, k]]))
        if 0 < number < num_folds:
            found, allowed = f"{number} of class {name}", f"at least {num_folds} of each class, one a fold"
            way_out = f"Give --folds {number}." if number >= MIN_FOLDS else "Join classes, or label more exams."
            raise ValueError(bad_value("cross-validation", f"{PATIENT}s", found, allowed, way_out))

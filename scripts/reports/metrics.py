"""Labels and probabilities -> scores with 95 % intervals, as a dictionary that JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scripts.errors import bad_value
from scripts.keys import BINARY, CLASSES, LABEL, MULTILABEL, TASK, TASK_TYPES, TYPE
from scripts.reports.intervals import Intervals, some
from scripts.reports.resampling import (
    BALANCED_ACCURACY,
    COUNT_METRICS,
    KAPPA,
    NUM_BINS,
    PROBABILITY_METRICS,
    RANK_METRICS,
    Split,
    at_specificity,
    decisions,
    one_hot,
    patient_draws,
    resampled,
)

SUM_TOLERANCE = 0.01  # a row of 1,000 half-precision softmax outputs is off by about this much
UNKNOWN = -1  # a label that the datalist leaves null
SPECIFICITIES = (0.90, 0.95)
OVERALL_METRICS = (*COUNT_METRICS, *RANK_METRICS, *PROBABILITY_METRICS, *map(at_specificity, SPECIFICITIES), KAPPA)


def score(
    labels: ArrayLike,
    probabilities: ArrayLike,
    task_type: str,
    classes: Sequence[str],
    patients: Sequence[object],
    num_resamples: int = 2000,
    seed: int = 0,
    *,
    ordered: bool = False,
    specificities: Sequence[float] = SPECIFICITIES,
) -> dict[str, Any]:
    """Scores of one split, overall and per class, each with value, low and high.

    What cannot be computed is None, and `notes` says why. Balanced accuracy is the mean sensitivity of the
    classes; for multilabel tasks the mean of (sensitivity + specificity) / 2, and accuracy asks for all known
    classes of a sequence to be right. Per class, each stands against all others.

    Args:
        labels: class indices, (N,); for a multilabel task zeros and ones, (N, K), or -1 for not known, which
            counts nowhere.
        probabilities: one column per class, also when there are two, (N, K).
        task_type: binary, multiclass or multilabel.
        classes: K names.
        patients: who each sequence belongs to, N; only their number is reported.
        num_resamples: resamples behind each interval; 0 leaves intervals out.
        seed: of the resampling.
        ordered: the classes are grades in this order, so quadratic kappa is given too.
        specificities: where sensitivity is given.
    """
    split = checked(labels, probabilities, task_type, classes, patients, ordered)
    outside = [value for value in specificities if not 0 <= value <= 1]
    if outside:
        raise ValueError(bad_value("score", "specificities", outside[0], "values from 0 to 1"))
    draws = patient_draws(split.num_patients, num_resamples, seed)
    overall, per_class = resampled(split, draws, specificities)
    names = [str(name) for name in classes]
    notes, explained = missing(split, names)
    intervals = Intervals(split.num_patients, num_resamples, notes=notes, explained=explained)
    result: dict[str, Any] = {
        "num_sequences": len(split.truth),
        "num_patients": split.num_patients,
        "num_resamples": num_resamples,
        "seed": seed,
        CLASSES: list(classes),
        "bins": f"{NUM_BINS} bins of equal width",
    }
    result |= {name: intervals.estimate(name, values) for name, values in overall.items()}
    result["per_class"] = {
        name: {"num": int(num), "num_known": int(num_known)}
        for name, num, num_known in zip(
            names, (split.truth & split.known).sum(axis=0), split.known.sum(axis=0), strict=True
        )
    }
    for metric, values in per_class.items():
        for name, estimate in zip(names, intervals.estimates(metric, values, names), strict=True):
            result["per_class"][name][metric] = estimate
    if task_type != MULTILABEL:
        predicted = decisions(split.scores, task_type)
        confusion = split.truth.T.astype(np.float64) @ predicted  # rows: true class
        result["confusion"] = confusion.astype(int).tolist()
    result["notes"] = intervals.all_notes()
    return result


def paired_difference(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    patients: Sequence[object],
    metric: str = BALANCED_ACCURACY,
    *,
    task_type: str,
    classes: Sequence[str],
    num_resamples: int = 2000,
    seed: int = 0,
    ordered: bool = False,
) -> dict[str, Any]:
    """How much higher a scores than b on the same sequences, with both seeing the same resamples."""
    known = OVERALL_METRICS if ordered else tuple(name for name in OVERALL_METRICS if name != KAPPA)
    if metric not in known:
        raise ValueError(bad_value("paired difference", "metric", metric, "one of " + ", ".join(known)))
    a = checked(labels, probabilities_a, task_type, classes, patients, ordered)
    b = checked(labels, probabilities_b, task_type, classes, patients, ordered)
    draws = patient_draws(a.num_patients, num_resamples, seed)
    rank = metric not in (*COUNT_METRICS, *PROBABILITY_METRICS, KAPPA)
    found_a, found_b = (resampled(split, draws, SPECIFICITIES, rank)[0][metric] for split in (a, b))
    notes, explained = missing(a, [str(name) for name in classes])
    intervals = Intervals(a.num_patients, num_resamples, paired=True, notes=notes, explained=explained)
    difference: dict[str, Any] = dict(intervals.estimate(metric, found_a - found_b))
    return difference | {"metric": metric, "notes": intervals.all_notes()}


def checked(
    labels: ArrayLike,
    probabilities: ArrayLike,
    task_type: str,
    classes: Sequence[str],
    patients: Sequence[object],
    ordered: bool = False,
) -> Split:
    """The split as arrays, patients numbered.

    Raises:
        ValueError: shapes that do not fit, labels outside the classes, values that are no probabilities.
    """
    num_classes = len(classes)
    if task_type not in TASK_TYPES:
        raise ValueError(bad_value(TASK, TYPE, task_type, "one of " + ", ".join(TASK_TYPES)))
    fewest = 1 if task_type == MULTILABEL else 2
    if num_classes < fewest or len(set(classes)) != num_classes or (task_type == BINARY and num_classes != 2):
        allowed = "exactly 2 different names" if task_type == BINARY else f"{fewest} or more different names"
        raise ValueError(bad_value(f"{task_type} task", CLASSES, list(classes), allowed))
    if ordered and task_type == MULTILABEL:
        raise ValueError(bad_value(f"{task_type} task", "ordered", ordered, "false: its classes exclude no other"))
    scores = np.asarray(probabilities, dtype=np.float64)
    found = np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] != num_classes or len(scores) == 0:
        allowed = f"(N, {num_classes}) with N >= 1, one column per class"
        raise ValueError(bad_value("split", "shape of the probabilities", scores.shape, allowed))
    shape = scores.shape if task_type == MULTILABEL else scores.shape[:1]
    if found.shape != shape:
        raise ValueError(bad_value("split", "shape of the labels", found.shape, f"{shape} for a {task_type} task"))
    if len(patients) != len(scores):
        raise ValueError(bad_value("split", "number of patient entries", len(patients), f"{len(scores)}"))
    if any(patient is None or patient == "" for patient in patients):
        empty = sum(patient is None or patient == "" for patient in patients)
        raise ValueError(bad_value("split", "sequences without a patient", empty, "0"))
    broken = ~np.isfinite(scores).all(axis=1)
    if broken.any():
        text = f"{broken.sum()} of {len(scores)}, first at row {broken.argmax()}"
        raise ValueError(bad_value("split", "rows with a non-finite probability", text, "0"))
    off_sum = task_type != MULTILABEL and np.abs(scores.sum(axis=1) - 1).max() > SUM_TOLERANCE
    if scores.min() < 0 or scores.max() > 1 or off_sum:
        allowed = "values from 0 to 1" + ("" if task_type == MULTILABEL else " that sum to 1 in each row")
        row = np.array2string(scores[np.abs(scores - 0.5).max(axis=1).argmax()], precision=4)
        raise ValueError(bad_value("split", "probabilities", row, allowed, "Pass probabilities, not logits."))
    lowest, largest = (UNKNOWN, 1) if task_type == MULTILABEL else (0, num_classes - 1)
    strange = ~np.isin(found, np.arange(lowest, largest + 1))
    if strange.any():
        text = f"{found[strange].flat[0]} ({strange.sum()} of {found.size} labels are unknown)"
        allowed = f"whole numbers from 0 to {largest}" + (f", or {UNKNOWN} for not known" if lowest < 0 else "")
        raise ValueError(bad_value("split", LABEL, text, allowed))
    truth = found == 1 if task_type == MULTILABEL else one_hot(found.astype(int), num_classes)
    known = found != UNKNOWN if task_type == MULTILABEL else np.ones_like(truth)
    group = np.unique([str(patient) for patient in patients], return_inverse=True)[1]
    return Split(truth, known, scores, group, task_type, ordered)


def missing(split: Split, classes: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Notes on labels that are not known and on classes that no sequence, or every one, has; and those classes."""
    known = split.known.sum(axis=0)
    counts = (split.truth & split.known).sum(axis=0)
    unlabelled = [name for name, num in zip(classes, known, strict=True) if num == 0]
    absent = [name for name, num, of in zip(classes, counts, known, strict=True) if num == 0 < of]
    everywhere = [name for name, num, of in zip(classes, counts, known, strict=True) if num == of > 0]
    notes = []
    if not split.known.all():
        notes.append(f"{(~split.known).sum()} of {split.known.size} labels are not known and count nowhere.")
    if unlabelled:
        notes.append(f"No sequence has a known label of {some(unlabelled)}: nothing is given of it.")
    if absent:
        notes.append(
            f"No sequence is {some(absent)}: no sensitivity, F1, AUROC or AUPRC of it, macro scores leave it out."
        )
    if everywhere:
        notes.append(f"Every sequence is {some(everywhere)}: no specificity, AUROC or AUPRC of it.")
    return notes, (*unlabelled, *absent, *everywhere)

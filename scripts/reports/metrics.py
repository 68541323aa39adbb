"""Labels and probabilities -> scores with 95 % intervals, as a dictionary that JSON can hold.

Intervals resample patients, not sequences: runs of one patient are alike, and counting them as independent
makes intervals too narrow. What cannot be computed is None with a reason, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from scripts.errors import bad_value
from scripts.keys import BINARY, CLASSES, LABEL, MULTILABEL, TASK, TASK_TYPES, TYPE
from scripts.reports.resampling import (
    BALANCED_ACCURACY,
    CLASS_METRICS,
    MACRO_AUROC,
    OVERALL_METRICS,
    decisions,
    one_hot,
    patient_draws,
    resampled,
)

CONFIDENCE = 0.95
SUM_TOLERANCE = 0.01  # a row of 1,000 half-precision softmax outputs is off by about this much

Estimate = dict[str, float | None]


def score(
    labels: ArrayLike,
    probabilities: ArrayLike,
    task_type: str,
    classes: Sequence[str],
    patients: Sequence[object],
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of one split, overall and per class, each with value, low and high.

    What cannot be computed is None, and `notes` says why. Balanced accuracy is the mean sensitivity of the
    classes; for multilabel tasks the mean of (sensitivity + specificity) / 2, and accuracy asks for all
    classes of a sequence to be right.

    Args:
        labels: class indices, (N,); zeros and ones, (N, K), for a multilabel task.
        probabilities: one column per class, also when there are two, (N, K).
        task_type: binary, multiclass or multilabel.
        classes: K names.
        patients: who each sequence belongs to, N; only their number is reported.
        num_resamples: resamples behind each interval; 0 leaves intervals out.
        seed: of the resampling.
    """
    truth, scores, group = checked(labels, probabilities, task_type, classes, patients)
    num_patients = int(group.max()) + 1
    draws = patient_draws(num_patients, num_resamples, seed)
    values = resampled(truth, scores, task_type, group, draws)
    intervals = Intervals(num_patients, missing_classes(truth, classes))
    result: dict[str, Any] = {
        "num_sequences": len(truth),
        "num_patients": num_patients,
        "num_resamples": num_resamples,
        "seed": seed,
        CLASSES: list(classes),
    }
    for name in OVERALL_METRICS:
        result[name] = intervals.estimate(name, values[name])
    result["per_class"] = {
        str(label): {"num": int(truth[:, k].sum())}
        | {name: intervals.estimate(name, values[name][:, k], str(label)) for name in CLASS_METRICS}
        for k, label in enumerate(classes)
    }
    if task_type != MULTILABEL:
        predicted = decisions(scores, task_type)
        result["confusion"] = (truth.T.astype(int) @ predicted.astype(int)).tolist()  # rows: true class
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
) -> dict[str, Any]:
    """How much higher a scores than b on the same sequences, with both seeing the same resamples."""
    if metric not in OVERALL_METRICS:
        raise ValueError(bad_value("paired difference", "metric", metric, "one of " + ", ".join(OVERALL_METRICS)))
    truth, scores_a, group = checked(labels, probabilities_a, task_type, classes, patients)
    _, scores_b, _ = checked(labels, probabilities_b, task_type, classes, patients)
    num_patients = int(group.max()) + 1
    draws = patient_draws(num_patients, num_resamples, seed)
    a, b = (
        resampled(truth, scores, task_type, group, draws, rank=metric == MACRO_AUROC)[metric]
        for scores in (scores_a, scores_b)
    )
    intervals = Intervals(num_patients, missing_classes(truth, classes))
    difference: dict[str, Any] = dict(intervals.estimate(metric, a - b))
    return difference | {"metric": metric, "notes": intervals.all_notes()}


def checked(
    labels: ArrayLike,
    probabilities: ArrayLike,
    task_type: str,
    classes: Sequence[str],
    patients: Sequence[object],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth (N, K) bool, probabilities (N, K) float64 and each sequence's patient number (N,) int.

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
    largest = 1 if task_type == MULTILABEL else num_classes - 1
    unknown = ~np.isin(found, np.arange(largest + 1))
    if unknown.any():
        text = f"{found[unknown].flat[0]} ({unknown.sum()} of {found.size} labels are unknown)"
        raise ValueError(bad_value("split", LABEL, text, f"whole numbers from 0 to {largest}"))
    truth = found.astype(bool) if task_type == MULTILABEL else one_hot(found.astype(int), num_classes)
    group = np.unique([str(patient) for patient in patients], return_inverse=True)[1]
    return truth, scores, group


def missing_classes(truth: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Notes on the classes that no sequence, or every sequence, of the split has."""
    counts = truth.sum(axis=0)
    absent = [str(name) for name, count in zip(classes, counts, strict=True) if count == 0]
    everywhere = [str(name) for name, count in zip(classes, counts, strict=True) if count == len(truth)]
    notes = []
    if absent:
        notes.append(f"No sequence is {', '.join(absent)}: only specificity is given, macro scores leave it out.")
    if everywhere:
        notes.append(f"Every sequence is {', '.join(everywhere)}: no specificity, AUROC or AUPRC of it.")
    return notes


@dataclass
class Intervals:
    """Turns resampled values into value, low and high, and keeps account of what could not be given.

    Quantiles are widened for the number of patients (expanded percentile, Hesterberg 2015, section 4.4.2):
    plain ones are too narrow for few patients, as the variance of a resample divides by n, not n - 1.
    """

    num_patients: int
    notes: list[str] = field(default_factory=list)
    constant: dict[str, list[str]] = field(default_factory=dict)  # whose: which metrics
    partial: dict[str, int] = field(default_factory=dict)  # whose: resamples left
    num_resamples: int = 0

    def estimate(self, name: str, values: np.ndarray, whose: str = "all classes") -> Estimate:
        """Value and 95 % limits of one metric.

        Args:
            name: the metric, for the notes.
            values: of the data itself, then of each resample, (1 + R,).
            whose: the class it belongs to, for the notes.
        """
        value, samples = float(values[0]), values[1:]
        self.num_resamples = len(samples)
        if np.isnan(value):
            return {"value": None, "low": None, "high": None}
        low = high = None
        defined = samples[~np.isnan(samples)]
        if len(samples) and self.num_patients > 1:
            if len(defined) < len(samples):
                self.partial[whose] = min(len(defined), self.partial.get(whose, len(defined)))
            if len(defined) and np.ptp(defined) < 1e-12:
                self.constant.setdefault(whose, []).append(name.replace("_", " "))
            elif 2 * len(defined) >= len(samples):
                low, high = (float(limit) for limit in np.quantile(defined, self.quantiles()))
        return {"value": value, "low": low, "high": high}

    def quantiles(self) -> tuple[float, float]:
        """Where to cut the resampled values for a 95 % interval."""
        n = self.num_patients
        tail = (1 - CONFIDENCE) / 2
        low = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))
        return low, 1 - low

    def all_notes(self) -> list[str]:
        """What is null or weak and why, in sentences."""
        notes = list(self.notes)
        if self.num_patients == 1:
            notes.append("One patient only: there is nothing to resample, so no intervals.")
        if self.constant:
            whose = "; ".join(f"{whose}: {', '.join(names)}" for whose, names in self.constant.items())
            notes.append(f"No interval, as every resample gives the same value, which is no certainty: {whose}.")
        if self.partial:
            counts = ", ".join(f"{whose} {count}" for whose, count in self.partial.items())
            notes.append(
                f"Resamples where a score is not defined are left out; of {self.num_resamples} remain, "
                f"{counts}. Fewer than half give no interval."
            )
        return notes

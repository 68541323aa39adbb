"""A named split -> thresholds on its probabilities; another split -> what they give there.

A threshold chosen on the split it is judged on looks better than it is, so it carries the name of its split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_curve

from scripts.errors import bad_value
from scripts.keys import BINARY
from scripts.reports.intervals import Intervals, some
from scripts.reports.metrics import checked, missing
from scripts.reports.resampling import (
    BALANCED_ACCURACY,
    F1,
    NPV,
    PRECISION,
    SENSITIVITY,
    SPECIFICITY,
    by_class,
    patient_draws,
)

YOUDEN = "youden"  # sensitivity + specificity as high as it goes; of equal ones the most specific
RULES = (YOUDEN, SPECIFICITY, SENSITIVITY)
THRESHOLD_METRICS = (SENSITIVITY, SPECIFICITY, PRECISION, NPV, F1, BALANCED_ACCURACY)


def choose_thresholds(
    labels: ArrayLike,
    probabilities: ArrayLike,
    task_type: str,
    classes: Sequence[str],
    split: str,
    rule: str = YOUDEN,
    target: float | None = None,
) -> dict[str, Any]:
    """Probabilities from which a class is called, each class against the others, chosen on one split.

    They lie half-way between the lowest score that is called and the next one below.

    Args:
        labels, probabilities, task_type, classes: as `metrics.score` takes them; of a binary task the second class
            alone gets a threshold.
        split: the name of this split, carried in the result.
        rule: `youden`; `specificity`, the most sensitive threshold that is at least as specific as `target`; or
            `sensitivity`, the most specific one that is at least as sensitive.
        target: in (0, 1], for the latter two.

    Returns:
        `split`, `rule`, `target`, `num_sequences`; `thresholds`, per class, None where there is none; `notes`.
    """
    if rule not in RULES:
        raise ValueError(bad_value("thresholds", "rule", rule, "one of " + ", ".join(RULES)))
    if (target is None) != (rule == YOUDEN) or (target is not None and not 0 < target <= 1):
        allowed = "none for youden" if rule == YOUDEN else "above 0, up to 1"
        raise ValueError(bad_value(f"threshold at fixed {rule}", "target", target, allowed))
    found = checked(labels, probabilities, task_type, classes, range(len(np.asarray(probabilities))))
    thresholds: dict[str, float | None] = {}
    for k in range(1 if task_type == BINARY else 0, len(classes)):
        known = found.known[:, k]
        thresholds[str(classes[k])] = _threshold(found.truth[known, k], found.scores[known, k], rule, target or 0.0)
    without = [name for name, value in thresholds.items() if value is None]
    notes = [f"No threshold on split {split} for {some(without)}: none is better than calling nobody."]
    return {
        "split": split,
        "rule": rule,
        "target": target,
        "num_sequences": len(found.truth),
        "thresholds": thresholds,
        "notes": notes if without else [],
    }


def _threshold(positive: np.ndarray, scores: np.ndarray, rule: str, target: float) -> float | None:
    """The threshold of one class from its labels and scores (M,); None where only calling nobody meets the rule."""
    if not positive.any() or positive.all():
        return None
    alarms, hits, levels = roc_curve(positive, scores, drop_intermediate=False)  # the first level calls nobody
    if rule == YOUDEN:
        place = int(np.argmax(np.round(hits - alarms, 12)))
    elif rule == SPECIFICITY:
        place = int(np.argmax(np.where(1 - alarms >= target - 1e-9, hits, -1)))
    else:
        place = int(np.argmax(hits >= target - 1e-9))
    if place == 0:
        return None
    between = (levels[place] + levels[min(place + 1, len(levels) - 1)]) / 2
    return float(between if place + 1 < len(levels) and between > levels[place + 1] else levels[place])


def at_thresholds(
    chosen: Mapping[str, Any],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[object],
    *,
    task_type: str,
    classes: Sequence[str],
    split: str,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """What thresholds of one split give on another, each with value, low and high.

    Args:
        chosen: as `choose_thresholds` returns it.
        labels, probabilities, patients, task_type, classes: of the split to be judged, as `metrics.score` takes them.
        split: its name.
        num_resamples, seed: of the intervals.

    Returns:
        `chosen`; `split`; `per_class`, for each class with a threshold `threshold`, `num_called`, `num_known` and
        the THRESHOLD_METRICS; `notes`.
    """
    found = checked(labels, probabilities, task_type, classes, patients)
    names = [str(name) for name in classes]
    strange = [name for name in chosen["thresholds"] if name not in names]
    if strange:
        raise ValueError(bad_value("thresholds", "classes", some(strange), "those of the split: " + some(names)))
    limits = np.array([chosen["thresholds"].get(name) for name in names], dtype=np.float64)  # None: NaN, calls nobody
    called = found.scores >= limits
    values, _ = by_class(found, called, patient_draws(found.num_patients, num_resamples, seed))
    own_notes, explained = missing(found, names)
    intervals = Intervals(found.num_patients, num_resamples, notes=own_notes, explained=explained)
    per_class = {
        names[k]: {
            "threshold": float(limits[k]),
            "num_called": int((called & found.known)[:, k].sum()),
            "num_known": int(found.known[:, k].sum()),
        }
        | {metric: intervals.estimate(metric, values[metric][:, k], names[k]) for metric in THRESHOLD_METRICS}
        for k in np.flatnonzero(~np.isnan(limits))
    }
    notes = [*chosen["notes"], *intervals.all_notes()]
    if split == chosen["split"]:
        notes.insert(0, f"Thresholds were chosen on split {split} itself: these numbers are too good.")
    return {"chosen": dict(chosen), "split": split, "per_class": per_class, "notes": notes}

"""Two runs on the same sequences -> their paired differences, and DeLong's test of the AUROC; as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from scripts.errors import bad_value
from scripts.keys import BINARY, CLASSES, IMAGE, LABEL, ORDERED, TASK, TYPE
from scripts.overrides import check_value
from scripts.pages import aligned, counted
from scripts.reports.intervals import CONFIDENCE, Intervals
from scripts.reports.metrics import checked, missing
from scripts.reports.predictions import PATIENT_NUMBER, PROBABILITIES
from scripts.reports.resampling import AUROC, patient_draws, resampled
from scripts.reports.wording import number_of, p_value_of, text_of, title_of

LOWER_IS_BETTER = ("brier", "ece", "log_loss")
REPEATED = (
    "Patients have several sequences, which DeLong's test takes for independent: its p values are too small and its "
    "intervals too narrow. Trust the intervals of the patient bootstrap."
)
SEVERAL = "The p values are of one class each and not corrected for their number."


def compare_runs(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    patients: Sequence[object],
    *,
    task_type: str,
    classes: Sequence[str],
    names: tuple[str, str] = ("run A", "run B"),
    ordered: bool = False,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """How two runs differ on the same sequences: every overall metric, and the AUROC of each class.

    Args:
        labels, patients, task_type, classes, ordered: as `metrics.score` takes them, the same for both.
        probabilities_a, probabilities_b: (N, K) each, rows in the same order.
        names: of the two runs.
        num_resamples, seed: of the patient bootstrap, whose resamples both runs share.

    Returns:
        `names`, `num_sequences`, `num_patients`; `overall`, per metric `a`, `b`, and a minus b as `value`, `low`,
        `high`; `per_class`, the AUROC of each class (of a binary task its second) in the same form, with `delong`
        as `delong` returns it; `lower_is_better`, metrics where a positive difference speaks for b; `notes`.
    """
    a, b = (
        checked(labels, found, task_type, classes, patients, ordered) for found in (probabilities_a, probabilities_b)
    )
    draws = patient_draws(a.num_patients, num_resamples, seed)
    (overall_a, class_a), (overall_b, class_b) = (resampled(split, draws) for split in (a, b))
    label_names = [str(name) for name in classes]
    notes, explained = missing(a, label_names)
    intervals = Intervals(a.num_patients, num_resamples, paired=True, notes=notes, explained=explained)

    def entry(metric: str, of_a: np.ndarray, of_b: np.ndarray, *whose: str) -> dict[str, Any]:
        both = {side: None if np.isnan(of[0]) else float(of[0]) for side, of in (("a", of_a), ("b", of_b))}
        return both | intervals.estimate(metric, of_a - of_b, *whose)

    overall = {metric: entry(metric, overall_a[metric], overall_b[metric]) for metric in overall_a}
    per_class = {}
    for k in range(1 if task_type == BINARY else 0, len(label_names)):
        known = a.known[:, k]
        per_class[label_names[k]] = entry(AUROC, class_a[AUROC][:, k], class_b[AUROC][:, k], label_names[k]) | {
            "delong": delong(a.truth[known, k], a.scores[known, k], b.scores[known, k])
        }
    notes = intervals.all_notes()
    if a.num_patients < len(a.truth):
        notes.append(REPEATED)
    if len(per_class) > 1:
        notes.append(SEVERAL)
    return {
        "names": list(names),
        "num_sequences": len(a.truth),
        "num_patients": a.num_patients,
        "overall": overall,
        "per_class": per_class,
        "lower_is_better": [metric for metric in overall if metric in LOWER_IS_BETTER],
        "notes": notes,
    }


def delong(positive: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> dict[str, Any]:
    """DeLong's test of two AUROCs on the same sequences (DeLong 1988), by the ranks of Sun and Xu 2014.

    Args:
        positive: (M,) bool.
        scores_a, scores_b: higher means more likely positive, (M,) each.

    Returns:
        `auroc_a` and `auroc_b`; their difference as `value`, `low`, `high`; `p_value`, two-sided; `note`. What
        cannot be computed is None: all of it without positives or negatives, the test with only one of either or
        where both rank alike.
    """
    positive = np.asarray(positive, dtype=bool)
    num_positives, num_negatives = int(positive.sum()), int((~positive).sum())
    found: dict[str, Any] = dict.fromkeys(("auroc_a", "auroc_b", "value", "low", "high", "p_value"))
    if not num_positives or not num_negatives:
        return found | {"note": "No positives or no negatives: there is no area."}
    areas, covariance = auroc_covariance(positive, np.stack([np.asarray(scores_a), np.asarray(scores_b)]))
    difference = float(areas[0] - areas[1])
    found |= {"auroc_a": float(areas[0]), "auroc_b": float(areas[1]), "value": difference}
    if min(num_positives, num_negatives) < 2:
        return found | {"note": "One positive or one negative: its variance is not known."}
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance < 1e-15:
        return found | {"note": "Both rank the sequences alike: there is nothing to test."}
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variance))
    p_value = float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    return found | {"low": difference - half, "high": difference + half, "p_value": p_value, "note": ""}


def auroc_covariance(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs of several scores of the same sequences and their covariance, in O(M log M).

    Args:
        positive: (M,) bool.
        scores: (S, M).

    Returns:
        (S,) and (S, S); the latter NaN with one positive or one negative only.
    """
    ranks = stats.rankdata(scores, axis=1)  # mid-ranks
    num_positives, num_negatives = positive.sum(), (~positive).sum()
    # Of each positive the share of negatives below it, of each negative the share of positives above: (S, each).
    above = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / num_negatives
    below = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / num_positives
    if min(num_positives, num_negatives) < 2:
        return above.mean(axis=1), np.full((len(scores), len(scores)), np.nan)
    return above.mean(axis=1), np.cov(above) / num_positives + np.cov(below) / num_negatives


def compare_reports(folder_a: str | Path, folder_b: str | Path, num_resamples: int = 2000, seed: int = 0) -> str:
    """The table of two evaluations of the same split, each a folder as evaluate.yaml leaves it.

    Raises:
        FileNotFoundError: a folder without predictions.json.
        ValueError: they are of other sequences, labels or classes, or a number is out of range.
    """
    check_value("num_resamples", str(num_resamples), 2000)
    check_value("seed", str(seed), 0)
    found = [_judged(Path(folder)) for folder in (folder_a, folder_b)]
    (task, rows_a), (other, rows_b) = found
    if task != other or rows_a.keys() != rows_b.keys():
        both = len(rows_a.keys() & rows_b.keys())
        said = f"{both} of {len(rows_a)} and {len(rows_b)} sequences in common" if task == other else "another task"
        raise ValueError(bad_value(folder_b, "predictions", said, f"the sequences and the task of {folder_a}"))
    odd = [name for name, row in rows_a.items() if row[LABEL] != rows_b[name][LABEL]]
    if odd:
        raise ValueError(bad_value(f"{folder_b}: {odd[0]}", LABEL, rows_b[odd[0]][LABEL], f"{rows_a[odd[0]][LABEL]}"))
    a, b = ([rows[name][PROBABILITIES] for name in rows_a] for rows in (rows_a, rows_b))
    labels, patients = ([row[key] for row in rows_a.values()] for key in (LABEL, PATIENT_NUMBER))
    options: dict[str, Any] = {"ordered": task[ORDERED], "num_resamples": num_resamples, "seed": seed}
    compared = compare_runs(labels, a, b, patients, task_type=task[TYPE], classes=task[CLASSES], **options)
    return comparison_table(compared, folder_a, folder_b)


def _judged(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Task and, by sequence, what an evaluation predicted."""
    path = folder / "predictions.json"
    if not path.is_file():
        way_out = "Make one: python -m monai.bundle run --config_file configs/evaluate.yaml"
        raise FileNotFoundError(bad_value(folder, path.name, "absent", "a folder that evaluate.yaml left", way_out))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        task, rows = content[TASK], {row[IMAGE]: row for row in content["predictions"]}
        whole = task.keys() >= {TYPE, CLASSES, ORDERED} and all(
            row.keys() >= {LABEL, PATIENT_NUMBER, PROBABILITIES} for row in rows.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(bad_value(path, "content", "not that of an evaluation", "what evaluate.yaml writes"))
    return task, rows


def comparison_table(compared: Mapping[str, Any], folder_a: str | Path, folder_b: str | Path) -> str:
    """What `compare_runs` found, as text: overall, then each class's AUROC with DeLong's p."""
    table = [("", "A", "B", "A minus B", "p, DeLong")]
    for metric, entry in compared["overall"].items():
        named = title_of(metric) + " (lower is better)" * (metric in compared["lower_is_better"])
        table.append((named, number_of(entry["a"]), number_of(entry["b"]), text_of(entry, signed=True), ""))
    for name, entry in compared["per_class"].items():
        values = (number_of(entry["a"]), number_of(entry["b"]), text_of(entry, signed=True))
        table.append((f"AUROC of {name}", *values, p_value_of(entry["delong"]["p_value"])))
    sequences, patients = counted(compared["num_sequences"], "sequence"), counted(compared["num_patients"], "patient")
    counts = f"{sequences} of {patients}; brackets hold paired 95 % intervals"
    return "\n".join([f"A: {folder_a}", f"B: {folder_b}", counts, *aligned(table), *compared["notes"]])

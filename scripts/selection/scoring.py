"""Out-of-fold logits of candidates -> their scores, best first, the chosen one, and what choosing adds to its score."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.reports.calibration import fit_temperature, probabilities_of
from scripts.reports.metrics import checked, paired_difference, score
from scripts.reports.resampling import (
    BALANCED_ACCURACY,
    LIKELIHOOD,
    MACRO_AUROC,
    Split,
    patient_draws,
    resampled,
)
from scripts.selection.exams import Exams
from scripts.selection.search import Candidate

SHOWN = (LIKELIHOOD, BALANCED_ACCURACY, MACRO_AUROC)
OUT_OF_FOLD = "out of fold"


def score_candidates(
    candidates: Sequence[Candidate], exams: Exams, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Scores of each candidate over the predictions of all folds and repeats, and the choice among them.

    An exam is predicted once in each repeat by a model that did not see its patient; all of these predictions are
    scored together. A rank metric so compares probabilities of models that were trained apart, which rather lowers it
    (Forman and Scholz 2010). Intervals resample patients, with all predictions of each. The likeliest candidate is
    chosen: likelihood is what training chooses its epoch by, and moves where few exams make accuracy jump. One that
    lacks a fold is no candidate for that, as its score is of other exams.

    Args:
        candidates: of `search`.
        exams: that were predicted.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `candidates`, best first, each with `settings`, `scores`, `scores_all` as `metrics.score` returns them,
        `below_chosen`, the likelihood it lacks to the chosen one with a paired interval, `best_epochs`, `epochs`,
        their median, `failures`, `warnings`; `chosen`, its settings, or None; `corrected`, the scores of the chosen
        one without what choosing adds, or None for a single candidate; `temperature`, as
        `calibration.fit_temperature` returns it, of the chosen one.
    """
    task = exams.task
    options: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    rows = []
    for candidate in candidates:
        labels, logits, patients = stacked(candidate, exams)
        entry: dict[str, Any] = {
            "settings": candidate.settings,
            "best_epochs": candidate.best_epochs,
            "epochs": round(statistics.median(candidate.best_epochs)) if candidate.best_epochs else None,
            "failures": candidate.failures,
            "warnings": candidate.warnings,
            "scores_all": None,
            "below_chosen": None,
        }
        if len(labels):
            probabilities = probabilities_of(logits, task.type)
            data = (labels, probabilities, task.type, task.classes, patients)
            entry["scores_all"] = score(*data, **options, ordered=task.ordered)
            entry["scores"] = {name: entry["scores_all"][name] for name in SHOWN}
        else:
            entry["scores"] = {name: {"value": None, "low": None, "high": None} for name in SHOWN}
        rows.append((candidate, entry))
    rows.sort(key=lambda row: (bool(row[0].failures), -(row[1]["scores"][LIKELIHOOD]["value"] or 0.0)))
    complete = [candidate for candidate, entry in rows if not candidate.failures]
    found: dict[str, Any] = {
        "candidates": [entry for _, entry in rows],
        "chosen": complete[0].settings if complete else None,
        "corrected": None,
        "temperature": None,
    }
    if complete:
        labels, logits, patients = stacked(complete[0], exams)
        best = probabilities_of(logits, task.type)
        found["temperature"] = fit_temperature(logits, labels, task.type, task.classes, OUT_OF_FOLD)
        splits = [checked(labels, best, task.type, task.classes, patients)]
        for candidate, entry in rows[1 : len(complete)]:
            other = probabilities_of(stacked(candidate, exams)[1], task.type)
            splits.append(checked(labels, other, task.type, task.classes, patients))
            entry["below_chosen"] = paired_difference(
                labels, best, other, patients, LIKELIHOOD, task_type=task.type, classes=task.classes, **options
            )
        if len(splits) > 1 and num_resamples:
            found["corrected"] = corrected_for_choice(splits, num_resamples, seed)
    return found


def stacked(candidate: Candidate, exams: Exams) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, logits (n, K) and patients of all predictions there are, one repeat after the other."""
    repeats = len(candidate.logits)
    logits = candidate.logits.reshape(-1, candidate.logits.shape[2])  # (R * N, K)
    there = ~np.isnan(logits).any(axis=1)
    labels = np.concatenate([exams.labels] * repeats)
    return labels[there], logits[there], [exams.patients[n % len(exams.patients)] for n in np.flatnonzero(there)]


def corrected_for_choice(splits: Sequence[Split], num_resamples: int, seed: int) -> dict[str, dict[str, float | None]]:
    """Scores that the chosen candidate can be expected to have, with 95 % intervals.

    The best of several owes part of its score to luck on the very exams that it was chosen by. So the choice is made
    again in each resample of patients, and judged by the patients who are not in it; mean and percentiles of that are
    given (Tsamardinos, Greasidou and Borboudakis 2018, Machine Learning 107, 1895-1922, who call it BBC-CV).

    Args:
        splits: predictions of each candidate on the same exams.
        num_resamples: of patients.
        seed: of the resampling.
    """
    inside = patient_draws(splits[0].num_patients, num_resamples, seed)[1 : 1 + num_resamples]  # (R, G)
    outside = (inside == 0).astype(np.float64)
    used = outside.any(axis=1)  # of few patients a resample may have them all
    inside, outside = inside[used], outside[used]
    likelihood = np.stack([resampled(split, inside, rank=False)[0][LIKELIHOOD] for split in splits])  # (candidates, R)
    chosen = likelihood.argmax(axis=0)
    judged = [resampled(split, outside)[0] for split in splits]
    found = {}
    for name in SHOWN:
        values = np.stack([scores[name] for scores in judged])[chosen, np.arange(len(chosen))]
        values = values[~np.isnan(values)]
        ends = np.quantile(values, [0.025, 0.975]) if len(values) else (None, None)
        estimate = (values.mean() if len(values) else None, *ends)
        found[name] = {
            key: None if number is None else float(number)
            for key, number in zip(("value", "low", "high"), estimate, strict=True)
        }
    return found

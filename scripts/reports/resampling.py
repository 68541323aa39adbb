"""Decisions and ranks -> each metric in the data and in every resample of its patients, as arrays.

A resample is a row of multiplicities, one per patient, so a metric is computed for all resamples at once:
(1 + R, G) multiplicities in, (1 + R,) or (1 + R, K) values out, row 0 those of the data itself. In a resample
as in the data, a macro score is the mean over the classes that occur.
"""

from __future__ import annotations

import numpy as np

from scripts.keys import MULTILABEL

BALANCED_ACCURACY = "balanced_accuracy"
MACRO_AUROC = "macro_auroc"
ACCURACY = "accuracy"
MACRO_F1 = "macro_f1"
OVERALL_METRICS = (BALANCED_ACCURACY, MACRO_AUROC, ACCURACY, MACRO_F1)
AUROC, AUPRC, SENSITIVITY, SPECIFICITY, F1 = "auroc", "auprc", "sensitivity", "specificity", "f1"
CLASS_METRICS = (SENSITIVITY, SPECIFICITY, F1, AUROC, AUPRC)

MULTILABEL_THRESHOLD = 0.5
CHUNK_VALUES = 1 << 16  # resamples x sequences ranked at once: 0.5 MB, stays in the processor's cache


def one_hot(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices (N,) as (N, K) bool."""
    return indices[:, None] == np.arange(num_classes)


def decisions(probabilities: np.ndarray, task_type: str) -> np.ndarray:
    """Which classes are predicted, (N, K) bool: the first most likely one; for multilabel all from 0.5 on."""
    if task_type == MULTILABEL:
        return probabilities >= MULTILABEL_THRESHOLD
    return one_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def patient_draws(num_patients: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each resample holds each patient, (1 + R, G) float64; row 0 is the data itself, all ones."""
    drawn = np.random.default_rng(seed).multinomial(
        num_patients, np.full(num_patients, 1 / num_patients), size=num_resamples
    )
    return np.concatenate([np.ones((1, num_patients)), drawn])


def resampled(
    truth: np.ndarray,
    probabilities: np.ndarray,
    task_type: str,
    group: np.ndarray,
    draws: np.ndarray,
    rank: bool = True,
) -> dict[str, np.ndarray]:
    """Each metric in each resample: overall ones (1 + R,), per class (1 + R, K); NaN where undefined.

    Args:
        truth: (N, K) bool.
        probabilities: (N, K).
        task_type: decides what a prediction is, and what balanced accuracy is the mean of.
        group: patient number of each sequence, (N,).
        draws: multiplicity of each patient, (1 + R, G).
        rank: also compute AUROC and AUPRC, which take most of the time.
    """
    predicted = decisions(probabilities, task_type)

    def count(events: np.ndarray) -> np.ndarray:  # (N, K) -> (1 + R, K), summed by patient first
        per_patient = np.zeros((draws.shape[1], events.shape[1]))
        np.add.at(per_patient, group, events)
        return draws @ per_patient

    hits, misses = count(truth & predicted), count(truth & ~predicted)
    alarms, passes = count(~truth & predicted), count(~truth & ~predicted)
    present = hits + misses > 0
    values = {
        SENSITIVITY: ratio(hits, hits + misses),
        SPECIFICITY: ratio(passes, passes + alarms),
        F1: np.where(present, ratio(2 * hits, 2 * hits + misses + alarms), np.nan),
    }
    right = (truth == predicted).all(axis=1, keepdims=True)
    values[ACCURACY] = ratio(count(right), count(np.ones_like(right)))[:, 0]
    values[MACRO_F1] = mean_of_defined(values[F1])
    halves = (values[SENSITIVITY] + values[SPECIFICITY]) / 2
    values[BALANCED_ACCURACY] = mean_of_defined(halves if task_type == MULTILABEL else values[SENSITIVITY])
    if rank:
        values[AUROC], values[AUPRC] = ranking(truth, probabilities, group, draws)
        values[MACRO_AUROC] = mean_of_defined(values[AUROC])
    return values


def ranking(
    truth: np.ndarray, probabilities: np.ndarray, group: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and AUPRC (average precision) of each class against the others in each resample, (1 + R, K)."""
    auroc, auprc = (np.full((len(draws), truth.shape[1]), np.nan) for _ in range(2))
    step = max(1, CHUNK_VALUES // len(truth))
    for k in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-probabilities[:, k], kind="stable")
        falling, positive = -probabilities[order, k], truth[order, k]
        # Sequences of equal score enter together, and only the scores of positives matter: (U,) of them.
        levels, first = np.unique(falling[positive], return_index=True)
        before, through = np.searchsorted(falling, levels, "left"), np.searchsorted(falling, levels, "right")
        for start in range(0, len(draws), step):
            rows = slice(start, start + step)
            weights = draws[rows].take(group[order], axis=1)
            entered = np.zeros((len(weights), len(truth) + 1))
            np.cumsum(weights, axis=1, out=entered[:, 1:])
            new_hits = np.add.reduceat(weights[:, positive], first, axis=1)
            hits = np.cumsum(new_hits, axis=1)
            all_hits, all_alarms = hits[:, -1], entered[:, -1] - hits[:, -1]
            alarms_twice = entered[:, before] + entered[:, through] - 2 * hits + new_hits  # before and through
            area = (new_hits * (all_alarms[:, None] - alarms_twice / 2)).sum(axis=1)
            auroc[rows, k] = ratio(area, all_hits * all_alarms)
            precision = hits / np.maximum(entered[:, through], 1)  # multiplicities are whole: below 1 is 0 of 0
            recalled = ratio((new_hits * precision).sum(axis=1), all_hits)
            auprc[rows, k] = np.where(all_alarms > 0, recalled, np.nan)
    return auroc, auprc


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the classes that are not NaN, (R, K) -> (R,); NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))

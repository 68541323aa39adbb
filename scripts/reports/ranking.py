"""Probabilities of one class -> AUROC, AUPRC and sensitivity at a specificity, in every resample of patients.

Only the scores of positives matter: a sequence without the finding counts by how many of them it outranks. So the
sequences are summed by patient and by place between those scores, once, and a resample is one product with that
sparse table. The cost follows the number of sequences, whether they are of five classes or of a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

CHUNK_VALUES = 1 << 18  # places x resamples at once: 2 MB an array
SLACK = 1e-6  # false alarms are whole numbers; (1 - 0.9) * 10 is not quite 1


def ranked(
    positive: np.ndarray,
    scores: np.ndarray,
    group: np.ndarray,
    draws: np.ndarray,
    specificities: Sequence[float] = (),
) -> np.ndarray:
    """AUROC, AUPRC (average precision), then sensitivity at each specificity, in each resample.

    Sensitivity at a specificity is the highest that a threshold reaches without falling below it.

    Args:
        positive: (M,) bool.
        scores: higher means more likely positive, (M,).
        group: patient number of each, (M,).
        draws: multiplicity of each patient, (R, G).
        specificities: each in [0, 1].

    Returns:
        (R, 2 + number of specificities); NaN where a resample lacks positives or negatives.
    """
    out = np.full((len(draws), 2 + len(specificities)), np.nan)
    if not positive.any():
        return out
    levels = np.unique(-scores[positive])  # (U,) scores of positives, highest first
    # 2u: between level u - 1 and level u; 2u + 1: equal to level u. Equal scores enter together.
    place = np.searchsorted(levels, -scores, "left") + np.searchsorted(levels, -scores, "right")
    gains = table(place[positive] // 2, group[positive], (len(levels), draws.shape[1]))
    losses = table(place[~positive], group[~positive], (2 * len(levels) + 1, draws.shape[1]))
    step = max(64, CHUNK_VALUES // losses.shape[0])
    for start in range(0, len(draws), step):
        rows = slice(start, start + step)
        weights = np.ascontiguousarray(draws[rows].T)  # (G, step)
        new_hits = gains @ weights  # (U, step)
        hits, alarms = np.cumsum(new_hits, axis=0), np.cumsum(losses @ weights, axis=0)
        before, through = alarms[:-1:2], alarms[1::2]  # (U, step)
        all_hits, all_alarms = hits[-1], alarms[-1]
        both = all_hits * all_alarms > 0
        recall_of = np.where(both, all_hits, 0)
        area = (new_hits * (all_alarms - (before + through) / 2)).sum(axis=0)
        out[rows, 0] = ratio(area, all_hits * all_alarms)
        precision = hits / np.maximum(hits + through, 1)  # multiplicities are whole: below 1 is 0 of 0
        out[rows, 1] = ratio((new_hits * precision).sum(axis=0), recall_of)
        for column, specificity in enumerate(specificities, start=2):
            allowed = through <= (1 - specificity) * all_alarms + SLACK
            out[rows, column] = ratio((hits * allowed).max(axis=0), recall_of)
    return out


def table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    """How often each pair of row and column occurs, sparse."""
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)

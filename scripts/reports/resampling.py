"""Decisions, probabilities and ranks -> each metric in the data and in every resample of its patients, as arrays.

A resample is a row of multiplicities, one per patient, so a metric is computed for all resamples at once:
(R, G) multiplicities in, (R,) or (R, K) values out, row 0 those of the data itself. In a resample as in the data,
a macro score is the mean over the classes where it is defined. Labels that are not known count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
from scripts.reports.ranking import ranked, ratio, table

BALANCED_ACCURACY, MACRO_AUROC, ACCURACY, MACRO_F1 = "balanced_accuracy", "macro_auroc", "accuracy", "macro_f1"
MICRO_BALANCED_ACCURACY, MICRO_F1 = "micro_balanced_accuracy", "micro_f1"
MICRO_AUROC, MACRO_AUPRC, MICRO_AUPRC = "micro_auroc", "macro_auprc", "micro_auprc"
MCC, KAPPA = "mcc", "quadratic_kappa"
BRIER, ECE, LOG_LOSS, LIKELIHOOD = "brier", "ece", "log_loss", "likelihood"
AUROC, AUPRC, F1 = "auroc", "auprc", "f1"
SENSITIVITY, SPECIFICITY, PRECISION, NPV = "sensitivity", "specificity", "precision", "npv"

COUNT_METRICS = (BALANCED_ACCURACY, ACCURACY, MACRO_F1, MICRO_F1, MICRO_BALANCED_ACCURACY, MCC)
PROBABILITY_METRICS = (BRIER, ECE, LOG_LOSS, LIKELIHOOD)
RANK_METRICS = (MACRO_AUROC, MICRO_AUROC, MACRO_AUPRC, MICRO_AUPRC)
CLASS_METRICS = (SENSITIVITY, SPECIFICITY, PRECISION, NPV, F1, BALANCED_ACCURACY, MCC, AUROC, AUPRC, BRIER, ECE)

MULTILABEL_THRESHOLD = 0.5
NUM_BINS = 10  # equal width, right-closed, as Naeini et al. 2015; Guo et al. 2017 use 15 on 10,000 images and more
MAX_BLOCKS = 200
CHUNK_COLUMNS = 32  # classes whose bins are summed at once
SMALLEST = float(np.finfo(np.float64).eps)  # scikit-learn's floor of a probability in the log loss


@dataclass(frozen=True)
class Split:
    """The sequences that are scored.

    Attributes:
        truth: (N, K) bool.
        known: which labels there are, (N, K) bool; all of them but for a multilabel task.
        scores: probabilities, (N, K) float64.
        group: patient number of each sequence, (N,).
        task_type: decides what a prediction is, and what balanced accuracy is the mean of.
        ordered: classes are grades, so how far a prediction is off counts in the quadratic kappa.
    """

    truth: np.ndarray
    known: np.ndarray
    scores: np.ndarray
    group: np.ndarray
    task_type: str
    ordered: bool = False

    @property
    def num_patients(self) -> int:
        return int(self.group.max()) + 1


def at_specificity(specificity: float) -> str:
    """The name of the sensitivity where specificity is at least this."""
    return f"sensitivity_at_specificity_{round(100 * specificity, 6):g}"


def one_hot(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices (N,) as (N, K) bool."""
    return indices[:, None] == np.arange(num_classes)


def decisions(probabilities: np.ndarray, task_type: str) -> np.ndarray:
    """Which classes are predicted, (N, K) bool: the first most likely one; for multilabel all from 0.5 on."""
    if task_type == MULTILABEL:
        return probabilities >= MULTILABEL_THRESHOLD
    return one_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def patient_draws(num_patients: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each patient counts, (R, G) float64: in the data, all ones; in each resample; in a jackknife.

    The jackknife leaves each patient out in turn, or each of 200 equal blocks where there are more, as the skewness
    that intervals take from it needs no more. Without resamples there is none.
    """
    if num_resamples == 0:
        return np.ones((1, num_patients))
    drawn = np.random.default_rng(seed).multinomial(
        num_patients, np.full(num_patients, 1 / num_patients), size=num_resamples
    )
    num_blocks = min(num_patients, MAX_BLOCKS)
    left_out = one_hot(np.arange(num_patients) * num_blocks // num_patients, num_blocks).T
    return np.concatenate([np.ones((1, num_patients)), drawn, ~left_out])


def resampled(
    split: Split, draws: np.ndarray, specificities: Sequence[float] = (), rank: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Each metric in each resample: overall, (R,) each, and per class, (R, K) each; NaN where undefined.

    Args:
        split: what is scored.
        draws: multiplicity of each patient, (R, G).
        specificities: where sensitivity is also taken.
        rank: also compute what needs ranks, which takes most of the time.
    """
    overall, per_class = counted(split, draws)
    for found in (probable(split, draws), ranking(split, draws, specificities) if rank else ({}, {})):
        overall |= found[0]
        per_class |= found[1]
    return overall, per_class


def by_class(
    split: Split, predicted: np.ndarray, draws: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What follows for each class from decisions (N, K) bool; and its hits, misses, false alarms and passes, (R, K)."""
    truth = split.truth
    hits, misses, alarms, passes = (
        summed(split, events & split.known, draws)
        for events in (truth & predicted, truth & ~predicted, ~truth & predicted, ~truth & ~predicted)
    )
    positives, negatives = hits + misses, passes + alarms
    sensitivity, specificity = ratio(hits, positives), ratio(passes, negatives)
    spread = np.sqrt((hits + alarms) * (passes + misses) * positives * negatives)
    correlation = zero_for_constant(hits * passes - alarms * misses, spread)
    found = {
        SENSITIVITY: sensitivity,
        SPECIFICITY: specificity,
        PRECISION: ratio(hits, hits + alarms),
        NPV: ratio(passes, passes + misses),
        F1: np.where(positives > 0, ratio(2 * hits, 2 * hits + misses + alarms), np.nan),
        BALANCED_ACCURACY: (sensitivity + specificity) / 2,
        MCC: np.where(positives * negatives > 0, correlation, np.nan),
    }
    return found, (hits, misses, alarms, passes)


def counted(split: Split, draws: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What follows from decisions: overall and per class."""
    predicted = decisions(split.scores, split.task_type)
    per_class, counts = by_class(split, predicted, draws)
    positives, called = counts[0] + counts[1], counts[0] + counts[2]
    hits, misses, alarms, passes = (count.sum(axis=1) for count in counts)
    labelled = np.asarray(split.known.any(axis=1))
    right = ((split.truth == predicted) | ~split.known).all(axis=1) & labelled
    several = split.task_type == MULTILABEL
    overall = {
        BALANCED_ACCURACY: mean_of_defined(per_class[BALANCED_ACCURACY if several else SENSITIVITY]),
        ACCURACY: share(split, right, labelled, draws),
        MACRO_F1: mean_of_defined(per_class[F1]),
        MICRO_F1: ratio(2 * hits, 2 * hits + misses + alarms),
        MICRO_BALANCED_ACCURACY: (ratio(hits, hits + misses) + ratio(passes, passes + alarms)) / 2,
        MCC: mean_of_defined(per_class[MCC]) if several else gorodkin(hits, positives, called),
    }
    if split.ordered:
        overall[KAPPA] = quadratic_kappa(split, draws, positives, called)
    return overall, per_class


def gorodkin(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Multiclass MCC (Gorodkin 2004): right (R,), sequences of each true and of each predicted class (R, K)."""
    total = true.sum(axis=1)
    spread_true = total**2 - (true**2).sum(axis=1)
    spread = np.sqrt(spread_true * (total**2 - (predicted**2).sum(axis=1)))
    return np.where(spread_true > 0, zero_for_constant(right * total - (true * predicted).sum(axis=1), spread), np.nan)


def zero_for_constant(numerator: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Their quotient; 0 where the spread is, as scikit-learn's MCC has it for a model that always says the same."""
    return np.divide(numerator, spread, out=np.zeros(spread.shape), where=spread > 0)


def quadratic_kappa(split: Split, draws: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights: one minus squared distance of grades seen by that of chance, (R,)."""
    grades = np.arange(split.truth.shape[1])
    distance = (split.truth.argmax(axis=1) - split.scores.argmax(axis=1)) ** 2
    total = true.sum(axis=1)
    by_chance = (
        true @ grades**2 + predicted @ grades**2 - 2 * (true @ grades) * (predicted @ grades) / np.maximum(total, 1)
    )
    return 1 - ratio(summed(split, distance[:, None], draws)[:, 0], np.where(by_chance > 1e-9, by_chance, 0))


def probable(split: Split, draws: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What follows from the values of probabilities: overall and per class.

    Of a binary task, Brier score and ECE are those of its second class; of a multiclass one the Brier score sums
    over the classes, as scikit-learn has it, and the ECE is that of the likeliest class; of a multilabel one both
    are the mean over classes.
    """
    truth, known, scores = split.truth, split.known, split.scores
    labelled = summed(split, known, draws)  # (R, K)
    squares = np.where(known, (scores - truth) ** 2, 0)
    per_class = {
        BRIER: ratio(summed(split, squares, draws), labelled),
        ECE: gap(split, scores, truth, known, draws),
    }
    likely = np.log(np.clip(np.where(truth, scores, 1 - scores), SMALLEST, 1))
    if split.task_type == MULTILABEL:
        loss = ratio(summed(split, np.where(known, -likely, 0), draws).sum(axis=1), labelled.sum(axis=1))
    else:
        loss = share(split, np.where(truth, -likely, 0).sum(axis=1), np.ones(len(truth)), draws)
    if split.task_type == MULTICLASS:
        right = (truth & decisions(scores, split.task_type)).any(axis=1, keepdims=True)
        overall = {
            BRIER: share(split, squares.sum(axis=1), np.ones(len(truth)), draws),
            ECE: gap(split, scores.max(axis=1, keepdims=True), right, np.ones_like(right), draws)[:, 0],
        }
    else:
        chosen = slice(1, None) if split.task_type == BINARY else slice(None)
        overall = {name: mean_of_defined(per_class[name][:, chosen]) for name in (BRIER, ECE)}
    return overall | {LOG_LOSS: loss, LIKELIHOOD: np.exp(-loss)}, per_class


def gap(split: Split, stated: np.ndarray, happened: np.ndarray, known: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Expected calibration error in each resample, (R, M): mean distance of stated and seen share over bins.

    Args:
        split: whose sequences these are.
        stated: a probability each, (N, M).
        happened: (N, M) bool.
        known: which of them count, (N, M) bool.
        draws: (R, G).
    """
    excess = np.where(known, stated - happened, 0)
    bins, num_columns = bins_of(stated), stated.shape[1]
    distance = np.zeros((len(draws), num_columns))
    for start in range(0, num_columns, CHUNK_COLUMNS):
        columns = np.arange(start, min(start + CHUNK_COLUMNS, num_columns))
        per_patient = np.zeros((draws.shape[1], len(columns), NUM_BINS))
        np.add.at(per_patient, (split.group[:, None], columns - start, bins[:, columns]), excess[:, columns])
        in_bins = draws @ per_patient.reshape(draws.shape[1], -1)
        distance[:, columns] = np.abs(in_bins).reshape(len(draws), len(columns), NUM_BINS).sum(axis=2)
    return ratio(distance, summed(split, known, draws))


def bins_of(probabilities: np.ndarray) -> np.ndarray:
    """The bin of each probability, from 0; bins are of equal width and hold their upper edge."""
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], probabilities, side="left")


def ranking(
    split: Split, draws: np.ndarray, specificities: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What follows from the order of probabilities: overall and per class, each class against the others."""
    truth, known, scores, group = split.truth, split.known, split.scores, split.group
    draws = np.asfortranarray(draws)  # patients are the rows of the products below
    columns = [
        ranked(truth[is_known, k], scores[is_known, k], group[is_known], draws, specificities)
        for k, is_known in enumerate(known.T)
    ]
    found = np.stack(columns, axis=-1)  # (R, metrics, K)
    names = (AUROC, AUPRC, *(at_specificity(value) for value in specificities))
    per_class = {name: found[:, place] for place, name in enumerate(names)}
    micro = ranked(truth[known], scores[known], group[np.nonzero(known)[0]], draws)
    overall = {name: mean_of_defined(per_class[name]) for name in names[2:]}
    overall |= {MACRO_AUROC: mean_of_defined(per_class[AUROC]), MACRO_AUPRC: mean_of_defined(per_class[AUPRC])}
    return overall | {MICRO_AUROC: micro[:, 0], MICRO_AUPRC: micro[:, 1]}, per_class


def summed(split: Split, events: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Sums of events in each resample, (N, M) -> (R, M), by patient first."""
    members = table(split.group, np.arange(len(split.group)), (draws.shape[1], len(split.group)))
    return draws @ (members @ events.astype(np.float64))


def share(split: Split, events: np.ndarray, of: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Events (N,) by the number of sequences that count, (N,) of zeros and ones, in each resample, (R,)."""
    return ratio(*summed(split, np.stack([events, of], axis=1).astype(np.float64), draws).T)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the classes that are not NaN, (R, K) -> (R,); NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1))

"""All resamples at once against scikit-learn on each resample spelled out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import MULTICLASS, MULTILABEL
from scripts.reports.resampling import (
    NUM_BINS,
    Split,
    at_specificity,
    bins_of,
    decisions,
    mean_of_defined,
    one_hot,
    patient_draws,
    resampled,
)


def test_draws_are_the_data_then_resamples_of_as_many_patients_then_each_patient_left_out():
    draws = patient_draws(12, 30, seed=0)
    assert draws.shape == (1 + 30 + 12, 12)
    assert (draws[0] == 1).all()
    assert (draws[1:31].sum(axis=1) == 12).all()
    assert len(np.unique(draws[1:31], axis=0)) == 30
    np.testing.assert_array_equal(draws[31:], 1 - np.eye(12))
    assert patient_draws(12, 0, seed=0).tolist() == [[1] * 12]


def test_jackknife_of_many_patients_leaves_out_blocks_that_share_none():
    left_out = 1 - patient_draws(1050, 3, seed=0)[4:]
    assert left_out.shape == (200, 1050)
    assert (left_out.sum(axis=0) == 1).all()
    assert set(left_out.sum(axis=1)) == {5, 6}


def one_label(labels, probabilities, group, num_classes, ordered=False):
    truth = one_hot(np.asarray(labels), num_classes)
    return Split(truth, np.ones_like(truth), probabilities, group, MULTICLASS, ordered)


def binned_error(stated, happened):
    """Expected calibration error by a loop over sequences, as its definition has it."""
    bins = [[] for _ in range(NUM_BINS)]
    for probability, outcome in zip(stated, happened, strict=True):
        place = next(b for b in range(NUM_BINS) if probability <= (b + 1) / NUM_BINS)
        bins[place].append((probability, outcome))
    gaps = [abs(np.mean([p for p, _ in held]) - np.mean([o for _, o in held])) * len(held) for held in bins if held]
    return sum(gaps) / len(stated)


def test_every_resample_equals_scikit_learn_on_its_repeated_sequences():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(15), 4)
    labels = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60).round(1)  # ties
    draws = patient_draws(15, 20, seed=1)
    overall, per_class = resampled(one_label(labels, probabilities, group, 3, ordered=True), draws, (0.8,))
    compared = 0
    for row, draw in enumerate(draws):
        index = np.repeat(np.arange(60), draw[group].astype(int))
        truth, scores = labels[index], probabilities[index]
        predicted = scores.argmax(axis=1)
        present = np.unique(truth)
        expected = {
            "accuracy": sk.accuracy_score(truth, predicted),
            "macro_f1": sk.f1_score(truth, predicted, labels=present, average="macro"),
            "mcc": sk.matthews_corrcoef(truth, predicted),
            "quadratic_kappa": sk.cohen_kappa_score(truth, predicted, weights="quadratic", labels=[0, 1, 2]),
            "micro_auroc": sk.roc_auc_score(one_hot(truth, 3).ravel(), scores.ravel()),
            "micro_auprc": sk.average_precision_score(one_hot(truth, 3).ravel(), scores.ravel()),
            "brier": ((scores - one_hot(truth, 3)) ** 2).sum(axis=1).mean(),
            "ece": binned_error(scores.max(axis=1), predicted == truth),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class predicted and not present
            expected["balanced_accuracy"] = sk.balanced_accuracy_score(truth, predicted)
        assert {name: overall[name][row] for name in expected} == pytest.approx(expected)
        for k in present:
            assert per_class["auroc"][row, k] == pytest.approx(sk.roc_auc_score(truth == k, scores[:, k]))
            area = sk.average_precision_score(truth == k, scores[:, k])
            assert per_class["auprc"][row, k] == pytest.approx(area)
            alarms, hits, _ = sk.roc_curve(truth == k, scores[:, k], drop_intermediate=False)
            assert per_class[at_specificity(0.8)][row, k] == pytest.approx(hits[alarms <= 0.2 + 1e-9].max())
            assert per_class["mcc"][row, k] == pytest.approx(sk.matthews_corrcoef(truth == k, predicted == k))
            assert per_class["ece"][row, k] == pytest.approx(binned_error(scores[:, k], truth == k))
            compared += 1
    assert compared > 55


def test_labels_not_known_change_no_resample():
    rng = np.random.default_rng(3)
    truth, scores = rng.random((80, 3)) < 0.4, rng.random((80, 3)).round(2)
    known = rng.random((80, 3)) < 0.8
    group, draws = rng.integers(0, 25, 80), patient_draws(25, 15, seed=0)
    noise = Split(np.where(known, truth, ~truth), known, np.where(known, scores, 1 - scores), group, MULTILABEL)
    first = resampled(Split(truth, known, scores, group, MULTILABEL), draws, (0.9,))
    other = resampled(noise, draws, (0.9,))
    compared = 0
    for found, again in zip(first, other, strict=True):
        assert found.keys() == again.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], again[name], err_msg=name)
            compared += 1
    assert compared > 20
    for k in range(3):
        area = sk.roc_auc_score(truth[known[:, k], k], scores[known[:, k], k])
        assert first[1]["auroc"][0, k] == pytest.approx(area)


@pytest.mark.parametrize("constant", ["CHUNK_VALUES", "CHUNK_COLUMNS"])
def test_resamples_in_chunks_equal_those_at_once(monkeypatch, constant):
    rng = np.random.default_rng(2)
    truth, probabilities = rng.random((50, 5)) < 0.4, rng.random((50, 5)).round(1)
    split = Split(truth, np.ones_like(truth), probabilities, np.arange(50), MULTILABEL)
    draws = patient_draws(50, 200, seed=0)
    whole = resampled(split, draws, (0.9,))
    module = "ranking" if constant == "CHUNK_VALUES" else "resampling"
    monkeypatch.setattr(f"scripts.reports.{module}.{constant}", 2)
    parts = resampled(split, draws, (0.9,))
    for found, again in zip(whole, parts, strict=True):
        for name in found:
            np.testing.assert_allclose(again[name], found[name], rtol=1e-12, err_msg=name)


def test_ranking_is_left_out_when_not_asked_for():
    split = one_label([0, 1], np.eye(2), np.arange(2), 2)
    overall, per_class = resampled(split, patient_draws(2, 3, seed=0), rank=False)
    assert "auroc" not in per_class
    assert "macro_auroc" not in overall
    assert "balanced_accuracy" in overall


def test_bins_hold_their_upper_edge_and_both_ends():
    assert bins_of(np.array([0.0, 0.1, 0.1000001, 0.5, 0.95, 1.0])).tolist() == [0, 0, 1, 4, 9, 9]


def test_decisions_take_the_first_of_equal_classes_and_multilabel_from_one_half():
    even = np.array([[0.5, 0.5]])
    assert decisions(even, MULTICLASS).tolist() == [[True, False]]
    assert decisions(even, MULTILABEL).tolist() == [[True, True]]


def test_mean_of_defined_skips_nan_and_is_nan_where_all_are():
    found = mean_of_defined(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [1.0, np.nan])

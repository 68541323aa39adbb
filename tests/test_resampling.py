"""All resamples at once against scikit-learn on each resample spelled out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import MULTICLASS, MULTILABEL
from scripts.reports.resampling import decisions, mean_of_defined, one_hot, patient_draws, resampled


def test_draws_begin_with_the_data_and_keep_the_number_of_patients():
    draws = patient_draws(12, 30, seed=0)
    assert draws.shape == (31, 12)
    assert (draws[0] == 1).all()
    assert (draws.sum(axis=1) == 12).all()
    assert len(np.unique(draws[1:], axis=0)) == 30


def test_every_resample_equals_scikit_learn_on_its_repeated_sequences():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(15), 4)
    labels = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60).round(1)  # ties
    draws = patient_draws(15, 20, seed=1)
    values = resampled(one_hot(labels, 3), probabilities, MULTICLASS, group, draws)
    compared = 0
    for row, draw in enumerate(draws):
        index = np.repeat(np.arange(60), draw[group].astype(int))
        truth, scores = labels[index], probabilities[index]
        predicted = scores.argmax(axis=1)
        present = np.unique(truth)
        assert values["accuracy"][row] == pytest.approx(sk.accuracy_score(truth, predicted))
        assert values["macro_f1"][row] == pytest.approx(sk.f1_score(truth, predicted, labels=present, average="macro"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class predicted and not present
            assert values["balanced_accuracy"][row] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
        for k in present:
            assert values["auroc"][row, k] == pytest.approx(sk.roc_auc_score(truth == k, scores[:, k]))
            area = sk.average_precision_score(truth == k, scores[:, k])
            assert values["auprc"][row, k] == pytest.approx(area)
            compared += 1
    assert compared > 55


def test_ranking_in_chunks_equals_ranking_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    truth, probabilities = rng.random((50, 2)) < 0.4, rng.random((50, 2)).round(1)
    arguments = (truth, probabilities, MULTILABEL, np.arange(50), patient_draws(50, 40, seed=0))
    whole = resampled(*arguments)
    monkeypatch.setattr("scripts.reports.resampling.CHUNK_VALUES", 120)
    parts = resampled(*arguments)
    np.testing.assert_allclose(parts["auroc"], whole["auroc"], rtol=1e-12)
    np.testing.assert_allclose(parts["auprc"], whole["auprc"], rtol=1e-12)


def test_ranking_is_left_out_when_not_asked_for():
    values = resampled(
        one_hot(np.array([0, 1]), 2),
        np.eye(2),
        MULTICLASS,
        np.arange(2),
        patient_draws(2, 3, seed=0),
        rank=False,
    )
    assert "auroc" not in values
    assert "balanced_accuracy" in values


def test_decisions_take_the_first_of_equal_classes_and_multilabel_from_one_half():
    even = np.array([[0.5, 0.5]])
    assert decisions(even, MULTICLASS).tolist() == [[True, False]]
    assert decisions(even, MULTILABEL).tolist() == [[True, True]]


def test_mean_of_defined_skips_nan_and_is_nan_where_all_are():
    found = mean_of_defined(np.array([[1.0, np.nan], [np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [1.0, np.nan])

"""Areas and sensitivities of one class against scikit-learn, with ties, few positives and resamples without any."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.reports.ranking import ranked, ratio
from scripts.reports.resampling import patient_draws

SPECIFICITIES = (0.5, 0.9, 0.95, 1.0)


def expected(positive, scores):
    alarms, hits, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    at = [hits[1 - alarms >= specificity - 1e-9].max() for specificity in SPECIFICITIES]
    return [sk.roc_auc_score(positive, scores), sk.average_precision_score(positive, scores), *at]


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("num_positives", [1, 2, 30, 119])
def test_ranks_equal_scikit_learn_in_every_resample(decimals, num_positives):
    rng = np.random.default_rng(num_positives)
    positive = rng.permutation(np.arange(120) < num_positives)
    scores = (rng.random(120) + 0.4 * positive).round(decimals)
    group, draws = rng.integers(0, 30, 120), patient_draws(30, 20, seed=0)
    found = ranked(positive, scores, group, draws, SPECIFICITIES)
    compared = 0
    for row, draw in zip(found, draws, strict=True):
        index = np.repeat(np.arange(120), draw[group].astype(int))
        if 0 < positive[index].sum() < len(index):
            assert row.tolist() == pytest.approx(expected(positive[index], scores[index]), abs=1e-9)
            compared += 1
        else:
            assert np.isnan(row).all()
    assert compared >= 10


def test_specificity_of_whole_false_alarms_is_met_in_spite_of_rounding():
    positive = np.array([False] * 10 + [True] * 2)  # one false alarm of ten leaves specificity 0.9 exactly
    scores = np.array([0.9, *np.linspace(0.1, 0.3, 9), 0.8, 0.95])
    found = ranked(positive, scores, np.arange(12), np.ones((1, 12)), (0.9, 0.91))
    assert found[0, 2:].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("positive", [np.zeros(5, dtype=bool), np.ones(5, dtype=bool), np.zeros(0, dtype=bool)])
def test_one_class_only_is_not_defined(positive):
    found = ranked(positive, np.linspace(0, 1, len(positive)), np.arange(len(positive)), np.ones((3, 5)), (0.9,))
    assert found.shape == (3, 3)
    assert np.isnan(found).all()


def test_equal_scores_have_half_the_area_and_no_sensitivity_at_a_specificity():
    found = ranked(np.arange(8) < 2, np.full(8, 0.5), np.arange(8), np.ones((1, 8)), (0.9,))
    assert found[0].tolist() == [0.5, 0.25, 0.0]


def test_ratio_of_zero_by_zero_is_nan():
    np.testing.assert_array_equal(ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0])), [0.5, np.nan])

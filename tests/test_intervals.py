"""Intervals: the quantiles of numpy, None with a reason for what is missing, and short notes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scripts.reports.intervals import MAX_NAMED, Intervals, quantile, some
from scripts.reports.resampling import patient_draws


def with_jackknife(value, samples):
    """A column as the draws make it, with a jackknife that adds no skewness."""
    return np.concatenate([[value], samples, np.full(7, value)])


def test_quantile_equals_numpys_of_the_defined_values():
    rng = np.random.default_rng(0)
    values = rng.random((400, 6))
    values[rng.random((400, 6)) < 0.2] = np.nan
    at = np.linspace(0, 1, 6)
    found = quantile(np.sort(values, axis=0), (~np.isnan(values)).sum(axis=0), at)
    expected = [np.nanquantile(values[:, k], at[k]) for k in range(6)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_limits_equal_scipys_bca_but_for_the_widening():
    rng = np.random.default_rng(4)
    data = rng.exponential(size=200)
    draws = patient_draws(200, 4000, seed=0)
    found = Intervals(200, 4000).estimate("accuracy", draws @ data / draws.sum(axis=1))
    expected = stats.bootstrap((data,), np.mean, n_resamples=4000, method="BCa", rng=rng).confidence_interval
    assert found["low"] == pytest.approx(expected.low, abs=0.015)
    assert found["high"] == pytest.approx(expected.high, abs=0.015)
    symmetric = 2 * found["value"] - found["low"]
    assert found["high"] > symmetric + 0.02  # skewness moves both ends up


def test_limits_are_wider_for_few_patients():
    samples = np.random.default_rng(2).normal(size=4000)
    few, many = (Intervals(n, 4000).estimate("accuracy", with_jackknife(0.0, samples)) for n in (10, 100_000))
    assert few["high"] > many["high"] + 0.2
    assert (many["low"], many["high"]) == pytest.approx((-1.96, 1.96), abs=0.12)


def test_resamples_without_a_value_are_left_out_and_counted():
    samples = np.random.default_rng(3).random(400)
    samples[:150] = np.nan
    intervals = Intervals(40, 400)
    found = intervals.estimate("auroc", with_jackknife(0.5, samples), "yes")
    assert 0 < found["low"] < 0.5 < found["high"] < 1
    samples[:210] = np.nan
    assert intervals.estimate("auroc", with_jackknife(0.5, samples), "no")["low"] is None
    (note,) = intervals.all_notes()
    assert "of 400 remain, yes 250, no 190." in note


def test_quantile_of_a_column_without_values_is_nan_and_does_not_raise():
    ordered = np.array([[0.1, np.nan], [0.2, np.nan], [np.nan, np.nan]])
    np.testing.assert_allclose(quantile(ordered, np.array([2, 0]), np.array([0.5, 0.5])), [0.15, np.nan])


def test_undefined_value_is_named_unless_its_class_is_explained_already():
    intervals = Intervals(5, 8, explained=("absent",))
    nothing = {"value": None, "low": None, "high": None}
    assert intervals.estimates("precision", np.full((14, 2), np.nan), ["absent", "never predicted"]) == [nothing] * 2
    assert intervals.all_notes() == ["Not defined on these sequences: precision of never predicted."]


def test_interval_of_the_calibration_error_is_reflected_and_holds_its_value():
    rng = np.random.default_rng(1)
    found = Intervals(1000, 4000).estimate("ece", with_jackknife(0.05, rng.normal(0.09, 0.01, 4000)))
    assert found["low"] == 0.0
    assert found["high"] == 0.05
    far = Intervals(100_000, 4000).estimate("ece", with_jackknife(0.3, rng.normal(0.31, 0.01, 4000)))
    assert far["low"] == pytest.approx(0.29 - 1.96 * 0.01, abs=0.002)
    assert far["high"] == pytest.approx(0.29 + 1.96 * 0.01, abs=0.002)


def test_notes_on_a_thousand_classes_stay_short():
    intervals = Intervals(5, 8)
    names = [f"class {k}" for k in range(1000)]
    values = np.full((14, 1000), 0.5)
    values[:, ::2] = np.nan
    intervals.estimates("mcc", values, names)
    notes = intervals.all_notes()
    assert len(notes) == 2
    assert all(len(note) < 400 and "and 492 more" in note for note in notes)


def test_some_names_all_of_a_few():
    assert some(["a", "b"]) == "a, b"
    assert some([str(n) for n in range(MAX_NAMED)]).endswith(str(MAX_NAMED - 1))

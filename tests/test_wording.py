"""Words for numbers: honest verdicts, names that a reader knows, nothing called nan."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.reports import wording
from scripts.reports.metrics import OVERALL_METRICS
from scripts.reports.resampling import CLASS_METRICS
from scripts.reports.wording import findings


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ({"value": 0.1, "low": 0.02, "high": 0.2}, "Yes"),
        ({"value": 0.1, "low": -0.02, "high": 0.2}, "Not shown"),
        ({"value": -0.1, "low": -0.2, "high": -0.01}, "No, it harms"),
        ({"value": 0.1, "low": None, "high": None, "notes": ["One patient only."]}, "Cannot be said"),
        ({"value": None, "low": None, "high": None}, "Cannot be said"),
    ],
)
def test_verdict_follows_the_paired_interval(difference, verdict):
    given = {"controls": {"Shuffled_order": {"difference": difference}}}
    (found,) = findings(given)
    assert found["question"] == "Does the order of frames help?"
    assert found["verdict"] == verdict
    assert all(note in found["text"] for note in difference.get("notes", []))


def test_control_of_another_name_asks_its_own_question():
    difference = {"value": 0.1, "low": 0.02, "high": 0.2}
    given = {"controls": {"colour": {"difference": difference}, "x": {"difference": difference, "question": "Q?"}}}
    assert [found["question"] for found in findings(given)] == ["Does the model beat “colour”?", "Q?"]


@pytest.mark.parametrize(
    "control", ["single best frame", "mean of frames", "shuffled order", "time removed", "untrained encoder"]
)
def test_every_control_of_the_bundle_has_its_question(control):
    assert control in wording.QUESTIONS


@pytest.mark.parametrize("metric", [*OVERALL_METRICS, *CLASS_METRICS])
def test_every_metric_has_a_title(metric):
    title = wording.title_of(metric)
    assert title[0].isupper()
    assert "_" not in title


def test_title_of_a_sensitivity_names_its_specificity():
    assert wording.title_of("sensitivity_at_specificity_97.5") == "Sensitivity at 97.5 % specificity"


def test_estimates_are_written_with_their_interval_or_with_what_is_missing():
    assert wording.text_of({"value": 0.9123, "low": 0.87, "high": 0.951}) == "0.912 [0.870, 0.951]"
    assert wording.text_of({"value": 0.1, "low": -0.02, "high": 0.2}, signed=True) == "+0.100 [-0.020, +0.200]"
    assert wording.text_of({"value": 1.0, "low": None, "high": None}) == "1.000 (no interval)"
    assert wording.text_of({"value": None, "low": None, "high": None}) == "not defined"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "not defined"), (0.0, "< 0.001"), (0.0009, "< 0.001"), (0.0312, "0.031"), (1.0, "1.000")]
)
def test_p_values_are_written_as_journals_do(value, text):
    assert wording.p_value_of(value) == text


def test_provenance_is_one_line_whatever_it_holds():
    value = {"a": [1, np.float32(0.5)], "b": {"c": None}}
    assert wording.cell_of(value) == "a 1, 0.5, b c none"

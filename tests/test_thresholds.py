"""Thresholds: what scikit-learn's ROC says of the split they are chosen on, and what they then give on another."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL
from scripts.reports.thresholds import at_thresholds, choose_thresholds

TASK = {"task_type": BINARY, CLASSES: ["no", "yes"]}


def simulated(seed, num=80, decimals=12):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num)
    yes = (1 / (1 + np.exp(-rng.normal(size=num) - 1.6 * (labels - 0.5)))).round(decimals)
    return labels, np.stack([1 - yes, yes], axis=1)


def rates(labels, scores, threshold):
    called = scores >= threshold
    return sk.recall_score(labels, called), sk.recall_score(1 - labels, ~called)


@pytest.mark.parametrize("decimals", [1, 12])
def test_youden_is_the_best_sum_that_any_score_gives(decimals):
    labels, probabilities = simulated(0, decimals=decimals)
    found = choose_thresholds(labels, probabilities, BINARY, ["no", "yes"], "validation")
    sums = [sum(rates(labels, probabilities[:, 1], level)) for level in np.unique(probabilities[:, 1])]
    assert sum(rates(labels, probabilities[:, 1], found["thresholds"]["yes"])) == pytest.approx(max(sums))
    assert found["split"] == "validation"
    assert list(found["thresholds"]) == ["yes"]


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("decimals", [1, 12])
def test_fixed_specificity_is_met_with_the_highest_sensitivity(target, decimals):
    labels, probabilities = simulated(1, decimals=decimals)
    found = choose_thresholds(labels, probabilities, BINARY, ["no", "yes"], "validation", "specificity", target)
    all_rates = [rates(labels, probabilities[:, 1], level) for level in np.unique(probabilities[:, 1])]
    sensitivity, specificity = rates(labels, probabilities[:, 1], found["thresholds"]["yes"])
    assert specificity >= target
    assert sensitivity == pytest.approx(max(s for s, at in all_rates if at >= target))


@pytest.mark.parametrize("target", [0.5, 0.9, 1.0])
def test_fixed_sensitivity_is_met_with_the_highest_specificity(target):
    labels, probabilities = simulated(2)
    found = choose_thresholds(labels, probabilities, BINARY, ["no", "yes"], "validation", "sensitivity", target)
    all_rates = [rates(labels, probabilities[:, 1], level) for level in np.unique(probabilities[:, 1])]
    sensitivity, specificity = rates(labels, probabilities[:, 1], found["thresholds"]["yes"])
    assert sensitivity >= target
    assert specificity == pytest.approx(max(s for at, s in all_rates if at >= target))


def test_threshold_lies_half_way_to_the_next_score_below():
    probabilities = np.array([0.9, 0.8, 0.4, 0.1])
    both = np.stack([1 - probabilities, probabilities], axis=1)
    found = choose_thresholds([1, 1, 0, 0], both, BINARY, ["no", "yes"], "validation")
    assert found["thresholds"]["yes"] == pytest.approx(0.6)


def test_threshold_between_neighbouring_numbers_still_calls_the_upper_alone():
    low = 0.5
    high = np.nextafter(low, 1)
    probabilities = np.array([high, low])
    both = np.stack([1 - probabilities, probabilities], axis=1)
    found = choose_thresholds([1, 0], both, BINARY, ["no", "yes"], "validation")
    assert (probabilities >= found["thresholds"]["yes"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("labels", "scores", "rule"),
    [
        ([0, 1, 0, 1], [0.5] * 4, ("youden", None)),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], ("youden", None)),
        ([0, 1, 1, 1], [0.9, 0.1, 0.2, 0.3], ("specificity", 0.9)),
        ([1, 1, 1, 1], [0.9, 0.1, 0.2, 0.3], ("sensitivity", 0.9)),
    ],
)
def test_where_only_calling_nobody_meets_the_rule_there_is_no_threshold_and_a_note(labels, scores, rule):
    both = np.stack([1 - np.array(scores), scores], axis=1)
    found = choose_thresholds(labels, both, BINARY, ["no", "yes"], "validation", *rule)
    assert found["thresholds"] == {"yes": None}
    assert found["notes"] == ["No threshold on split validation for yes: none is better than calling nobody."]
    applied = at_thresholds(found, labels, both, list("abcd"), split="test", **TASK)
    assert applied["per_class"] == {}
    assert found["notes"][0] in applied["notes"]
    json.dumps(applied, allow_nan=False)


def test_thresholds_of_one_split_are_judged_on_another_as_scikit_learn_does():
    chosen = choose_thresholds(*simulated(3), BINARY, ["no", "yes"], "validation")
    labels, probabilities = simulated(4)
    found = at_thresholds(chosen, labels, probabilities, range(80), split="test", num_resamples=200, **TASK)
    entry, called = found["per_class"]["yes"], probabilities[:, 1] >= chosen["thresholds"]["yes"]
    expected = {
        "sensitivity": sk.recall_score(labels, called),
        "specificity": sk.recall_score(1 - labels, ~called),
        "precision": sk.precision_score(labels, called),
        "npv": sk.precision_score(1 - labels, ~called),
        "f1": sk.f1_score(labels, called),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
    }
    assert {name: entry[name]["value"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert all(entry[name]["low"] < entry[name]["value"] < entry[name]["high"] for name in expected)
    assert entry["threshold"] == chosen["thresholds"]["yes"]
    assert (entry["num_called"], entry["num_known"]) == (called.sum(), 80)
    assert (found["chosen"]["split"], found["split"]) == ("validation", "test")
    assert found["notes"] == []


def test_thresholds_judged_on_their_own_split_are_said_to_be_too_good():
    labels, probabilities = simulated(5)
    chosen = choose_thresholds(labels, probabilities, BINARY, ["no", "yes"], "validation")
    found = at_thresholds(chosen, labels, probabilities, range(80), split="validation", num_resamples=0, **TASK)
    assert found["notes"][0] == "Thresholds were chosen on split validation itself: these numbers are too good."


@pytest.mark.parametrize("task_type", [MULTICLASS, MULTILABEL])
def test_each_class_has_its_own_threshold_and_missing_labels_count_nowhere(task_type):
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 90)
    truth = labels[:, None] == np.arange(3)
    raised = np.exp(rng.normal(size=truth.shape) + 1.5 * truth)
    scores = raised / raised.sum(axis=1, keepdims=True) if task_type == MULTICLASS else raised / (1 + raised)
    known = rng.random(truth.shape) < 0.8 if task_type == MULTILABEL else np.ones_like(truth)
    given = np.where(known, truth, -1) if task_type == MULTILABEL else labels
    chosen = choose_thresholds(given, scores, task_type, list("abc"), "validation")
    found = at_thresholds(
        chosen, given, scores, range(90), task_type=task_type, classes=list("abc"), split="test", num_resamples=20
    )
    assert list(found["per_class"]) == list("abc")
    for k, name in enumerate("abc"):
        rows = known[:, k]
        alarms, hits, _ = sk.roc_curve(truth[rows, k], scores[rows, k])
        entry = found["per_class"][name]
        best = (entry["sensitivity"]["value"] + entry["specificity"]["value"]) - 1
        assert best == pytest.approx((hits - alarms).max())
        assert entry["num_known"] == rows.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best",), "rule is best, needs one of youden, specificity, sensitivity"),
        (("youden", 0.9), "target is 0.9, needs none for youden"),
        (("specificity",), "target is None, needs above 0, up to 1"),
        (("sensitivity", 90), "target is 90, needs above 0, up to 1"),
    ],
)
def test_rule_or_target_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_thresholds(*simulated(7), BINARY, ["no", "yes"], "validation", *arguments)


def test_thresholds_of_other_classes_are_refused():
    chosen = {"split": "validation", "thresholds": {"maybe": 0.5}, "notes": []}
    with pytest.raises(ValueError, match="classes is maybe, needs those of the split: no, yes"):
        at_thresholds(chosen, *simulated(8), range(80), split="test", **TASK)

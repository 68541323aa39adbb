"""Temperature and reliability: the planted temperature is found, and the diagram counts what it shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
from scripts.reports.calibration import fit_temperature, probabilities_of, reliability
from scripts.reports.metrics import score


def simulated(task_type, num=4000, stretched=3.0, seed=0):
    """Logits that are `stretched` times too large for the labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num, 2 if task_type == BINARY else 4)) * 1.5
    probabilities = probabilities_of(logits, task_type)
    if task_type == MULTILABEL:
        labels = (rng.random(logits.shape) < probabilities).astype(int)
    else:
        labels = (rng.random((num, 1)) > np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)
    return logits * stretched, labels, list("abcd")[: logits.shape[1]]


def torch_loss(logits, labels, temperature):
    scaled, target = torch.tensor(logits) / temperature, torch.tensor(labels)
    if target.ndim == 1:
        return float(F.cross_entropy(scaled, target))
    loss = F.binary_cross_entropy_with_logits(scaled, target.clamp(min=0).double(), reduction="none")
    return float(loss[target >= 0].mean())


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS, MULTILABEL])
@pytest.mark.parametrize("stretched", [0.4, 3.0])
def test_planted_temperature_is_found_and_calibrates(task_type, stretched):
    logits, labels, names = simulated(task_type, stretched=stretched)
    found = fit_temperature(logits, labels, task_type, names, "validation")
    assert found["temperature"] == pytest.approx(stretched, rel=0.08)
    assert found["split"] == "validation"
    assert found["notes"] == []
    assert found["ece"]["after"] < 0.03 < found["ece"]["before"]
    before, best, *near = (
        torch_loss(logits, labels, at) for at in (1.0, *(found["temperature"] * f for f in (1, 0.99, 1.01)))
    )
    assert found["log_loss"] == pytest.approx({"before": before, "after": best}, abs=1e-6)
    assert best < min(near)


def test_missing_labels_do_not_move_the_temperature():
    logits, labels, names = simulated(MULTILABEL)
    known = np.random.default_rng(1).random(labels.shape) < 0.7
    first = fit_temperature(logits, np.where(known, labels, -1), MULTILABEL, names, "validation")
    other = fit_temperature(np.where(known, logits, -logits), np.where(known, labels, -1), MULTILABEL, names, "v")
    assert first["temperature"] == other["temperature"] != 1
    scaled = np.where(known, labels, -1)
    assert first["log_loss"]["after"] == pytest.approx(torch_loss(logits, scaled, first["temperature"]), abs=1e-6)


def test_temperature_changes_no_decision_and_no_area():
    logits, labels, names = simulated(MULTICLASS, num=200)
    temperature = fit_temperature(logits, labels, MULTICLASS, names, "validation")["temperature"]
    before, after = (
        score(labels, probabilities_of(logits, MULTICLASS, at), MULTICLASS, names, range(200), 0)
        for at in (1.0, temperature)
    )
    assert before["confusion"] == after["confusion"]
    assert before["log_loss"]["value"] > after["log_loss"]["value"]


@pytest.mark.parametrize(
    ("logits", "labels", "word"),
    [
        ([[2.0, -2.0], [-1.0, 1.0], [3.0, 0.0]], [0, 1, 0], "larger"),  # every one right
        ([[2.0, -2.0], [-1.0, 1.0], [3.0, 0.0]], [1, 0, 1], "smaller"),  # every one wrong
        ([[1.0, 0.0]], [0], "larger"),
    ],
)
def test_split_that_fixes_no_temperature_leaves_it_at_one_and_says_so(logits, labels, word):
    found = fit_temperature(logits, labels, BINARY, ["no", "yes"], "validation")
    assert found["temperature"] == 1.0
    assert f"ever {word} logits" in found["notes"][0]
    json.dumps(found, allow_nan=False)


def test_equal_logits_and_labels_that_nobody_knows_leave_the_temperature_at_one():
    flat = fit_temperature(np.zeros((5, 2)), [0, 1, 0, 1, 1], BINARY, ["no", "yes"], "validation")
    assert flat["temperature"] == 1.0
    unknown = fit_temperature(np.ones((5, 2)), np.full((5, 2), -1), MULTILABEL, ["x", "y"], "validation")
    assert unknown["temperature"] == 1.0
    assert unknown["notes"] == ["No label of split validation is known: the temperature stays 1."]
    json.dumps([flat, unknown], allow_nan=False)


def test_logits_that_are_not_finite_are_refused_with_their_split():
    with pytest.raises(ValueError, match="split validation: number of non-finite logits is 1 of 4, needs 0"):
        fit_temperature([[0, 1], [np.nan, 1]], [0, 1], BINARY, ["no", "yes"], "validation")


def test_reliability_counts_every_sequence_once_in_the_bin_of_its_probability():
    yes = np.array([0.0, 0.05, 0.1, 0.55, 0.6, 0.6, 1.0])
    labels = np.array([0, 0, 1, 1, 1, 0, 1])
    found = reliability(labels, np.stack([1 - yes, yes], axis=1), BINARY, ["no", "yes"])
    assert found["of"] == "yes"
    assert [entry["num"] for entry in found["bins"]] == [3, 0, 0, 0, 0, 3, 0, 0, 0, 1]
    sixth = found["bins"][5]
    assert (sixth["from"], sixth["to"]) == (0.5, 0.6)
    assert sixth["stated"] == pytest.approx(1.75 / 3)
    assert sixth["seen"] == pytest.approx(2 / 3)
    assert found["bins"][1]["seen"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS])
def test_reliability_and_scores_give_the_same_error(task_type):
    logits, labels, names = simulated(task_type, num=300)
    probabilities = probabilities_of(logits, task_type)
    found = reliability(labels, probabilities, task_type, names)
    expected = score(labels, probabilities, task_type, names, range(300), 0)["ece"]["value"]
    assert found["ece"] == pytest.approx(expected, abs=1e-12)
    assert found["ece"] == pytest.approx(
        sum(entry["num"] * abs(entry["stated"] - entry["seen"]) for entry in found["bins"] if entry["num"]) / 300
    )


def test_calibrated_model_shows_about_the_error_that_it_is_said_to_show():
    logits, labels, names = simulated(MULTICLASS, num=150, stretched=1.0, seed=3)
    found = reliability(labels, probabilities_of(logits, MULTICLASS), MULTICLASS, names)
    errors = []
    for seed in range(100):
        other_logits, other, _ = simulated(MULTICLASS, num=150, stretched=1.0, seed=seed)
        errors.append(reliability(other, probabilities_of(other_logits, MULTICLASS), MULTICLASS, names)["ece"])
    assert found["ece_if_calibrated"] == pytest.approx(np.mean(errors), rel=0.1)
    assert found["ece_if_calibrated"] > 0.03  # far from the zero that one would expect
    again = reliability(labels, probabilities_of(logits, MULTICLASS), MULTICLASS, names)
    assert again == found


def test_reliability_of_a_multilabel_task_pools_the_labels_that_are_known():
    labels = np.array([[1, -1], [0, 1]])
    found = reliability(labels, [[0.95, 0.95], [0.05, 0.95]], MULTILABEL, ["x", "y"])
    assert found["of"] == "every label"
    assert [entry["num"] for entry in found["bins"]] == [1, *[0] * 8, 2]
    nothing = reliability([[-1]], [[0.5]], MULTILABEL, ["x"])
    assert nothing["ece"] is None
    json.dumps(nothing, allow_nan=False)

"""Scores against scikit-learn, what is undefined, and whether intervals cover what they claim."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL
from scripts.reports.metrics import paired_difference, score

CLOSE = 1e-6
NAMES = ["normal", "leakage", "pooling", "staining", "window defect"]


def simulated(rng, num_patients=40, num_classes=5, strength=1.2, decimals=None):
    """Labels (N,), probabilities (N, K) and patients (N,); runs of a patient are equally easy."""
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    labels = rng.integers(0, num_classes, len(patients))
    logits = rng.normal(size=(len(patients), num_classes))
    logits[np.arange(len(patients)), labels] += strength + rng.normal(size=num_patients)[patients]
    if decimals is not None:
        logits = logits.round(decimals)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, patients


def simulated_multilabel(rng, num=120, num_classes=4):
    labels = (rng.random((num, num_classes)) < 0.35).astype(int)
    logits = rng.normal(size=labels.shape) + 1.5 * (2 * labels - 1)
    return labels, (1 / (1 + np.exp(-logits))).round(2), rng.integers(0, 50, num)


def specificities(labels, predicted, num_classes):
    return [sk.recall_score(labels != k, predicted != k) for k in range(num_classes)]


@pytest.mark.parametrize("decimals", [None, 0])
def test_multiclass_scores_equal_scikit_learn_with_and_without_ties(decimals):
    labels, probabilities, patients = simulated(np.random.default_rng(0), decimals=decimals)
    probabilities = probabilities if decimals is None else probabilities.round(2)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    found = score(labels, probabilities, MULTICLASS, NAMES, patients, num_resamples=50)
    assert found["num_sequences"] == len(labels)
    assert found["num_patients"] == 40
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=CLOSE)
    per_class = {
        "sensitivity": sk.recall_score(labels, predicted, average=None),
        "specificity": specificities(labels, predicted, 5),
        "f1": sk.f1_score(labels, predicted, average=None),
        "auroc": [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(5)],
        "auprc": [sk.average_precision_score(labels == k, probabilities[:, k]) for k in range(5)],
    }
    for name, values in per_class.items():
        assert [found["per_class"][c][name]["value"] for c in NAMES] == pytest.approx(list(values), abs=CLOSE)
    assert [found["per_class"][c]["num"] for c in NAMES] == np.bincount(labels).tolist()


def test_binary_scores_equal_scikit_learn_on_the_second_column():
    labels, probabilities, patients = simulated(np.random.default_rng(1), num_classes=2)
    found = score(labels, probabilities, BINARY, ["no", "yes"], patients, num_resamples=50)
    predicted = probabilities[:, 1] > 0.5
    area = sk.roc_auc_score(labels, probabilities[:, 1])
    yes = found["per_class"]["yes"]
    assert found["macro_auroc"]["value"] == pytest.approx(area, abs=CLOSE)
    assert yes["auroc"]["value"] == pytest.approx(area, abs=CLOSE)
    assert yes["sensitivity"]["value"] == pytest.approx(sk.recall_score(labels, predicted), abs=CLOSE)
    assert yes["specificity"]["value"] == pytest.approx(sk.recall_score(1 - labels, ~predicted), abs=CLOSE)
    assert yes["auprc"]["value"] == pytest.approx(sk.average_precision_score(labels, probabilities[:, 1]), abs=CLOSE)


def test_multilabel_scores_equal_scikit_learn():
    labels, probabilities, patients = simulated_multilabel(np.random.default_rng(2))
    found = score(labels, probabilities, MULTILABEL, NAMES[:4], patients, num_resamples=50)
    predicted = probabilities >= 0.5
    balanced = np.mean([sk.balanced_accuracy_score(labels[:, k], predicted[:, k]) for k in range(4)])
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced, abs=CLOSE)
    assert found["macro_auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, probabilities), abs=CLOSE)
    assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=CLOSE)
    assert found["macro_f1"]["value"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=CLOSE)
    assert "confusion" not in found


def test_absent_class_is_null_with_a_note_and_left_out_of_macro_scores():
    labels, probabilities, patients = simulated(np.random.default_rng(3), num_classes=4)
    padded = np.concatenate([probabilities * 0.9, np.full((len(labels), 1), 0.1)], axis=1)
    found = score(labels, padded, MULTICLASS, NAMES, patients, num_resamples=50)
    absent = found["per_class"]["window defect"]
    assert absent["num"] == 0
    assert all(absent[name]["value"] is None for name in ("sensitivity", "f1", "auroc", "auprc"))
    assert absent["specificity"]["value"] is not None
    expected = np.mean([sk.roc_auc_score(labels == k, padded[:, k]) for k in range(4)])
    assert found["macro_auroc"]["value"] == pytest.approx(expected, abs=CLOSE)
    assert any("No sequence is window defect" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_only_one_class_present_leaves_auroc_null_and_says_so():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = score([0, 0, 0], probabilities, BINARY, ["no", "yes"], [1, 2, 3], num_resamples=100)
    assert found["macro_auroc"] == {"value": None, "low": None, "high": None}
    assert found["balanced_accuracy"]["value"] == pytest.approx(2 / 3)
    assert any("Every sequence is no" in note for note in found["notes"])


def test_one_patient_has_values_without_intervals_and_a_note():
    labels, probabilities, _ = simulated(np.random.default_rng(4))
    found = score(labels, probabilities, MULTICLASS, NAMES, ["same"] * len(labels), num_resamples=100)
    assert found["balanced_accuracy"]["value"] is not None
    assert found["balanced_accuracy"]["low"] is None
    assert found["balanced_accuracy"]["high"] is None
    assert any(note.startswith("One patient only") for note in found["notes"])


def test_split_of_one_sequence_gives_a_defined_result():
    found = score([1], [[0.2, 0.8]], BINARY, ["no", "yes"], ["a"])
    assert found["accuracy"] == {"value": 1.0, "low": None, "high": None}
    assert found["macro_auroc"]["value"] is None
    assert found["confusion"] == [[0, 0], [0, 1]]
    json.dumps(found, allow_nan=False)


def test_equal_scores_have_area_one_half_and_no_interval():
    labels = np.arange(40) % 2
    found = score(labels, np.full((40, 2), 0.5), BINARY, ["no", "yes"], range(40), num_resamples=200)
    assert found["macro_auroc"] == {"value": 0.5, "low": None, "high": None}
    assert found["accuracy"]["low"] < 0.5 < found["accuracy"]["high"]
    assert any("every resample gives the same value" in note and "macro auroc" in note for note in found["notes"])


def test_class_that_resamples_miss_is_noted_with_their_number():
    labels, probabilities, _ = simulated(np.random.default_rng(5), num_patients=30, num_classes=2)
    labels[:] = 0
    labels[:2] = 1
    found = score(labels, probabilities, BINARY, ["no", "yes"], range(len(labels)), num_resamples=400)
    note = next(note for note in found["notes"] if note.startswith("Resamples where"))
    assert "of 400 remain" in note
    assert "yes 3" in note  # about (1 - 2 / N) ** N = 13 % lack both patients


def test_scores_depend_on_the_seed_only_in_their_intervals():
    data = simulated(np.random.default_rng(6))
    labels, probabilities, patients = data
    first, again, other = (
        score(labels, probabilities, MULTICLASS, NAMES, patients, num_resamples=200, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["macro_auroc"]["value"] == other["macro_auroc"]["value"]
    assert first["macro_auroc"]["low"] != other["macro_auroc"]["low"]


def test_interval_widens_when_sequences_share_patients():
    labels, probabilities, _ = simulated(np.random.default_rng(7), num_patients=100)
    twice = (np.tile(labels, 2), np.tile(probabilities, (2, 1)), MULTICLASS, NAMES)
    alone = score(*twice, range(2 * len(labels)), num_resamples=400)["accuracy"]
    shared = score(*twice, np.tile(np.arange(len(labels)), 2), num_resamples=400)["accuracy"]
    assert shared["high"] - shared["low"] > 1.2 * (alone["high"] - alone["low"])


def test_intervals_hold_the_true_value_about_as_often_as_they_claim():
    truth = score(*_for_score(simulated(np.random.default_rng(8), 40_000, 3)), num_resamples=0)
    rng, hits, trials = np.random.default_rng(9), {"balanced_accuracy": 0, "macro_auroc": 0}, 250
    for _ in range(trials):
        found = score(*_for_score(simulated(rng, 50, 3)), num_resamples=300)
        for name in hits:
            hits[name] += found[name]["low"] <= truth[name]["value"] <= found[name]["high"]
    for name, count in hits.items():  # 95 % of 250 has a standard deviation of 1.4 %
        assert 0.91 <= count / trials <= 0.99, name


def _for_score(data):
    labels, probabilities, patients = data
    return labels, probabilities, MULTICLASS, NAMES[: probabilities.shape[1]], patients


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_auroc", "accuracy", "macro_f1"])
def test_paired_difference_is_the_difference_of_the_scores(metric):
    labels, good, patients = simulated(np.random.default_rng(10), strength=2.5)
    poor = np.roll(good, 1, axis=1) * 0.4 + good * 0.6
    task = {"task_type": MULTICLASS, CLASSES: NAMES, "num_resamples": 300}
    found = paired_difference(labels, good, poor, patients, metric, **task)
    apart = [score(labels, p, MULTICLASS, NAMES, patients, num_resamples=0)[metric]["value"] for p in (good, poor)]
    assert found["value"] == pytest.approx(apart[0] - apart[1], abs=CLOSE)
    assert found["low"] <= found["value"] <= found["high"]
    swapped = paired_difference(labels, poor, good, patients, metric, **task)
    assert swapped["low"] == pytest.approx(-found["high"], abs=CLOSE)


def test_paired_difference_of_a_model_with_itself_is_zero_without_an_interval():
    labels, probabilities, patients = simulated(np.random.default_rng(11))
    found = paired_difference(
        labels, probabilities, probabilities, patients, task_type=MULTICLASS, classes=NAMES, num_resamples=50
    )
    assert (found["value"], found["low"], found["high"]) == (0.0, None, None)
    assert found["notes"]


def test_paired_interval_is_narrower_than_the_two_apart():
    labels, good, patients = simulated(np.random.default_rng(12), num_patients=100)
    near = 0.95 * good + 0.05 * np.roll(good, 1, axis=1)
    paired = paired_difference(labels, good, near, patients, task_type=MULTICLASS, classes=NAMES)
    alone = score(labels, good, MULTICLASS, NAMES, patients)["balanced_accuracy"]
    assert paired["high"] - paired["low"] < alone["high"] - alone["low"]


BAD = [
    ({"probabilities": [[0.5, 0.5], [np.nan, 1.0]]}, "non-finite probability is .?1 of 2, first at row 1"),
    ({"probabilities": [[0.5, 0.5], [3.0, -2.0]]}, "Pass probabilities, not logits"),
    ({"probabilities": [[0.5, 0.5], [0.9, 0.9]]}, "sum to 1"),
    ({"probabilities": [0.5, 0.5]}, "shape of the probabilities"),
    ({"probabilities": np.zeros((0, 2)), "labels": [], "patients": []}, "N >= 1"),
    ({"labels": [0, 2]}, r"label is .?2 \(1 of 2 labels are unknown\).?, needs whole numbers from 0 to 1"),
    ({"labels": [0, 0.5]}, "whole numbers"),
    ({"labels": [[0, 1], [1, 0]]}, "shape of the labels"),
    ({"patients": ["a"]}, "number of patient entries is 1"),
    ({"patients": ["a", None]}, "sequences without a patient is 1"),
    ({"task_type": "regression"}, "needs one of binary, multiclass, multilabel"),
    ({CLASSES: ["same", "same"]}, "different names"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_refused_with_the_value_found(change, message):
    good = {
        "labels": [0, 1],
        "probabilities": [[0.5, 0.5], [0.1, 0.9]],
        "task_type": BINARY,
        CLASSES: ["no", "yes"],
        "patients": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        score(**(good | change))


def test_paired_difference_of_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric is .?mcc.?, needs one of balanced_accuracy"):
        paired_difference([0], [[1, 0]], [[1, 0]], ["a"], "mcc", task_type=BINARY, classes=["no", "yes"])


def test_thousand_sequences_of_five_classes_take_under_two_seconds():
    labels, probabilities, patients = simulated(np.random.default_rng(13), num_patients=500)
    start = time.perf_counter()
    found = score(labels, probabilities, MULTICLASS, NAMES, patients)
    assert time.perf_counter() - start < 2  # measured: 0.2 s on 2 cores
    assert found["num_resamples"] == 2000

"""Scores against scikit-learn, what is undefined, and whether intervals cover what they claim."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL
from scripts.reports.intervals import Intervals
from scripts.reports.metrics import OVERALL_METRICS, checked, paired_difference, score
from scripts.reports.ranking import ranked
from scripts.reports.resampling import counted, patient_draws

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


def at_specificity(truth, scores, specificity):
    alarms, hits, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    return hits[1 - alarms >= specificity - 1e-9].max()


def binned_error(stated, happened, num_bins=10):
    """Expected calibration error by its definition, a loop over bins (low, high]."""
    total = 0.0
    for low in range(num_bins):
        held = (stated > low / num_bins) & (stated <= (low + 1) / num_bins) | ((stated == 0) & (low == 0))
        if held.any():
            total += held.mean() * abs(stated[held].mean() - happened[held].mean())
    return total


def expected_by_class(truth, predicted, scores):
    """Each metric of one class by scikit-learn, (N,) each."""
    return {
        "sensitivity": sk.recall_score(truth, predicted),
        "specificity": sk.recall_score(~truth, ~predicted),
        "precision": sk.precision_score(truth, predicted),
        "npv": sk.precision_score(~truth, ~predicted),
        "f1": sk.f1_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "mcc": sk.matthews_corrcoef(truth, predicted),
        "auroc": sk.roc_auc_score(truth, scores),
        "auprc": sk.average_precision_score(truth, scores),
        "sensitivity_at_specificity_90": at_specificity(truth, scores, 0.90),
        "sensitivity_at_specificity_95": at_specificity(truth, scores, 0.95),
        "brier": sk.brier_score_loss(truth, scores),
        "ece": binned_error(scores, truth),
    }


def same_by_class(found, truth, predicted, scores, names, known=None):
    """Assert that every metric of every class equals scikit-learn's on the known labels."""
    for k, name in enumerate(names):
        rows = slice(None) if known is None else known[:, k]
        expected = expected_by_class(truth[rows, k], predicted[rows, k], scores[rows, k])
        given = found["per_class"][name]
        assert given.keys() == expected.keys() | {"num", "num_known"}
        assert {metric: given[metric]["value"] for metric in expected} == pytest.approx(expected, abs=CLOSE)
        assert given["num"] == truth[rows, k].sum()


@pytest.mark.parametrize("decimals", [None, 0])
def test_multiclass_scores_equal_scikit_learn_with_and_without_ties(decimals):
    labels, probabilities, patients = simulated(np.random.default_rng(0), decimals=decimals)
    probabilities = probabilities if decimals is None else probabilities.round(2)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    found = score(labels, probabilities, MULTICLASS, NAMES, patients, num_resamples=50, ordered=True)
    assert found["num_sequences"] == len(labels)
    assert found["num_patients"] == 40
    assert found["confusion"] == sk.confusion_matrix(labels, predicted).tolist()
    truth, chosen = labels[:, None] == np.arange(5), predicted[:, None] == np.arange(5)
    columns = [(truth[:, k], probabilities[:, k]) for k in range(5)]
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "micro_balanced_accuracy": sk.balanced_accuracy_score(truth.ravel(), chosen.ravel()),
        "macro_auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "micro_auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="micro"),
        "macro_auprc": sk.average_precision_score(labels, probabilities),
        "micro_auprc": sk.average_precision_score(labels, probabilities, average="micro"),
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "micro_f1": sk.f1_score(labels, predicted, average="micro"),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "quadratic_kappa": sk.cohen_kappa_score(labels, predicted, weights="quadratic"),
        "brier": sk.brier_score_loss(labels, probabilities, labels=range(5)),
        "ece": binned_error(probabilities.max(axis=1), predicted == labels),
        "log_loss": sk.log_loss(labels, probabilities),
        "likelihood": np.exp(-sk.log_loss(labels, probabilities)),
        "sensitivity_at_specificity_90": np.mean([at_specificity(*column, 0.90) for column in columns]),
        "sensitivity_at_specificity_95": np.mean([at_specificity(*column, 0.95) for column in columns]),
    }
    assert set(expected) == set(OVERALL_METRICS)
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=CLOSE)
    assert all(found[name]["low"] <= found[name]["value"] <= found[name]["high"] for name in expected)
    same_by_class(found, truth, chosen, probabilities, NAMES)


def test_binary_scores_equal_scikit_learn_on_the_second_column():
    labels, probabilities, patients = simulated(np.random.default_rng(1), num_classes=2)
    found = score(labels, probabilities, BINARY, ["no", "yes"], patients, num_resamples=50, ordered=True)
    predicted, scores = probabilities[:, 1] > 0.5, probabilities[:, 1]
    truth, chosen = labels[:, None] == np.arange(2), predicted[:, None] == np.arange(2)
    expected = {
        "macro_auroc": sk.roc_auc_score(labels, scores),
        "brier": sk.brier_score_loss(labels, scores),
        "log_loss": sk.log_loss(labels, scores),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "quadratic_kappa": sk.cohen_kappa_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "ece": binned_error(scores, labels == 1),
        "micro_auroc": sk.roc_auc_score(truth.ravel(), probabilities.ravel()),
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=CLOSE)
    same_by_class(found, truth, chosen, probabilities, ["no", "yes"])


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_multilabel_scores_equal_scikit_learn_on_the_labels_that_are_known(missing):
    rng = np.random.default_rng(2)
    labels, probabilities, patients = simulated_multilabel(rng)
    known = rng.random(labels.shape) >= missing
    given = np.where(known, labels, -1)
    found = score(given, probabilities, MULTILABEL, NAMES[:4], patients, num_resamples=50)
    truth, predicted = labels == 1, probabilities >= 0.5
    pooled = (truth[known], probabilities[known])
    by_class = [
        expected_by_class(*(array[known[:, k], k] for array in (truth, predicted, probabilities))) for k in range(4)
    ]
    macro = {name: np.mean([values[name] for values in by_class]) for name in by_class[0]}
    expected = {
        "balanced_accuracy": macro["balanced_accuracy"],
        "micro_balanced_accuracy": sk.balanced_accuracy_score(truth[known], predicted[known]),
        "macro_auroc": macro["auroc"],
        "micro_auroc": sk.roc_auc_score(*pooled),
        "macro_auprc": macro["auprc"],
        "micro_auprc": sk.average_precision_score(*pooled),
        "accuracy": ((truth == predicted) | ~known).all(axis=1)[known.any(axis=1)].mean(),
        "macro_f1": macro["f1"],
        "micro_f1": sk.f1_score(truth[known], predicted[known]),
        "mcc": macro["mcc"],
        "brier": macro["brier"],
        "ece": macro["ece"],
        "log_loss": sk.log_loss(*pooled),
        "sensitivity_at_specificity_90": macro["sensitivity_at_specificity_90"],
    }
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected, abs=CLOSE)
    same_by_class(found, truth, predicted, probabilities, NAMES[:4], known)
    if not missing:
        assert found["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=CLOSE)
        assert found["macro_auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, probabilities), abs=CLOSE)
    noted = any(f"{(~known).sum()} of {known.size} labels are not known" in note for note in found["notes"])
    assert noted == bool(missing)
    assert "confusion" not in found
    assert "quadratic_kappa" not in found


def test_label_that_nobody_knows_leaves_the_others_as_they_were():
    labels, probabilities, patients = simulated_multilabel(np.random.default_rng(20))
    alone = score(labels[:, :3], probabilities[:, :3], MULTILABEL, NAMES[:3], patients, num_resamples=50)
    labels[:, 3] = -1
    found = score(labels, probabilities, MULTILABEL, NAMES[:4], patients, num_resamples=50)
    assert {name: found[name] for name in OVERALL_METRICS if name in found} == {
        name: alone[name] for name in OVERALL_METRICS if name in alone
    }
    unknown = found["per_class"]["staining"]
    assert (unknown.pop("num"), unknown.pop("num_known")) == (0, 0)
    assert all(estimate["value"] is None for estimate in unknown.values())
    assert any("No sequence has a known label of staining" in note for note in found["notes"])


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
    assert any("resamples give the same value" in note and "macro AUROC" in note for note in found["notes"])


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
    """Two metrics of 60 patients with one to three sequences each, that resemble one another."""
    truth = values_of(simulated(np.random.default_rng(8), 40_000, 3), np.ones((1, 40_000)))
    rng, hits, trials = np.random.default_rng(9), np.zeros(2), 1000
    draws = patient_draws(60, 400, seed=0)
    for _ in range(trials):
        intervals = Intervals(60, 400)
        found = intervals.estimates("coverage", values_of(simulated(rng, 60, 3), draws), ["accuracy", "auroc"])
        hits += [estimate["low"] <= value <= estimate["high"] for estimate, value in zip(found, truth[0], strict=True)]
    held = hits / trials  # 95 % of 1,000 has a standard deviation of 0.7 %
    assert (held > 0.93).all() and (held < 0.97).all(), held


def values_of(data, draws):
    """Balanced accuracy and the first class's AUROC in each resample, (1 + R, 2), without what is not looked at."""
    labels, probabilities, patients = data
    split = checked(labels, probabilities, MULTICLASS, NAMES[: probabilities.shape[1]], patients)
    area = ranked(split.truth[:, 0], split.scores[:, 0], split.group, draws)[:, 0]
    return np.stack([counted(split, draws)[0]["balanced_accuracy"], area], axis=1)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_auroc", "accuracy", "brier", "quadratic_kappa"])
def test_paired_difference_is_the_difference_of_the_scores(metric):
    labels, good, patients = simulated(np.random.default_rng(10), strength=2.5)
    poor = np.roll(good, 1, axis=1) * 0.4 + good * 0.6
    task = {"task_type": MULTICLASS, CLASSES: NAMES, "num_resamples": 300, "ordered": True}
    found = paired_difference(labels, good, poor, patients, metric, **task)
    apart = [score(labels, p, patients=patients, **task)[metric]["value"] for p in (good, poor)]
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
    with pytest.raises(ValueError, match=r"metric is .?kappa.?, needs one of balanced_accuracy"):
        paired_difference([0], [[1, 0]], [[1, 0]], ["a"], "kappa", task_type=BINARY, classes=["no", "yes"])


def test_kappa_is_refused_where_classes_are_not_ordered():
    with pytest.raises(ValueError, match=r"metric is quadratic_kappa, needs one of"):
        paired_difference([0], [[1, 0]], [[1, 0]], ["a"], "quadratic_kappa", task_type=BINARY, classes=["no", "yes"])
    with pytest.raises(ValueError, match="ordered is True, needs false"):
        score([[1]], [[0.5]], MULTILABEL, ["x"], ["a"], ordered=True)


def test_specificity_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="specificities is 90, needs values from 0 to 1"):
        score([0], [[1, 0]], BINARY, ["no", "yes"], ["a"], specificities=[90])


def test_model_that_always_says_the_same_has_mcc_zero_and_no_precision_of_the_other_class():
    labels = np.arange(60) % 3
    found = score(labels, np.tile([0.6, 0.3, 0.1], (60, 1)), MULTICLASS, NAMES[:3], range(60), num_resamples=50)
    assert found["mcc"]["value"] == sk.matthews_corrcoef(labels, np.zeros(60)) == 0
    assert found["per_class"]["leakage"]["precision"]["value"] is None
    note = "Not defined on these sequences: precision of leakage, pooling; NPV of normal."
    assert note in found["notes"]
    json.dumps(found, allow_nan=False)


def test_certain_and_wrong_predictions_have_a_finite_loss():
    found = score([0, 1], [[0.0, 1.0], [0.0, 1.0]], BINARY, ["no", "yes"], ["a", "b"])
    assert found["log_loss"]["value"] == pytest.approx(sk.log_loss([0, 1], [1.0, 1.0], labels=[0, 1]), abs=CLOSE)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS, MULTILABEL])
def test_tiny_and_hostile_splits_have_values_inside_their_intervals_or_none(task_type):
    """Few sequences, ties, absent classes, one patient: as drawn; warnings are errors."""
    rng, num_values, num_gaps = np.random.default_rng(15), 0, 0
    for _ in range(60):
        num, num_classes = int(rng.integers(1, 9)), 2 if task_type == BINARY else int(rng.integers(2, 5))
        scores = rng.random((num, num_classes)).round(int(rng.integers(0, 3))) + 1e-12
        scores = scores.clip(0, 1) if task_type == MULTILABEL else scores / scores.sum(axis=1, keepdims=True)
        labels = rng.integers(0, rng.integers(1, num_classes + 1), num)
        labels = rng.integers(-1, 2, scores.shape) if task_type == MULTILABEL else labels
        names = NAMES[:num_classes]
        found = score(labels, scores, task_type, names, rng.integers(0, 3, num), num_resamples=int(rng.integers(0, 9)))
        json.dumps(found, allow_nan=False)
        per_class = [value for entry in found["per_class"].values() for value in entry.values()]
        estimates = [value for value in [*found.values(), *per_class] if isinstance(value, dict) and "low" in value]
        for estimate in estimates:
            if estimate["low"] is not None:
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
                num_values += 1
        without = sum(estimate["value"] is None for estimate in estimates)
        assert found["notes"] or not without
        num_gaps += without
    assert num_values > 100
    assert num_gaps > 100


def test_thousand_classes_have_defined_scores_and_short_notes():
    labels, probabilities, patients = simulated(np.random.default_rng(14), 60, 1000, strength=5)
    names = [f"class {k}" for k in range(1000)]
    found = score(labels, probabilities, MULTICLASS, names, patients, num_resamples=40)
    present = np.unique(labels)
    areas = [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
    assert found["macro_auroc"]["value"] == pytest.approx(np.mean(areas), abs=CLOSE)
    assert sum(entry["auroc"]["value"] is not None for entry in found["per_class"].values()) == len(present)
    assert max(map(len, found["notes"])) < 2000
    json.dumps(found, allow_nan=False)


def test_five_hundred_sequences_of_five_classes_take_a_second_or_two():
    labels, probabilities, patients = simulated(np.random.default_rng(13), num_patients=250)
    start = time.perf_counter()
    found = score(labels, probabilities, MULTICLASS, NAMES, patients)
    assert time.perf_counter() - start < 3  # measured: 0.4 s on 2 busy cores
    assert found["num_resamples"] == 2000

"""Two runs compared: DeLong's test against its definition and a permutation, and one set of resamples for both."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL
from scripts.reports.comparison import REPEATED, SEVERAL, auroc_covariance, compare_reports, compare_runs, delong
from scripts.reports.metrics import paired_difference, score
from scripts.reports.predictions import PATIENT_NUMBER, write_predictions
from tests.conftest import assert_message


def correlated(rng, num=80, strength=(1.2, 0.9), decimals=12):
    positive = rng.random(num) < 0.4
    shared = rng.normal(size=num)
    scores = [(s * positive + shared + rng.normal(size=num)).round(decimals) for s in strength]
    return positive, scores[0], scores[1]


def covariance_by_definition(positive, scores):
    """DeLong 1988, equations 4 to 6: every positive against every negative."""
    wins = [(s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive]) for s in scores]
    areas = np.array([win.mean() for win in wins])
    by_positive = np.array([win.mean(axis=1) for win in wins]) - areas[:, None]
    by_negative = np.array([win.mean(axis=0) for win in wins]) - areas[:, None]
    m, n = positive.sum(), (~positive).sum()
    return areas, by_positive @ by_positive.T / (m - 1) / m + by_negative @ by_negative.T / (n - 1) / n


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_fast_covariance_equals_every_pair_spelled_out(decimals):
    positive, *scores = correlated(np.random.default_rng(0), decimals=decimals)
    areas, covariance = auroc_covariance(positive, np.stack(scores))
    expected_areas, expected = covariance_by_definition(positive, scores)
    np.testing.assert_allclose(areas, expected_areas, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9)
    np.testing.assert_allclose(areas, [roc_auc_score(positive, s) for s in scores], rtol=1e-12)


def test_delong_gives_the_difference_its_interval_and_p_value():
    positive, a, b = correlated(np.random.default_rng(1))
    areas, covariance = covariance_by_definition(positive, [a, b])
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = delong(positive, a, b)
    assert found["value"] == pytest.approx(areas[0] - areas[1])
    assert (found["auroc_a"], found["auroc_b"]) == pytest.approx(tuple(areas))
    assert found["low"] == pytest.approx(found["value"] - 1.959964 * spread, abs=1e-6)
    assert found["p_value"] == pytest.approx(2 * stats.norm.sf(abs(found["value"]) / spread))
    swapped = delong(positive, b, a)
    assert swapped["p_value"] == pytest.approx(found["p_value"])
    assert swapped["value"] == -found["value"]
    assert (found["low"] > 0 or found["high"] < 0) == (found["p_value"] < 0.05)


def test_delong_rejects_equal_runs_about_as_often_as_it_claims():
    rng, p_values = np.random.default_rng(2), []
    for _ in range(600):
        p_values.append(delong(*correlated(rng, strength=(1, 1)))["p_value"])
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.075  # standard deviation 0.9 %
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("positive", "a", "b", "note"),
    [
        ([True, True], [0.1, 0.2], [0.2, 0.1], "there is no area"),
        ([], [], [], "there is no area"),
        ([True, False, False], [0.1, 0.2, 0.0], [0.3, 0.1, 0.2], "variance is not known"),
        ([True, True, False, False], [0.5] * 4, [0.7] * 4, "nothing to test"),
        ([True, True, False, False], [4, 3, 2, 1], [0.4, 0.3, 0.2, 0.1], "nothing to test"),
    ],
)
def test_delong_says_why_it_gives_no_p_value(positive, a, b, note):
    found = delong(positive, a, b)
    assert found["p_value"] is None
    assert note in found["note"]
    json.dumps(found, allow_nan=False)


def test_delong_of_many_sequences_is_quick():
    positive, a, b = correlated(np.random.default_rng(3), num=200_000)
    start = time.process_time()
    assert delong(positive, a, b)["p_value"] < 1e-9
    assert time.process_time() - start < 2  # every pair would be 9.6e9 comparisons


def runs(task_type=MULTICLASS, num=90, num_patients=40):
    rng = np.random.default_rng(4)
    num_classes = 2 if task_type == BINARY else 3
    labels = rng.integers(0, num_classes, num)
    truth = labels[:, None] == np.arange(num_classes)
    both = []
    for strength in (2.0, 1.0):
        raised = np.exp(rng.normal(size=truth.shape) + strength * truth)
        single = raised / raised.sum(axis=1, keepdims=True)
        both.append(raised / (1 + raised) if task_type == MULTILABEL else single)
    labels = np.where(rng.random(truth.shape) < 0.1, -1, truth) if task_type == MULTILABEL else labels
    return labels, *both, np.arange(num) % num_patients


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS, MULTILABEL])
def test_comparison_holds_both_scores_and_their_paired_differences(task_type):
    labels, a, b, patients = runs(task_type)
    names = ["no", "yes", "other"][: a.shape[1]]
    task = {"task_type": task_type, CLASSES: names, "num_resamples": 100}
    found = compare_runs(labels, a, b, patients, names=("gru", "mean"), **task)
    alone = [score(labels, p, patients=patients, **task) for p in (a, b)]
    assert found["names"] == ["gru", "mean"]
    for metric in ("balanced_accuracy", "macro_auroc", "brier", "ece", "mcc"):
        entry = found["overall"][metric]
        assert [entry["a"], entry["b"]] == [scores[metric]["value"] for scores in alone]
        paired = paired_difference(labels, a, b, patients, metric, **task)
        assert {part: entry[part] for part in ("value", "low", "high")} == {
            part: paired[part] for part in ("value", "low", "high")
        }
    assert list(found["per_class"]) == (["yes"] if task_type == BINARY else names)
    for k, name in enumerate(names):
        if name in found["per_class"]:
            known = np.full(len(labels), True) if labels.ndim == 1 else labels[:, k] >= 0
            truth = labels == k if labels.ndim == 1 else labels[:, k] == 1
            entry = found["per_class"][name]
            assert entry["value"] == pytest.approx(entry["delong"]["value"], abs=1e-12)
            assert entry["a"] == pytest.approx(roc_auc_score(truth[known], a[known, k]), abs=1e-12)
            assert entry["delong"] == delong(truth[known], a[known, k], b[known, k])
    assert {"brier", "ece", "log_loss"} == set(found["lower_is_better"])
    json.dumps(found, allow_nan=False)


def test_repeated_patients_are_said_to_break_delongs_assumption():
    labels, a, b, patients = runs()
    task = {"task_type": MULTICLASS, CLASSES: ["a", "b", "c"], "num_resamples": 20}
    assert REPEATED in compare_runs(labels, a, b, patients, **task)["notes"]
    once = compare_runs(labels, a, b, range(len(labels)), **task)["notes"]
    assert REPEATED not in once
    assert SEVERAL in once


def test_run_compared_with_itself_differs_nowhere_and_tests_nothing():
    labels, a, _, patients = runs(BINARY)
    found = compare_runs(labels, a, a, patients, task_type=BINARY, classes=["no", "yes"], num_resamples=20)
    assert all(entry["value"] == 0 and entry["low"] is None for entry in found["overall"].values())
    assert found["per_class"]["yes"]["delong"]["p_value"] is None
    json.dumps(found, allow_nan=False)


def test_split_of_one_sequence_is_compared_without_errors():
    found = compare_runs([1], [[0.2, 0.8]], [[0.7, 0.3]], ["x"], task_type=BINARY, classes=["no", "yes"])
    assert found["overall"]["accuracy"]["value"] == 1
    assert found["overall"]["macro_auroc"]["value"] is None
    json.dumps(found, allow_nan=False)


# --- two evaluations on disk ---


def judged(folder, labels, probabilities, patients, ordered=False):
    """What evaluate.yaml leaves of predictions."""
    names = [f"exams/{n}.dcm" for n in range(len(labels))]
    rows = [
        {
            "sequence": name,
            "image": name,
            "num_frames": 4,
            "label": label,
            "probabilities": row,
            PATIENT_NUMBER: patient,
        }
        for name, label, row, patient in zip(names, labels.tolist(), probabilities, patients, strict=True)
    ]
    write_predictions(folder, rows, ["a", "b", "c"], [], task_type=MULTICLASS, ordered=ordered)
    return folder


def test_two_evaluations_are_compared_by_sequence_whatever_their_order(tmp_path):
    labels, a, b, patients = runs()
    first = judged(tmp_path / "first", labels, a, patients)
    second = judged(tmp_path / "second", labels, b, patients)
    content = json.loads((second / "predictions.json").read_text())
    content["predictions"].reverse()
    (second / "predictions.json").write_text(json.dumps(content))
    lines = compare_reports(first, second, num_resamples=50).splitlines()
    wanted = compare_runs(labels, a, b, patients, task_type=MULTICLASS, classes=["a", "b", "c"], num_resamples=50)
    accuracy = wanted["overall"]["balanced_accuracy"]
    (line,) = (line for line in lines if line.startswith("Balanced accuracy"))
    assert line.split()[2:5] == [f"{accuracy['a']:.3f}", f"{accuracy['b']:.3f}", f"{accuracy['value']:+.3f}"]
    assert sum(line.startswith("AUROC of") for line in lines) == 3


def test_evaluations_of_grades_are_compared_by_quadratic_kappa_too(tmp_path):
    labels, a, _, patients = runs()
    for ordered in (True, False):
        folder = judged(tmp_path / str(ordered), labels, a, patients, ordered=ordered)
        assert ("Quadratic kappa" in compare_reports(folder, folder, num_resamples=10)) == ordered


@pytest.mark.parametrize("what", ["absent", "not JSON", "inference", "other sequences", "other labels"])
def test_evaluations_that_cannot_be_compared_are_refused_with_the_reason(tmp_path, what):
    labels, a, _, patients = runs()
    first, second = (judged(tmp_path / name, labels, a, patients) for name in ("first", "second"))
    path = second / "predictions.json"
    content = json.loads(path.read_text())
    if what == "inference":
        del content["predictions"][0]["label"]
    elif what == "other sequences":
        content["predictions"] = content["predictions"][1:]
    elif what == "other labels":
        content["predictions"][0]["label"] = (content["predictions"][0]["label"] + 1) % 3
    path.write_text("not" if what == "not JSON" else json.dumps(content))
    if what == "absent":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        compare_reports(first, second, num_resamples=10)
    assert_message(refused.value)


@pytest.mark.parametrize(("name", "number"), [("num_resamples", 10**11), ("num_resamples", "many"), ("seed", -1)])
def test_numbers_of_a_comparison_are_checked_before_anything_is_read(tmp_path, name, number):
    with pytest.raises(ValueError, match=f"--{name} is {number}, needs a whole number"):
        compare_reports(tmp_path, tmp_path, **{name: number})

"""Scores by a column: which groups it makes, that each is scored as if alone, and that small ones say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.keys import CLASSES, MULTICLASS, MULTILABEL
from scripts.reports.metrics import score
from scripts.reports.subgroups import groups_of, in_order, subgroup_scores

TASK = {"task_type": MULTICLASS, CLASSES: ["a", "b", "c"], "num_resamples": 60}


def simulated(num=120):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num)
    raised = np.exp(rng.normal(size=(num, 3)) + 1.5 * (labels[:, None] == np.arange(3)))
    return labels, raised / raised.sum(axis=1, keepdims=True), rng.integers(0, 60, num)


def test_each_group_has_the_scores_of_its_sequences_alone():
    labels, probabilities, patients = simulated()
    sites = np.array(["north", "south"])[np.arange(120) // 100]
    found = subgroup_scores("site", sites.tolist(), labels, probabilities, patients, **TASK)
    assert (found["column"], found["cut"]) == ("site", "value")
    assert [group["name"] for group in found["groups"]] == ["north", "south"]
    for group in found["groups"]:
        rows = sites == group["name"]
        alone = score(labels[rows], probabilities[rows], patients=patients[rows], **TASK)
        for name in ("balanced_accuracy", "macro_auroc", "accuracy", "num_sequences", "num_patients", "notes"):
            assert group[name] == alone[name]
    json.dumps(found, allow_nan=False)


def test_group_of_few_patients_is_flagged():
    labels, probabilities, _ = simulated()
    values = np.where(np.arange(120) < 30, "few", "many").tolist()
    patients = np.where(np.arange(120) < 30, np.arange(120) % 9, np.arange(120))
    found = subgroup_scores("device", values, labels, probabilities, patients, **TASK)
    assert [(group["name"], group["num_patients"], group["few"]) for group in found["groups"]] == [
        ("few", 9, True),
        ("many", 90, False),
    ]


def test_numbers_are_cut_into_tertiles_of_near_equal_size_by_their_size():
    frames = np.random.default_rng(1).permutation(np.arange(90)) + 3
    names, cut = groups_of(frames.tolist())
    assert cut == "tertiles"
    assert in_order(names) == ["3 to 32", "33 to 62", "63 to 92"]
    assert [names.count(name) for name in in_order(names)] == [30, 30, 30]
    for value, name in zip(frames, names, strict=True):
        low, high = map(int, name.split(" to "))
        assert low <= value <= high


def test_equal_numbers_stay_together_and_empty_tertiles_are_dropped():
    names, cut = groups_of([16] * 80 + [20, 30, 40])
    assert cut == "tertiles"
    assert {name: names.count(name) for name in in_order(names)} == {"16": 80, "20 to 40": 3}


def test_few_kinds_of_numbers_are_groups_of_their_own():
    assert groups_of([30, 7.5, 30]) == (["30", "7.5", "30"], "value")
    assert in_order(["30", "7.5", "30"]) == ["7.5", "30"]


@pytest.mark.parametrize("nothing", [None, "", float("nan"), float("inf"), np.float32("nan")])
def test_values_not_known_are_a_group_at_the_end(nothing):
    names, _ = groups_of(["zebra", nothing, "ape"])
    assert names == ["zebra", "not known", "ape"]
    assert in_order(names) == ["ape", "zebra", "not known"]


def test_rare_texts_of_many_are_left_together():
    names, _ = groups_of([f"device {k}" for k in range(30) for _ in range(30 - k)])
    assert len(set(names)) == 12
    assert in_order(names)[-1] == "others"
    assert names.count("others") == sum(30 - k for k in range(11, 30))


def test_switches_and_lists_are_texts():
    assert groups_of([True, False, ["a"], True]) == (["True", "False", "['a']", "True"], "value")


def test_missing_labels_of_a_group_leave_gaps_with_notes_not_errors():
    labels = np.array([[1, -1], [0, -1], [1, 0], [0, 1]])
    probabilities = np.array([[0.9, 0.5], [0.2, 0.5], [0.4, 0.4], [0.3, 0.8]])
    task = {"task_type": MULTILABEL, CLASSES: ["x", "y"], "num_resamples": 20}
    found = subgroup_scores("site", ["n", "n", "s", "s"], labels, probabilities, list("abcd"), **task)
    assert any("No sequence has a known label of y" in note for note in found["groups"][0]["notes"])
    assert found["groups"][1]["macro_auroc"]["value"] == 1
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("column", ["patient", "sequence", "image", "source"])
def test_column_that_names_patients_or_files_is_refused(column):
    labels, probabilities, patients = simulated(6)
    with pytest.raises(ValueError, match=f"column is {column}, needs one that names no patient"):
        subgroup_scores(column, list("abcdef"), labels, probabilities, patients, **TASK)


def test_values_that_are_not_one_a_sequence_are_refused():
    labels, probabilities, patients = simulated(6)
    with pytest.raises(ValueError, match="number of values is 2, needs 6"):
        subgroup_scores("site", ["a", "b"], labels, probabilities, patients, **TASK)

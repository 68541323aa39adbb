"""Weights of the classes, groups to draw evenly, and labels that nothing can be learnt from."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from scripts.datalists.items import Task
from scripts.keys import BINARY, LABEL, MULTICLASS, MULTILABEL, PATIENT
from scripts.training.classes import check_labels, class_weights, labels_of, sampling_groups
from tests.conftest import assert_message

TASK = Task(MULTICLASS, ("normal", "leak", "pool"))
SEVERAL = Task(MULTILABEL, ("normal", "leak", "pool"))
UNEVEN = [0] * 6 + [1] * 3 + [2] * 1
ANSWERS = [[1, 0, 0], [1, 0, 1], [1, 1, -1], [1, 0, 0], [0, -1, 0], [0, 0, 0]]


class Labelled(SimpleNamespace):
    """What these functions see of a dataset."""

    def __len__(self) -> int:
        return len(self.data)


def dataset_of(labels: list, patients: list[str | None] | None = None) -> Labelled:
    patients = [f"P{n}" for n in range(len(labels))] if patients is None else patients
    return Labelled(data=[{LABEL: y, PATIENT: p} for y, p in zip(labels, patients, strict=True)])


def warnings_of(caplog, *splits, task: Task = TASK) -> list[str]:
    with caplog.at_level(logging.WARNING, logger="angiography"):
        check_labels(*splits, task)
    return [record.getMessage() for record in caplog.records]


# --- weights ---


def test_balanced_weights_are_scikit_learns():
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=np.array(UNEVEN))
    np.testing.assert_allclose(class_weights("balanced", dataset_of(UNEVEN), TASK), wanted, rtol=1e-6)


def test_balanced_weight_of_a_class_that_is_never_there_is_one_and_the_others_are_as_without_it():
    found = class_weights("balanced", dataset_of([0, 0, 0, 2]), TASK)
    np.testing.assert_allclose(found, [4 / 6, 1.0, 4 / 2], rtol=1e-6)


def test_balanced_weights_of_labels_are_negatives_over_positives_of_what_is_known():
    found = class_weights("balanced", dataset_of(ANSWERS), SEVERAL)
    np.testing.assert_allclose(found, [2 / 4, 4 / 1, 4 / 1], rtol=1e-6)
    one_answer = class_weights("balanced", dataset_of([[1, 0, 1], [1, -1, 0]]), SEVERAL)
    np.testing.assert_allclose(one_answer, [1.0, 1.0, 1.0])


def test_given_weights_are_taken_and_none_is_none():
    np.testing.assert_allclose(class_weights([1, 2.5, 3], dataset_of(UNEVEN), TASK), [1, 2.5, 3])
    assert class_weights("none", dataset_of(UNEVEN), TASK) is None


@pytest.mark.parametrize("weights", ["even", [1.0, 2.0], [1.0, 0.0, 1.0], [1, 2, float("inf")], [1, 2, "3"], 2.0, True])
def test_other_weights_are_refused(weights):
    with pytest.raises(ValueError) as refused:
        class_weights(weights, dataset_of(UNEVEN), TASK)
    assert_message(refused.value, "class_weights", "none, balanced, or 3 numbers above 0")


# --- groups ---


def test_groups_of_classes_are_the_classes_and_shuffled_has_none():
    assert sampling_groups("balanced", dataset_of(UNEVEN), TASK).tolist() == UNEVEN
    assert sampling_groups("shuffled", dataset_of(UNEVEN), TASK) is None


def test_a_sequence_of_several_labels_is_of_the_rarest_that_it_has():
    assert sampling_groups("balanced", dataset_of(ANSWERS), SEVERAL).tolist() == [0, 2, 1, 0, 3, 3]


def test_unknown_sampling_is_refused():
    with pytest.raises(ValueError, match="sampling is weighted, needs shuffled or balanced"):
        sampling_groups("weighted", dataset_of(UNEVEN), TASK)


# --- what is too little ---


def test_splits_with_every_class_and_many_patients_are_no_cause_for_a_word(caplog):
    assert warnings_of(caplog, dataset_of(UNEVEN), dataset_of([0, 1, 2])) == []
    several = dataset_of([[1, 0, 1], [0, 1, 0]])
    assert warnings_of(caplog, several, several, task=SEVERAL) == []


@pytest.mark.parametrize("task", [TASK, Task(BINARY, ("normal", "leak"))])
def test_training_on_one_class_is_refused_by_its_name(task):
    with pytest.raises(ValueError) as refused:
        check_labels(dataset_of([1, 1, 1]), dataset_of([0, 1, 1]), task)
    assert_message(refused.value, "training", "label", "leak alone", "two classes or more")


def test_training_on_labels_that_never_vary_is_refused():
    with pytest.raises(ValueError, match="training: label is the same everywhere"):
        check_labels(dataset_of([[1, 0, -1], [1, -1, 0]]), dataset_of(ANSWERS), SEVERAL)


def test_a_class_absent_from_a_split_is_warned_of_by_its_name(caplog):
    found = warnings_of(caplog, dataset_of([0, 2, 0, 2]), dataset_of([1, 1, 1]))
    assert len(found) == 2
    assert found[0].startswith("training: label is never leak, needs sequences of every class")
    assert found[1].startswith("validation: label is never normal, pool, needs sequences of every class")


def test_labels_with_one_answer_only_are_warned_of(caplog):
    (found,) = warnings_of(caplog, dataset_of(ANSWERS), dataset_of([[1, 0, 1], [0, 1, -1]]), task=SEVERAL)
    assert found.startswith("validation: label is one-sided for pool, needs both answers of every label")


def test_validation_without_any_known_label_is_refused():
    with pytest.raises(ValueError, match="validation: label is nowhere known"):
        check_labels(dataset_of(ANSWERS), dataset_of([[-1, -1, -1]]), SEVERAL)


def test_one_patient_or_one_sequence_is_warned_of(caplog):
    found = warnings_of(caplog, dataset_of([0, 1, 2], ["P1", "P1", "P1"]), dataset_of([1]))
    assert found[0].startswith("training: split is of one patient, needs many patients")
    assert found[-1].startswith("validation: split is of one sequence, needs many patients")


def test_patients_that_nobody_named_are_not_one(caplog):
    assert warnings_of(caplog, dataset_of([0, 1, 2], [None] * 3), dataset_of([0, 1, 2], [None] * 3)) == []


def test_a_thousand_classes_make_a_short_message(caplog):
    task = Task(MULTICLASS, tuple(f"class {n}" for n in range(1000)))
    found = warnings_of(caplog, dataset_of([0, 1]), dataset_of(list(range(1000))), task=task)
    assert len(found) == 1
    assert "class 2, class 3, class 4, class 5, class 6 and 993 more" in found[0]
    assert class_weights("balanced", dataset_of([0, 1]), task).shape == (1000,)
    assert labels_of(dataset_of([0, 1])).tolist() == [0, 1]

"""Folds: every exam is judged once, no patient is on two sides, classes are dealt out evenly, too few are refused."""

import warnings

import numpy as np
import pytest

from scripts.datalists.items import Task
from scripts.selection.folds import check_classes, make_folds
from tests.conftest import assert_message

GRADES = Task("multiclass", ("none", "mild", "severe"))


def exams(num_patients: int = 60, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Classes (N,) and patients of exams, one to four each, of which the last class is rare."""
    random = np.random.default_rng(seed)
    patients = [f"P{n}" for n in range(num_patients) for _ in range(random.integers(1, 5))]
    return random.choice(3, size=len(patients), p=[0.5, 0.35, 0.15]), patients


@pytest.mark.parametrize(("num_folds", "num_repeats"), [(3, 1), (5, 2), (7, 3)])
def test_every_exam_is_held_out_once_a_repeat_and_no_patient_is_on_two_sides(num_folds, num_repeats):
    strata, patients = exams()
    names = np.asarray(patients)
    folds = make_folds(strata, patients, num_folds, num_repeats)
    assert [(fold.repeat, fold.number) for fold in folds] == [
        (r, n) for r in range(num_repeats) for n in range(num_folds)
    ]
    for repeat in range(num_repeats):
        own = [fold for fold in folds if fold.repeat == repeat]
        for part in ("held_out", "validation"):
            together = np.concatenate([getattr(fold, part) for fold in own])
            assert sorted(together) == list(range(len(patients)))
    for fold in folds:
        sides = [set(names[part]) for part in (fold.training, fold.validation, fold.held_out)]
        assert sum(map(len, sides)) == len(set(patients))
        assert set().union(*sides) == set(patients)


def test_parts_are_alike_in_classes():
    strata, patients = exams(200)
    share = np.bincount(strata) / len(strata)
    folds = make_folds(strata, patients, 5, 2)
    for fold in folds:
        for part in (fold.training, fold.validation, fold.held_out):
            np.testing.assert_allclose(np.bincount(strata[part], minlength=3) / len(part), share, atol=0.04)
    assert len(folds) == 10


def test_equal_seeds_make_equal_folds_and_repeats_differ():
    strata, patients = exams()
    first, again, other = (make_folds(strata, patients, 5, 2, seed) for seed in (0, 0, 9))
    for one, two in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    parts = [{tuple(fold.held_out) for fold in folds} for folds in (first[:5], first[5:], other[:5], other[5:])]
    assert all(a.isdisjoint(b) for n, a in enumerate(parts) for b in parts[:n])
    second = make_folds(strata, patients, 5, 1, seed=1)
    assert [tuple(fold.held_out) for fold in second] == [tuple(fold.held_out) for fold in first[5:]]


def test_strata_that_are_too_rare_to_deal_out_stop_nothing():
    strata = np.arange(12)  # as rarest labels of exams can be: each once
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = make_folds(strata, [f"P{n}" for n in range(12)], 4, 1)
    assert [len(fold.held_out) for fold in folds] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("num_folds", "num_repeats", "field"),
    [(2, 1, "folds"), (0, 1, "folds"), (2.5, 1, "folds"), (True, 1, "folds"), ("5", 1, "folds"), (3, 0, "repeats")],
)
def test_numbers_that_make_no_folds_are_refused(num_folds, num_repeats, field):
    with pytest.raises(ValueError, match=f"{field} is") as error:
        make_folds(*exams(), num_folds, num_repeats)
    assert_message(error.value, "cross-validation", field)


def test_fewer_patients_than_folds_are_refused():
    with pytest.raises(ValueError, match="patients is 4, needs at least 5"):
        make_folds(np.zeros(40, np.int64), [f"P{n % 4}" for n in range(40)], 5, 1)


def test_class_of_too_few_patients_is_named_with_their_number():
    labels = np.array([0] * 20 + [1] * 20 + [2] * 8)
    patients = [f"P{n}" for n in range(40)] + [f"S{n % 4}" for n in range(8)]
    check_classes(labels, patients, GRADES, 4)
    with pytest.raises(ValueError, match="patients is 4 of class severe, needs at least 5") as error:
        check_classes(labels, patients, GRADES, 5)
    assert_message(error.value, "cross-validation", "patients")
    assert str(error.value).endswith("Give --folds 4.")


def test_label_of_too_few_patients_is_named_and_unknown_ones_do_not_count():
    task = Task("multilabel", ("leak", "bleeding"))
    labels = np.array([[1, 0], [1, 1], [1, 1], [0, -1], [0, 1], [1, -1]])
    patients = [f"P{n}" for n in range(6)]
    check_classes(labels, patients, task, 3)
    with pytest.raises(ValueError, match="3 of class bleeding"):
        check_classes(labels, patients, task, 4)


def test_class_that_no_exam_has_is_let_pass():
    check_classes(np.array([0, 1] * 10), [f"P{n}" for n in range(20)], GRADES, 5)

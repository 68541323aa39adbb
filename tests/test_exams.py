"""Exams of a cross-validation: training and validation alone, each content once, as lists that train.yaml reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.datalists.datalist import is_synthetic, labelled_split, read_datalist, read_task
from scripts.keys import ENTRY, LABEL, PATIENT, SEQUENCE, SYNTHETIC
from scripts.selection.exams import Exams, find_exams
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.runs import write_features
from tests.stores import key_of


def changed(folder: Path, change) -> None:
    path = folder / "datalist.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def found(folder: Path, skip_missing: bool = False) -> Exams:
    path = folder / "datalist.json"
    return find_exams(path, folder, FeatureStore.open(folder / "features"), read_task(path, folder), skip_missing)


def test_exams_are_those_of_training_and_validation_and_the_test_split_is_not_looked_up(tmp_path):
    write_features(tmp_path, {"training": 6, "validation": 3})
    strangers = [{ENTRY: key_of(900 + n), LABEL: 0, PATIENT: f"T{n}"} for n in range(4)]  # not in the store
    changed(tmp_path, lambda content: content.update(test=strangers))
    exams = found(tmp_path)
    assert [item[ENTRY] for item in exams.items] == [key_of(n) for n in range(9)]
    assert exams.labels.tolist() == [n % 3 for n in range(9)] == exams.strata.tolist()
    assert len(set(exams.patients)) == 9


def test_list_without_a_validation_split_will_do(tmp_path):
    write_features(tmp_path, {"training": 6})
    assert len(found(tmp_path).items) == 6


def test_list_of_a_fold_reads_back_as_its_exams(tmp_path):
    labels = [[1, 0, None], [0, None, 1], [1, 1, 0]]
    write_features(tmp_path, {"training": 9}, label=lambda n: labels[n % 3], task_type="multilabel")
    changed(tmp_path, lambda content: content.update({SYNTHETIC: True}))
    exams = found(tmp_path)
    assert exams.labels[:3].tolist() == [[1, 0, -1], [0, -1, 1], [1, 1, 0]]
    path = tmp_path / "fold.json"
    path.write_text(exams.datalist(training=np.array([4, 0, 7]), validation=[2], test=[5, 6]))
    content = read_datalist(path, tmp_path)
    assert [item[ENTRY] for item in content["training"]] == [key_of(n) for n in (4, 0, 7)]
    assert [item[LABEL] for item in content["training"]] == exams.labels[[4, 0, 7]].tolist()
    assert [item[PATIENT] for item in content["test"]] == [exams.patients[n] for n in (5, 6)]
    assert read_task(path, tmp_path) == exams.task and is_synthetic(path)
    assert len(labelled_split(path, tmp_path, "validation")) == 1


def test_grades_stay_grades_in_the_list_of_a_fold(tmp_path):
    write_features(tmp_path, {"training": 6})
    changed(tmp_path, lambda content: content["task"].update(ordered=True))
    path = tmp_path / "fold.json"
    path.write_text(found(tmp_path).datalist(training=[0, 1]))
    assert read_task(path, tmp_path).ordered


def test_exam_without_a_patient_is_its_own(tmp_path):
    write_features(tmp_path, {"training": 6})
    changed(tmp_path, lambda content: [item.pop(PATIENT) for item in content["training"][:3]])
    exams = found(tmp_path)
    assert len(set(exams.patients)) == 6
    assert [PATIENT in item for item in exams.items] == [False] * 3 + [True] * 3


def test_content_that_is_there_twice_counts_once_and_is_refused_with_another_label(tmp_path, monkeypatch):
    write_features(tmp_path, {"training": 6})
    names = {f"exam {n}": key_of(n % 6) for n in range(7)}  # the last is a copy of the first, under another name
    monkeypatch.setattr("scripts.features.entries.entry_key", lambda item: item.get(ENTRY) or names[item["source"]])

    def as_files(content: dict, label: int) -> None:
        for n, item in enumerate(content["training"]):
            item["image"] = f"exam {n}"
            item.pop(ENTRY, None)
        content["training"] = [*content["training"][:6], {**content["training"][0], "image": "exam 6", LABEL: label}]

    changed(tmp_path, lambda content: as_files(content, 0))
    assert [item[SEQUENCE] for item in found(tmp_path).items] == [f"exam {n}" for n in range(6)]
    changed(tmp_path, lambda content: as_files(content, 1))
    with pytest.raises(ValueError, match="that of exam 0") as error:
        found(tmp_path)
    assert_message(error.value, "exam 6", "content")


def test_exam_without_features_is_refused_or_left_out(tmp_path):
    write_features(tmp_path, {"training": 6})
    changed(tmp_path, lambda content: content["training"].append({ENTRY: key_of(99), LABEL: 0, PATIENT: "Q"}))
    with pytest.raises(ValueError, match="without 1 of 7 sequences"):
        found(tmp_path)
    assert len(found(tmp_path, skip_missing=True).items) == 6


def test_exam_without_a_label_is_refused(tmp_path):
    write_features(tmp_path, {"training": 6, "validation": 3})
    changed(tmp_path, lambda content: content["validation"][1].pop(LABEL))
    with pytest.raises(ValueError, match="1 items of validation"):
        found(tmp_path)

"""predictions.csv and predictions.json: contents, strictness, and safety in a spreadsheet."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from scripts.keys import (
    CLASSES,
    FRAME_INDICES,
    FRAME_TIMES,
    FRAME_WEIGHTS,
    IMAGE,
    LABEL,
    MULTICLASS,
    MULTILABEL,
    ORDERED,
    SEQUENCE,
    TASK,
    TYPE,
)
from scripts.reports.predictions import AFTER_FRAME, strict_json, write_predictions

NAMES = ["normal", "leakage", "pooling"]


def row(name="run1", probabilities=(0.2, 0.7, 0.1), **changes):
    return {
        SEQUENCE: name,
        IMAGE: f"exams/{name}.dcm",
        "num_frames": 3,
        "probabilities": np.array(probabilities, dtype=np.float32),
        FRAME_INDICES: np.array([0, 8, 15]),
        FRAME_TIMES: [0.0, np.nan, 1250.5],
        FRAME_WEIGHTS: np.array([0.1, 0.3, 0.6], dtype=np.float32),
    } | changes


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_csv_names_the_class_its_probabilities_and_the_most_weighted_frame(tmp_path):
    path = write_predictions(tmp_path / "new" / "folder", [row()], NAMES, [], task_type=MULTICLASS)
    (found,) = table(path)
    assert path.name == "predictions.csv"
    assert list(found) == [
        SEQUENCE,
        IMAGE,
        "num_frames",
        "predicted",
        "probability_normal",
        "probability_leakage",
        "probability_pooling",
        "most_weighted_frame",
        "most_weighted_frame_time_ms",
    ]
    assert found["predicted"] == "leakage"
    assert float(found["probability_leakage"]) == pytest.approx(0.7, abs=1e-6)
    assert (found["most_weighted_frame"], found["most_weighted_frame_time_ms"]) == ("15", "1250.500")


def test_json_holds_everything_and_unknown_times_are_null(tmp_path):
    failures = [{IMAGE: "exams/broken.dcm", "reason": "no pixel data"}]
    write_predictions(tmp_path, [row(**{LABEL: np.int64(1)})], NAMES, failures, task_type=MULTICLASS)
    found = strict(tmp_path / "predictions.json")
    assert found[TASK] == {TYPE: MULTICLASS, CLASSES: NAMES, ORDERED: False}
    assert found["failures"] == failures
    (only,) = found["predictions"]
    assert only[FRAME_TIMES] == [0.0, None, 1250.5]
    assert only[FRAME_INDICES] == [0, 8, 15]
    assert only[FRAME_WEIGHTS] == pytest.approx([0.1, 0.3, 0.6])
    assert only[LABEL] == 1


def test_probabilities_after_each_frame_stand_in_json_and_change_nothing_in_csv(tmp_path):
    after = np.array([[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.2, 0.7, 0.1]])
    write_predictions(tmp_path / "with", [row(**{AFTER_FRAME: after})], NAMES, [], task_type=MULTICLASS)
    write_predictions(tmp_path / "without", [row()], NAMES, [], task_type=MULTICLASS)
    found = [strict(tmp_path / name / "predictions.json")["predictions"][0] for name in ("with", "without")]
    assert [entry[AFTER_FRAME] for entry in found] == [after.tolist(), []]
    assert len({(tmp_path / name / "predictions.csv").read_text() for name in ("with", "without")}) == 1


def test_most_weighted_frame_of_unknown_time_has_an_empty_time(tmp_path):
    rows = [
        row(**{FRAME_WEIGHTS: [0.1, 0.8, 0.1]}),
        row("run2", **dict.fromkeys((FRAME_WEIGHTS, FRAME_TIMES))),
    ]
    first, second = table(write_predictions(tmp_path, rows, NAMES, [], task_type=MULTICLASS))
    assert (first["most_weighted_frame"], first["most_weighted_frame_time_ms"]) == ("8", "")
    assert (second["most_weighted_frame"], second["most_weighted_frame_time_ms"]) == ("", "")


def test_multilabel_predicts_every_class_from_one_half_on(tmp_path):
    rows = [row(probabilities=(0.5, 0.9, 0.49)), row("run2", probabilities=(0.1, 0.1, 0.1))]
    path = write_predictions(tmp_path, rows, NAMES, [], task_type=MULTILABEL)
    assert [line["predicted"] for line in table(path)] == ["normal|leakage", ""]
    found = strict(tmp_path / "predictions.json")["predictions"]
    assert [entry["predicted"] for entry in found] == [["normal", "leakage"], []]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_text_a_spreadsheet_would_run_is_quoted_in_csv_and_untouched_in_json(tmp_path, start):
    name = f'{start}HYPERLINK("x", "y"),z'
    classes = [f"{start}2+3", *NAMES[1:]]
    rows = [row(name, probabilities=(0.9, 0.1, 0.0), **{IMAGE: name})]
    (found,) = table(write_predictions(tmp_path, rows, classes, [], task_type=MULTICLASS))
    assert found[SEQUENCE] == found[IMAGE] == "'" + name
    assert found["predicted"] == f"'{start}2+3"
    assert not any(column.startswith(start) for column in found)
    assert strict(tmp_path / "predictions.json")["predictions"][0][SEQUENCE] == name


def test_line_breaks_and_tabs_in_names_stay_in_their_cell(tmp_path):
    path = write_predictions(tmp_path, [row("a\r\nb\tc")], ["x\ry", *NAMES[1:]], [], task_type=MULTICLASS)
    (found,) = table(path)
    assert found[SEQUENCE] == "a b c"
    assert "probability_x y" in found


def test_no_rows_give_a_table_of_headings_and_the_failures(tmp_path):
    path = write_predictions(tmp_path, [], NAMES, [{IMAGE: "a.dcm", "reason": "not DICOM"}], task_type=MULTICLASS)
    assert path.read_text(encoding="utf-8").count("\n") == 1
    assert len(strict(tmp_path / "predictions.json")["failures"]) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probabilities": [0.5, 0.5]},
            r"exams/run1.dcm: shape of probabilities is .?\(2,\).?, needs \(3,\)",
        ),
        ({"probabilities": [np.nan, 0.5, 0.5]}, "non-finite probabilities is .?1 of 3"),
        ({FRAME_WEIGHTS: [1.0]}, "length of the per-frame lists"),
        ({AFTER_FRAME: [[0.2, 0.7, 0.1]]}, "length of the per-frame lists"),
    ],
)
def test_row_that_does_not_fit_is_refused_by_its_path_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_predictions(tmp_path, [row(**changes)], NAMES, [], task_type=MULTICLASS)
    assert list(tmp_path.iterdir()) == []


def test_unknown_task_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs one of binary, multiclass, multilabel"):
        write_predictions(tmp_path, [row()], NAMES, [], task_type="ordinal")


def test_strict_json_turns_numpy_paths_and_non_finite_numbers_into_plain_values():
    document = {
        "b": np.float32("inf"),
        "a": [np.int64(3), (np.nan, True, None)],
        "c": Path("x/y"),
        1: np.eye(2),
    }
    text = strict_json(document)
    assert json.loads(text) == {
        "1": [[1.0, 0.0], [0.0, 1.0]],
        "a": [3, [None, True, None]],
        "b": None,
        "c": "x/y",
    }
    assert text.index('"a"') < text.index('"b"')


def test_strict_json_keeps_numbers_on_one_line_and_strings_as_they_are():
    document = {"counts": [[1, 2], [3, 4]], "names": ["[\n 1,\n 2\n]", "a,  b"], "empty": []}
    text = strict_json(document)
    assert "[1, 2],\n" in text
    assert json.loads(text) == document

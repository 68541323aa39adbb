"""The report: strict JSON, a page that stands alone, honest words, nothing about single patients."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL, TASK, TYPE
from scripts.reports.metrics import paired_difference, score
from scripts.reports.page import SYNTHETIC_BANNER, findings, summary_table, write_report

NAMES = ["normal", "<b>bold</b> & 'co'", "pooling"]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects headings, visible text and references, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name.split(":")[-1] in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def results(task_type=MULTICLASS, synthetic=True, names=NAMES):
    rng = np.random.default_rng(0)
    names = names[:2] if task_type == BINARY else names
    num, num_classes = 90, len(names)
    patients = [f"secret-{k}" for k in rng.integers(0, 40, num)]
    labels = rng.integers(0, num_classes, num)
    truth = labels[:, None] == np.arange(num_classes)
    if task_type == MULTILABEL:
        labels = truth.astype(int)

    def probabilities(strength):
        raised = np.exp(rng.normal(size=truth.shape) + strength * truth)
        if task_type == MULTILABEL:
            return raised / (1 + raised)
        return raised / raised.sum(axis=1, keepdims=True)

    model = probabilities(2.5)
    options = {"task_type": task_type, CLASSES: names, "num_resamples": 200}
    controls = {}
    for name, strength in (("shuffled order", 0.3), ("single best frame", 0.8)):
        control = probabilities(strength)
        controls[name] = {
            "score": score(labels, control, patients=patients, **options),
            "difference": paired_difference(labels, model, control, patients, **options),
            "explanation": f"About <{name}>.",
        }
    return {
        "title": "Held-out <evaluation>",
        "synthetic": synthetic,
        TASK: {TYPE: task_type, CLASSES: names},
        "split": "held out",
        "labels": labels,
        "probabilities": model,
        "patients": patients,
        "model": score(labels, model, patients=patients, **options),
        "controls": controls,
        "provenance": {
            "seed": np.int64(3),
            "versions": {"monai": "1.6.1", "torch": "2.15.0"},
            "weights digest": "sha256:abc",
            "store digest": None,
        },
    }


def written(folder, given):
    path = write_report(folder, given)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS, MULTILABEL])
def test_page_stands_alone_and_closes_its_tags(tmp_path, task_type):
    text, page = written(tmp_path / "new", results(task_type))
    assert page.open == []
    assert page.references
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert "url(http" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert page.tags.count("svg") == (2 if task_type == MULTILABEL else 3)
    assert "width=device-width" in text
    assert "@media print" in text


def test_page_escapes_what_comes_from_outside(tmp_path):
    text, page = written(tmp_path, results())
    assert "<b>bold</b>" not in text
    assert "<evaluation>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert any(NAMES[1] in data for data in page.text)
    assert any("About <shuffled order>." in data for data in page.text)


def test_report_json_is_strict_stable_and_without_raw_arrays(tmp_path):
    given = results()
    written(tmp_path, given)
    first = (tmp_path / "report.json").read_bytes()
    page = (tmp_path / "report.html").read_bytes()
    found = json.loads(first, parse_constant=lambda constant: pytest.fail(constant))
    assert set(found) == {"title", "synthetic", TASK, "split", "model", "controls", "provenance"}
    assert found["model"]["balanced_accuracy"] == given["model"]["balanced_accuracy"]
    assert found["provenance"]["seed"] == 3
    written(tmp_path, given)
    assert (tmp_path / "report.json").read_bytes() == first
    assert (tmp_path / "report.html").read_bytes() == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_no_patient_is_named_only_counted(tmp_path):
    given = results()
    text, _ = written(tmp_path, given)
    assert "secret" not in text
    assert "secret" not in (tmp_path / "report.json").read_text()
    assert f"90 sequences of {len(set(given['patients']))} patients" in text


@pytest.mark.parametrize("synthetic", [True, False])
def test_banner_and_terminal_heading_say_synthetic_only_when_it_is(tmp_path, synthetic):
    given = results(synthetic=synthetic)
    text, _ = written(tmp_path, given)
    assert (SYNTHETIC_BANNER in text) == synthetic
    assert ("(synthetic)" in summary_table(given).splitlines()[0]) == synthetic


def test_summary_says_whether_order_and_more_frames_help(tmp_path):
    given = results()
    text, _ = written(tmp_path, given)
    by_question = {finding["question"]: finding for finding in findings(given)}
    assert by_question["Does the order of frames help?"]["verdict"] == "Yes"
    assert by_question["Does more than one frame help?"]["verdict"] == "Yes"
    low = given["controls"]["shuffled order"]["difference"]["low"]
    assert f"paired 95 % interval {low:+.3f} to" in text


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ({"value": 0.1, "low": 0.02, "high": 0.2}, "Yes"),
        ({"value": 0.1, "low": -0.02, "high": 0.2}, "Not shown"),
        ({"value": -0.1, "low": -0.2, "high": -0.01}, "No, it harms"),
        ({"value": 0.1, "low": None, "high": None, "notes": ["One patient only."]}, "Cannot be said"),
        ({"value": None, "low": None, "high": None}, "Cannot be said"),
    ],
)
def test_verdict_follows_the_paired_interval(difference, verdict):
    given = {"controls": {"Shuffled_order": {"difference": difference}}}
    (found,) = findings(given)
    assert found["question"] == "Does the order of frames help?"
    assert found["verdict"] == verdict
    assert all(note in found["text"] for note in difference.get("notes", []))


def test_control_of_another_name_asks_its_own_question():
    difference = {"value": 0.1, "low": 0.02, "high": 0.2}
    given = {"controls": {"colour": {"difference": difference}, "x": {"difference": difference, "question": "Q?"}}}
    assert [found["question"] for found in findings(given)] == ["Does the model beat “colour”?", "Q?"]


def test_summary_table_is_aligned_and_holds_every_number():
    given = results()
    lines = summary_table(given).splitlines()
    assert len(lines) == 2 + 1 + 3
    column = lines[2].index("macro AUROC")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[2:])
    assert f"{given['model']['balanced_accuracy']['value']:.3f} [" in lines[3]
    assert f"{given['controls']['shuffled order']['difference']['value']:+.3f} [" in lines[4]


def test_split_of_one_sequence_and_no_controls_is_reported_with_its_gaps(tmp_path):
    given = results(BINARY)
    given |= {
        "labels": np.array([1]),
        "probabilities": np.array([[0.3, 0.7]]),
        "patients": ["x"],
        "controls": {},
    }
    given["model"] = score([1], [[0.3, 0.7]], BINARY, NAMES[:2], ["x"])
    text, page = written(tmp_path, given)
    assert page.open == []
    assert "not defined" in text
    assert "One patient only" in text
    assert "1 sequence of 1 patient," in text
    assert "nan" not in " ".join(page.text).lower().split()
    assert "1.000 (no interval)" in summary_table(given)


def test_missing_entry_is_named(tmp_path):
    given = results()
    del given["provenance"]
    with pytest.raises(ValueError, match=r"missing entries of the results is .?provenance"):
        write_report(tmp_path, given)


def test_results_are_left_as_they_came(tmp_path):
    given = results()
    before = copy.deepcopy({key: given[key] for key in ("model", "controls", "provenance")})
    write_report(tmp_path, given)
    assert {key: given[key] for key in before} == before

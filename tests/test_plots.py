"""Pictures: well formed, the same bytes twice, safe with any class name, small."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from sklearn import metrics as sk

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
from scripts.reports import plots
from scripts.reports.calibration import reliability

HOSTILE = ["<b>&", "_hidden", "$x$ 100 $", "眼底 荧光", "a very long class name that does not fit"]


def simulated(num_classes, num=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num)
    logits = rng.normal(size=(num, num_classes))
    logits[np.arange(num), labels] += 2
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def texts(svg):
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter() if node.tag.endswith("}text")]


def pictures():
    labels, probabilities = simulated(5)
    return [
        plots.roc_curves(labels, probabilities, HOSTILE, MULTICLASS),
        plots.precision_recall_curves(labels, probabilities, HOSTILE, MULTICLASS),
        plots.confusion_matrix(np.arange(25).reshape(5, 5), HOSTILE),
        plots.reliability_diagram(reliability(labels, probabilities, MULTICLASS, HOSTILE)),
    ]


def test_pictures_are_well_formed_small_and_the_same_bytes_twice():
    first, again = pictures(), pictures()
    assert first == again
    for svg in first:
        assert svg.startswith("<svg")
        assert ET.fromstring(svg).get("viewBox")
        assert ET.fromstring(svg).get("width") is None
        assert len(svg) < 40_000
        assert "metadata" not in svg
        assert "date" not in svg.lower()


def test_pictures_load_nothing_from_outside():
    for svg in pictures():
        for node in ET.fromstring(svg).iter():
            for name, value in node.attrib.items():
                if name.endswith(("href", "src")):
                    assert value.startswith(("#", "data:"))


def test_pictures_of_one_page_share_no_id_with_different_content():
    seen = {}
    for svg in pictures():
        for node in ET.fromstring(svg).iter():
            if node.get("id"):
                content = ET.tostring(node)
                assert seen.setdefault(node.get("id"), content) == content
    assert seen


def test_class_names_appear_as_text_whatever_they_hold():
    roc, recall, confusion, _ = (" / ".join(texts(svg)) for svg in pictures())
    for name in HOSTILE[:4]:
        assert name in roc
        assert name in recall
        assert name in confusion
    assert "a very long class nam…" in roc


def test_pictures_leave_matplotlib_settings_alone():
    before = dict(matplotlib.rcParams)
    pictures()
    assert dict(matplotlib.rcParams) == before


def test_roc_of_a_binary_task_draws_the_second_class_only():
    labels, probabilities = simulated(2)
    found = texts(plots.roc_curves(labels, probabilities, ["no", "yes"], BINARY))
    assert any("yes" in text for text in found)
    assert not any(text.endswith("no") for text in found)


@pytest.mark.parametrize("curves", [plots.roc_curves, plots.precision_recall_curves])
def test_curves_say_which_class_has_none(curves):
    labels, probabilities = simulated(3)
    labels[labels == 2] = 0
    found = texts(curves(labels, probabilities, ["a", "b", "c"], MULTICLASS))
    assert any("no curve" in text and "c" in text for text in found)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_curves_of_a_multilabel_task_leave_out_labels_that_are_not_known(num_classes):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(-1, 2, (50, num_classes)), rng.random((50, num_classes))
    classes = ["a", "b", "c"][:num_classes]
    roc = " / ".join(texts(plots.roc_curves(labels, scores, classes, MULTILABEL)))
    recall = " / ".join(texts(plots.precision_recall_curves(labels, scores, classes, MULTILABEL)))
    for k, name in enumerate(classes):
        known = labels[:, k] >= 0
        assert f"{sk.roc_auc_score(labels[known, k], scores[known, k]):.3f}  {name}" in roc
        assert f"{sk.average_precision_score(labels[known, k], scores[known, k]):.3f}  {name}" in recall


def test_roc_of_one_sequence_is_a_picture_without_curves():
    svg = plots.roc_curves([1], [[0.2, 0.8]], ["no", "yes"], BINARY)
    assert any("no curve" in text for text in texts(svg))


def test_many_classes_stay_small_and_name_the_lowest_areas():
    labels, probabilities = simulated(60, num=1200)
    names = [f"class {k}" for k in range(60)]
    roc = plots.roc_curves(labels, probabilities, names, MULTICLASS)
    confusion = plots.confusion_matrix(np.eye(60, dtype=int), names)
    assert any("lowest" in text for text in texts(roc))
    assert sum("class " in text for text in texts(roc)) == len(plots.COLOURS)
    assert len(confusion) < 60_000
    assert "data:image/png" in confusion


def test_confusion_matrix_writes_every_count():
    found = texts(plots.confusion_matrix([[71, 0], [13, 42]], ["no", "yes"]))
    assert [text for text in found if text.isdigit()] == ["71", "0", "13", "42"]


def test_reliability_diagram_writes_the_number_in_every_bin():
    yes = np.array([0.05, 0.05, 0.55, 0.95, 0.95, 0.95])
    found = reliability([0, 0, 1, 1, 1, 0], np.stack([1 - yes, yes], axis=1), BINARY, ["no", "yes"])
    written = texts(plots.reliability_diagram(found))
    assert [text for text in written if text.isdigit()][-10:] == ["2", "0", "0", "0", "0", "1", "0", "0", "0", "3"]


def test_reliability_diagram_of_no_known_label_is_a_picture_without_points():
    svg = plots.reliability_diagram(reliability([[-1]], [[0.5]], MULTILABEL, ["x"]))
    assert "Stated probability" in texts(svg)

"""Charts of intervals and of training: every number stands in them, gaps are gaps, hostile names are text."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from scripts.reports import charts
from tests.test_plots import HOSTILE, texts


def estimate(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


CONTROLS = [
    ("model", [estimate(0.9, 0.8, 0.95)]),
    ("_shuffled $", [estimate(0.4)]),
    ("nothing", [estimate(None)]),
]


def paths(svg, colour):
    """How many marks or lines are drawn in a colour."""
    return sum(colour in (node.get("style") or "") for node in ET.fromstring(svg).iter())


def test_chart_writes_values_and_says_where_there_is_none():
    svg = charts.interval_chart(CONTROLS, "Balanced accuracy", "controls", first_stands_out=True, mark=(0.2, "chance"))
    assert {"0.900", "0.400", "none", "chance", "model", "_shuffled $", "Balanced accuracy"} <= set(texts(svg))
    assert paths(svg, "#0072b2") >= 2  # the model's dot and bar
    assert paths(svg, "#d55e00") >= 1  # the control's dot


def test_differences_have_signs_and_their_axis_reaches_every_interval():
    rows = [("a", [estimate(0.62, 0.5, 0.71)]), ("b", [estimate(-0.03, -0.4, 0.02)])]
    found = texts(charts.interval_chart(rows, "difference", "d", span=(-0.1, 0.1), mark=(0.0, "equal")))
    assert {"+0.620", "-0.030"} <= set(found)
    ticks = [
        float(text.replace("\u2212", "-")) for text in found if text.replace("\u2212", "-").lstrip("-")[:2] == "0."
    ]
    assert min(ticks) <= -0.3
    assert max(ticks) >= 0.6


def test_several_series_are_named_in_a_legend():
    rows = [(name, [estimate(0.9, 0.8, 1.0), estimate(0.5), estimate(None)]) for name in HOSTILE]
    found = texts(charts.interval_chart(rows, "value", "classes", series=["AUROC", "Sensitivity", "_third"]))
    assert {"AUROC", "Sensitivity"} <= set(found)
    assert "_third" not in found  # nothing of it is drawn
    assert all(any(name.split()[0] in text for text in found) for name in HOSTILE)


@pytest.mark.parametrize("rows", [[("alone", [estimate(None)])], [("alone", [estimate(1.0, 1.0, 1.0)])]])
def test_chart_of_one_row_is_a_picture(rows):
    assert "alone" in texts(charts.interval_chart(rows, "value", "one"))


def history(num):
    return {
        epoch: {"training_loss": 1 / epoch, "validation_loss": 2 / epoch, "_likelihood $": 1 - 1 / epoch}
        for epoch in range(1, num + 1)
    }


def test_learning_curves_part_losses_from_scores_and_mark_the_epoch_kept():
    svg = charts.learning_curves(history(30), best_epoch=12)
    found = texts(svg)
    assert {"Loss", "Score", "Epoch", "kept", "training loss", "validation loss", "likelihood $"} <= set(found)
    assert "kept" not in texts(charts.learning_curves(history(30)))
    assert svg == charts.learning_curves(history(30), best_epoch=12)


def test_learning_curves_take_epochs_as_json_spells_them_in_the_order_of_numbers():
    given = {str(epoch): values for epoch, values in history(11).items()}
    assert charts.learning_curves(dict(sorted(given.items()))) == charts.learning_curves(history(11))


def test_learning_curves_leave_gaps_for_what_is_not_known():
    given = history(9)
    given[4]["training_loss"], given[5]["training_loss"] = None, math.nan
    del given[7]["training_loss"]
    svg = charts.learning_curves(given)
    assert "nan" not in svg.lower()
    assert svg.count("M ") > charts.learning_curves(history(9)).count("M ")


@pytest.mark.parametrize("given", [{1: {"loss": 0.5}}, {1: {}}, {1: {"score": 0.5}, 2: {"score": 0.7}}])
def test_learning_curves_of_little_are_a_picture(given):
    assert "Epoch" in texts(charts.learning_curves(given))


def test_learning_curves_of_many_epochs_stay_small():
    assert len(charts.learning_curves(history(20_000))) < 100_000

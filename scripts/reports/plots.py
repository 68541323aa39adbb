"""Scores -> pictures, each one SVG element as text, to be set into the page as it is.

Text stays text (small, selectable, any script); colours are Okabe and Ito's, told apart by colour-blind
readers, and lines differ by dashes too, for print. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score, roc_curve

from scripts.keys import BINARY, MULTILABEL
from scripts.reports.resampling import one_hot

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#000000")  # Okabe, Ito 2008
DASHES = ("-", "--", "-.", ":")
GREY = "#767676"  # 4.5:1 on white
WIDTH_INCHES = 4.6  # 442 CSS pixels: at 390 px text is still about 10 px high
MAX_CURVE_POINTS = 300
MAX_NUMBERED_CLASSES = 12  # above it cells are too small for numbers
MAX_NAME = 22

STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # widest first: a narrower one still fits
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "figure.facecolor": "white",
}


def roc_curves(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], task_type: str) -> str:
    """ROC of each class against the others, with its area; for a binary task that of the second class.

    A class without positives or without negatives has no curve and is listed so. With more classes than
    colours, the lowest areas are named and the others drawn in grey.

    Args:
        labels: as `metrics.score` takes them, (N,) or (N, K).
        probabilities: (N, K).
        classes: K names.
        task_type: binary, multiclass or multilabel.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(labels).astype(int)
    truth = truth.astype(bool) if task_type == MULTILABEL else one_hot(truth, len(classes))
    shown = [1] if task_type == BINARY else list(range(len(classes)))
    drawable = [k for k in shown if 0 < truth[:, k].sum() < len(truth)]
    areas = {k: float(roc_auc_score(truth[:, k], scores[:, k])) for k in drawable}
    named = sorted(sorted(drawable, key=lambda k: areas[k])[: len(COLOURS)])
    figure, axes = new_picture(WIDTH_INCHES + 0.21 * len(named))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    handles = []
    for k in drawable:
        alarms, hits, _ = roc_curve(truth[:, k], scores[:, k])
        keep = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), MAX_CURVE_POINTS)).round().astype(int))
        place = named.index(k) if k in named else None
        look: dict[str, Any] = (
            {"color": "#c8c8c8", "linewidth": 0.7, "zorder": 1}
            if place is None
            else {"color": COLOURS[place], "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.8}
        )
        (line,) = axes.plot(alarms[keep], hits[keep], **look)
        if place is not None:
            handles.append((line, f"{areas[k]:.3f}  {short(classes[k])}"))
    for k in shown:
        if k not in areas and len(handles) < 2 * len(COLOURS):
            (line,) = axes.plot([], [], color="none")
            handles.append((line, f"no curve  {short(classes[k])}"))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity")
    title = "Area under the curve" if len(drawable) <= len(named) else "Area, lowest of all classes"
    legend = figure.legend(
        *zip(*handles, strict=True), loc="outside lower left", title=title, alignment="left", frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return svg_of(figure, "roc")


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> str:
    """Counts by true class (rows) and predicted class (columns), shaded by the share of the true class.

    Args:
        confusion: counts, (K, K).
        classes: K names.
    """
    counts = np.asarray(confusion, dtype=int)
    num_classes = len(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = num_classes <= MAX_NUMBERED_CLASSES
    figure, axes = new_picture(WIDTH_INCHES)
    if numbered:
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(counts.shape):
            colour = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column + 0.5, row + 0.5, str(counts[row, column]), color=colour, ha="center", va="center")
        ticks, names = np.arange(num_classes) + 0.5, [short(name) for name in classes]
    else:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=(0, num_classes) * 2)
        shown = np.unique(np.linspace(0, num_classes - 1, MAX_NUMBERED_CLASSES).round().astype(int))
        ticks, names = shown + 0.5, [short(classes[k]) for k in shown]
    axes.set(xlim=(0, num_classes), ylim=(num_classes, 0), aspect="equal")
    axes.set_xticks(ticks, names, parse_math=False, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names, parse_math=False)
    axes.set(xlabel="Predicted", ylabel="True")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return svg_of(figure, "confusion")


def controls_chart(
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    label: str = "Balanced accuracy",
    chance: float | None = None,
) -> str:
    """One line per row: a dot at the value, a bar over its interval, and the value in figures.

    Args:
        rows: name, value, low, high; the first row is the model and stands out. None draws nothing.
        label: what the axis shows.
        chance: where guessing lands, a dotted line; None leaves it out.
    """
    figure, axes = new_picture(0.75 + 0.38 * len(rows))
    for place, (_, value, low, high) in enumerate(rows):
        colour, marker = (COLOURS[0], "o") if place == 0 else (COLOURS[1], "D")
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        if value is not None:
            axes.plot([value], [place], color=colour, marker=marker, markersize=7)
        text = "none" if value is None else f"{value:.3f}"
        axes.text(1.02, place, text, va="center", transform=axes.get_yaxis_transform())
    if chance is not None:
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(chance, -0.62, "chance", color=GREY, ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6), xlabel=label)
    axes.set_yticks(range(len(rows)), [short(name) for name, *_ in rows], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    return svg_of(figure, "controls")


def new_picture(height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure of the page's width and its axes, in this module's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        return figure, figure.add_subplot()


def svg_of(figure: Figure, name: str) -> str:
    """The figure as one SVG element that fills the width it is given.

    Args:
        figure: what to draw.
        name: salt of the ids inside, so that two pictures on a page do not share one.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks: the reader's browser has a font for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*_\d+"', "<g", text)  # figure_1, axes_1: nothing refers to them
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))


def short(name: str) -> str:
    """A name that fits beside an axis, on one line."""
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"

"""Scores -> pictures, each one SVG element as text, to be set into the page as it is.

Text stays text (small, selectable, any script); colours are Okabe and Ito's, told apart by colour-blind
readers, and lines differ by dashes too, for print. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

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


class Curve(NamedTuple):
    """One class against the others: points (P,) each, and the area that names it."""

    across: np.ndarray
    up: np.ndarray
    area: float


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

    def curve(positive: np.ndarray, scores: np.ndarray) -> Curve:
        alarms, hits, _ = roc_curve(positive, scores)
        return Curve(alarms, hits, float(roc_auc_score(positive, scores)))

    found = curves(labels, probabilities, task_type, curve)
    return drawn_curves(found, classes, "1 - specificity", "Sensitivity", "Area under the curve", "roc")


def precision_recall_curves(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], task_type: str) -> str:
    """Precision against sensitivity of each class, with its average precision; arguments as of `roc_curves`."""

    def curve(positive: np.ndarray, scores: np.ndarray) -> Curve:
        precision, recall, _ = precision_recall_curve(positive, scores)
        return Curve(recall, precision, float(average_precision_score(positive, scores)))

    found = curves(labels, probabilities, task_type, curve)
    return drawn_curves(found, classes, "Sensitivity (recall)", "Precision (PPV)", "Average precision", "pr")


def curves(
    labels: ArrayLike, probabilities: ArrayLike, task_type: str, curve: Callable[[np.ndarray, np.ndarray], Curve]
) -> dict[int, Curve | None]:
    """The curve of each class that is drawn, None where its known labels are all the same."""
    scores, given = np.asarray(probabilities, dtype=np.float64), np.asarray(labels).astype(int)
    truth = given == 1 if task_type == MULTILABEL else one_hot(given, scores.shape[1])
    known = given >= 0 if task_type == MULTILABEL else np.ones_like(truth)
    found: dict[int, Curve | None] = {}
    for k in [1] if task_type == BINARY else range(scores.shape[1]):
        positive = truth[known[:, k], k]
        both = positive.any() and not positive.all()
        found[k] = curve(positive, scores[known[:, k], k]) if both else None
    return found


def drawn_curves(
    found: Mapping[int, Curve | None], classes: Sequence[str], across: str, up: str, area: str, name: str
) -> str:
    """Curves in the unit square with a legend of their areas."""
    drawable = {k: curve for k, curve in found.items() if curve is not None}
    named = sorted(sorted(drawable, key=lambda k: drawable[k].area)[: len(COLOURS)])
    missing = [k for k in found if k not in drawable][: 2 * len(COLOURS) - len(named)]
    figure, axes = new_picture(WIDTH_INCHES + 0.21 * (len(named) + len(missing) - 1))
    if name == "roc":
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    handles = []
    for k, curve in drawable.items():
        num = len(curve.up)
        keep = np.unique(np.linspace(0, num - 1, min(num, MAX_CURVE_POINTS)).round().astype(int))
        place = named.index(k) if k in named else None
        look: dict[str, Any] = (
            {"color": "#c8c8c8", "linewidth": 0.7, "zorder": 1}
            if place is None
            else {"color": COLOURS[place], "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.8}
        )
        (line,) = axes.plot(curve.across[keep], curve.up[keep], **look)
        if place is not None:
            handles.append((line, f"{curve.area:.3f}  {short(classes[k])}"))
    for k in missing:
        (line,) = axes.plot([], [], color="none")
        handles.append((line, f"no curve  {short(classes[k])}"))
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=across, ylabel=up)
    title = area if len(drawable) <= len(named) else f"{area}, lowest of all classes"
    below_left(figure, handles, title)
    return svg_of(figure, name)


def reliability_diagram(found: Mapping[str, Any]) -> str:
    """Stated probability against seen share, over how many sequences are in each bin.

    Args:
        found: as `calibration.reliability` returns it.
    """
    figure, (axes, counts) = new_pictures(WIDTH_INCHES + 0.9, (3.2, 1))
    bins = [entry for entry in found["bins"] if entry["num"]]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    for entry in bins:  # the gap that the calibration error sums up
        stated = entry["stated"]
        axes.plot([stated, stated], [stated, entry["seen"]], color=COLOURS[1], linewidth=1.4)
    axes.plot(
        [entry["stated"] for entry in bins],
        [entry["seen"] for entry in bins],
        color=COLOURS[0],
        marker="o",
        linewidth=1,
    )
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="Seen share")
    middles = [(entry["from"] + entry["to"]) / 2 for entry in found["bins"]]
    heights = [entry["num"] for entry in found["bins"]]
    counts.bar(middles, heights, width=0.085, color=COLOURS[5])
    for middle, height in zip(middles, heights, strict=True):
        counts.text(middle, height, str(height), ha="center", va="bottom", fontsize=8)
    counts.set(xlabel="Stated probability", ylabel="Number", ylim=(0, 1.25 * max(*heights, 1)))
    return svg_of(figure, "reliability")


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


def new_picture(height_inches: float) -> tuple[Figure, Axes]:
    """An empty figure of the page's width and its axes, in this module's style."""
    figure, (axes,) = new_pictures(height_inches, (1,))
    return figure, axes


def new_pictures(height_inches: float, heights: Sequence[float]) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure of the page's width with axes one below the other, of these relative heights."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
        return figure, list(axes[:, 0])


def below_left(figure: Figure, handles: Sequence[tuple[Any, str]], title: str | None = None, columns: int = 1) -> None:
    """A legend under the picture; names in it are plain text, whatever they hold."""
    legend = figure.legend(
        *zip(*handles, strict=True),
        loc="outside lower left",
        title=title,
        alignment="left",
        frameon=False,
        ncols=columns,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


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

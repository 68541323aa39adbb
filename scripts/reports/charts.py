"""Values with intervals, and the course of training -> pictures in the style of `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from scripts.reports.plots import COLOURS, DASHES, GREY, below_left, new_picture, new_pictures, short, svg_of

MARKERS = ("o", "D", "s", "^")
MAX_EPOCHS = 400  # points of a learning curve

Bounds = Mapping[str, float | None]


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Bounds]]],
    label: str,
    name: str,
    *,
    series: Sequence[str] = (),
    first_stands_out: bool = False,
    span: tuple[float, float] = (0.0, 1.0),
    mark: tuple[float, str] | None = None,
) -> str:
    """One line per row: a dot at each value, a bar over its interval, and a single value in figures.

    Args:
        rows: name, and an estimate (`value`, `low`, `high`) of each series; None draws nothing.
        label: what the axis shows.
        name: of the picture, salt of the ids in it.
        series: what the estimates of a row are, where there are several.
        first_stands_out: the first row is the model, the others are compared with it.
        span: ends of the axis, moved out where an interval is longer.
        mark: where a dotted line stands and what it says.
    """
    num_series = max(len(series), 1)
    figure, axes = new_picture(0.95 + len(rows) * (0.38 + 0.16 * (num_series - 1)) + 0.25 * (num_series > 1))
    numbers = (found[part] for _, estimates in rows for found in estimates for part in ("value", "low", "high"))
    ends = [number for number in numbers if number is not None]
    low_end, high_end = min([span[0], *ends]), max([span[1], *ends])
    margin = 0.02 * (high_end - low_end)
    handles = {}
    for place, (_, estimates) in enumerate(rows):
        for s, found in enumerate(estimates):
            look = s if num_series > 1 else int(first_stands_out and place > 0)
            at = place + (s - (num_series - 1) / 2) * 0.24
            value, low, high = found["value"], found["low"], found["high"]
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=COLOURS[look], linewidth=2.2, solid_capstyle="butt")
            if value is not None:
                (handles[s],) = axes.plot(
                    [value], [at], color=COLOURS[look], marker=MARKERS[look], markersize=6, linestyle="none"
                )
            if num_series == 1:
                signed = "+" if low_end < 0 else ""
                text = "none" if value is None else f"{value:{signed}.3f}"
                axes.text(1.02, at, text, va="center", transform=axes.get_yaxis_transform())
    if mark is not None:
        axes.axvline(mark[0], color=GREY, linewidth=0.8, linestyle=":")
        axes.text(mark[0], -0.62, mark[1], color=GREY, ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(low_end - margin, high_end + margin), ylim=(len(rows) - 0.4, -0.6), xlabel=label)
    axes.set_yticks(range(len(rows)), [short(row) for row, _ in rows], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    if num_series > 1 and handles:
        below_left(figure, [(handle, series[s]) for s, handle in sorted(handles.items())], columns=num_series)
    return svg_of(figure, name)


def learning_curves(history: Mapping[int | str, Mapping[str, float | None]], best_epoch: int | None = None) -> str:
    """What was recorded after each epoch: losses above, all else below.

    Args:
        history: per epoch the numbers by name; a name with "loss" in it is a loss. None and NaN leave a gap.
        best_epoch: of the model that was kept, a dotted line.
    """
    epochs = sorted(history, key=int)
    if len(epochs) > MAX_EPOCHS:
        epochs = [epochs[k] for k in np.unique(np.linspace(0, len(epochs) - 1, MAX_EPOCHS).round().astype(int))]
    names = list(dict.fromkeys(name for epoch in epochs for name in history[epoch]))
    panels = [[name for name in names if ("loss" in name) == is_loss] for is_loss in (True, False)]
    panels = [panel for panel in panels if panel] or [[]]
    figure, pictures = new_pictures(1.0 + 1.9 * len(panels), [1] * len(panels))
    across = [int(epoch) for epoch in epochs]
    handles: list[tuple[Line2D, str]] = []
    for picture, panel in zip(pictures, panels, strict=True):
        for name in panel:
            values = np.array([history[epoch].get(name) for epoch in epochs], dtype=np.float64)
            look = len(handles) % len(COLOURS)
            marker = "o" if len(epochs) < 3 else ""  # a line of one point is not seen
            (line,) = picture.plot(
                across, values, color=COLOURS[look], linestyle=DASHES[look % len(DASHES)], linewidth=1.6, marker=marker
            )
            handles.append((line, short(name.replace("_", " "))))
        picture.set_ylabel("Loss" if panel and "loss" in panel[0] else "Score")
        picture.grid(color="#e4e4e4", linewidth=0.8)
        if best_epoch is not None:
            picture.axvline(best_epoch, color=GREY, linewidth=0.8, linestyle=":")
    if best_epoch is not None:
        where = pictures[0].get_xaxis_transform()
        pictures[0].text(best_epoch, 1.01, "kept", color=GREY, ha="center", va="bottom", fontsize=9, transform=where)
    pictures[-1].set_xlabel("Epoch")
    pictures[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if handles:
        below_left(figure, handles, columns=2)
    return svg_of(figure, "learning")

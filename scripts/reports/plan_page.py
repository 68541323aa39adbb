"""A memory plan -> one self-contained page: what was tried, by cause, over the step, and the YAML to train with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from scripts.memory.plan import COLUMNS, Plan, in_words
from scripts.memory.search import Candidate
from scripts.memory.storages import BACKWARD, CAUSES, FORWARD, OPTIMIZER, Measurement
from scripts.pages import fill
from scripts.reports.plots import COLOURS, GREY, below_left, new_picture, new_pictures, svg_of
from scripts.writing import write_file

KINDS = {  # kind of a strategy -> its name in the legend, its mark
    "none": ("nothing computed again", "o"),
    "selective": ("selective", "s"),
    "blocks": ("blocks", "^"),
    "segments": ("segments", "v"),
    "chunks": ("chunks of frames", "D"),
    "modules": ("chosen modules", "P"),
}
CAUSE_COLOURS = dict(zip(CAUSES, ("#000000", "#56b4e9", "#8a6d00", "#0072b2", "#d55e00", "#009e73"), strict=True))
MAX_BARS = 5
SMALL = 4  # times smaller than plain training: such bars are shown once more by themselves
MAX_POINTS = 240  # of a line over the step


def write_page(path: Path, plan: Plan) -> Path:
    """The path, written.

    Args:
        path: of the HTML file; its folder is made if it is not there.
        plan: also one in which nothing fits.
    """
    shown = _shown(plan)
    pictures = {"frontier": frontier(plan)}
    if shown:
        pictures["causes"] = cause_bars(plan, shown, "causes")
    if plan.plain in shown or plan.best in shown:
        pictures["course"] = course(plan, shown)
    small = [found for found in shown if SMALL * found.peak_bytes < plan.plain.peak_bytes]
    if small:
        pictures["small"] = cause_bars(plan, small, "small")
    page = fill(
        Path(__file__).parent / "plan.html.j2",
        {},
        plan=plan,
        columns=COLUMNS,
        causes=CAUSES,
        rows=plan.rows,
        by_cause=[(_label(plan, found), _megabytes(found), found is plan.best) for found in shown],
        pictures={name: Markup(svg) for name, svg in pictures.items()},
        knobs="" if plan.best is None else plan.yaml if plan.is_for_finetuning else plan.code,
    )
    write_file(path, page)
    return path


def frontier(plan: Plan) -> str:
    """Peak against extra computation of all candidates, the budget and the chosen one; SVG."""
    figure, axes = new_picture(4.6)
    points = [plan.plain, *[found for found in plan.candidates if found is not plan.plain]]
    handles = []
    for place, (kind, (name, mark)) in enumerate(KINDS.items()):
        of_kind = [found for found in points if found.strategy["kind"] == kind]
        for fits in (True, False):
            some = [found for found in of_kind if (found.peak_bytes <= plan.free_bytes) is fits]
            colour = COLOURS[place]
            axes.plot(
                [_percent(found) for found in some],
                [found.peak_bytes / 1e9 for found in some],
                mark,
                color=colour,
                markerfacecolor=colour if fits else "white",
                markersize=6.5,
            )
        if of_kind:
            handles.append((axes.plot([], [], mark, color=COLOURS[place])[0], name))
    peaks = [found.peak_bytes / 1e9 for found in points] + [plan.free_bytes / 1e9]
    axes.set_yscale("log")
    axes.set_ylim(min(peaks) / 1.35, max(peaks) * 1.35)
    _plain_ticks(axes, min(peaks) / 1.35, max(peaks) * 1.35)
    widest = max(max(map(_percent, points)), 5.0)
    axes.set_xlim(-0.06 * widest, 1.06 * widest)
    axes.axhline(plan.free_bytes / 1e9, color="#000000", linewidth=1, linestyle="--")
    if plan.best is not None:
        at = _percent(plan.best), plan.best.peak_bytes / 1e9
        axes.plot(*at, "o", markersize=15, markerfacecolor="none", color="#000000", markeredgewidth=1.6)
        handles.append((axes.plot([], [], "o", markersize=11, markerfacecolor="none", color="#000000")[0], "chosen"))
    handles.append((axes.plot([], [], "--", color="#000000")[0], f"limit, {plan.free_bytes / 1e9:.2f} GB"))
    handles.append((axes.plot([], [], "o", markerfacecolor="none", color=GREY)[0], "hollow: too large"))
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set(xlabel="Extra computation, %", ylabel="Peak, GB (logarithmic)")
    below_left(figure, handles, columns=2)
    return svg_of(figure, "frontier")


def cause_bars(plan: Plan, shown: Sequence[Candidate], name: str) -> str:
    """What is held at the peak by cause, one bar a candidate, and the limit where it is in reach; SVG."""
    figure, axes = new_picture(1.35 + 0.6 * len(shown))
    limit, longest = plan.free_bytes / 1e9, max(found.peak_bytes / 1e9 for found in shown)
    for place, found in enumerate(shown):
        start = 0.0
        for cause in CAUSES:
            width = found.measurement.by_cause[cause] / 1e9  # type: ignore[union-attr]
            axes.barh(place, width, left=start, height=0.42, color=CAUSE_COLOURS[cause], linewidth=0)
            start += width
        axes.text(0, place - 0.27, f"{start:.2f} GB: {_label(plan, found)}", va="bottom", fontsize=9, parse_math=False)
        if limit < 1.3 * longest:
            axes.vlines(limit, place - 0.25, place + 0.25, color="#000000", linewidth=1.4, linestyle=":")
    axes.set(xlim=(0, 1.05 * max(longest, limit if limit < 1.3 * longest else 0)), ylim=(len(shown) - 0.6, -0.75))
    axes.set_xlabel("At the peak, GB" + ("; dotted: the limit" if limit < 1.3 * longest else ""))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    handles = [(axes.barh(0, 0, color=CAUSE_COLOURS[cause]), cause) for cause in CAUSES]
    below_left(figure, handles, columns=3)
    return svg_of(figure, name)


def course(plan: Plan, shown: Sequence[Candidate]) -> str:
    """Bytes alive over the step, of plain training and of the plan; SVG."""
    lines = [plan.plain] if plan.best is None or plan.best is plan.plain else [plan.plain, plan.best]
    lines = [found for found in lines if found in shown]
    figure, panels = new_pictures(0.9 + 1.9 * len(lines), [1] * len(lines))
    highest = max(found.peak_bytes for found in lines) / 1e9
    top = 1.3 * max(highest, plan.free_bytes / 1e9 if plan.free_bytes / 1e9 < 2 * highest else 0)  # alike, to compare
    for panel, found in zip(panels, lines, strict=True):
        across, alive, phases = over_the_step(found.measurement)  # type: ignore[arg-type]
        panel.fill_between(across, alive, color=COLOURS[5], alpha=0.45, linewidth=0)
        panel.plot(across, alive, color=COLOURS[0], linewidth=1.2)
        for start, stop, phase in phases:
            panel.axvline(start, color=GREY, linewidth=0.8, linestyle=":") if start else None
            if stop - start > 14:
                panel.text(start + 1, 0.97 * top, phase, color="#4a4a4a", fontsize=9, va="top")
        panel.axhline(plan.free_bytes / 1e9, color="#000000", linewidth=1, linestyle="--")
        panel.set_title(_label(plan, found), loc="left", fontsize=10, parse_math=False)
        panel.set(ylim=(0, top), xlim=(0, 100), ylabel="GB")
    panels[-1].set_xlabel("Part of the step that has run, % of its operators")
    return svg_of(figure, "course")


def over_the_step(measurement: Measurement) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float, str]]]:
    """Bytes alive as a line of few points, which keeps every high.

    Returns:
        Where the step is, in per cent, (P,); GB alive, (P,); start, end and name of its phases.
    """
    alive = np.array([size for size, _ in measurement.timeline]) / 1e9
    number = len(alive)
    bounds = np.linspace(0, number, min(number, MAX_POINTS) + 1).astype(int)
    highs = np.array([alive[start:stop].max() for start, stop in pairwise(bounds)])
    names = [phase for _, phase in measurement.timeline]
    starts = [(names.index(phase), phase) for phase in (FORWARD, BACKWARD, OPTIMIZER) if phase in names]
    ends = [*[start for start, _ in starts[1:]], number]
    phases = [(100 * at / number, 100 * end / number, phase) for (at, phase), end in zip(starts, ends, strict=True)]
    return 100 * bounds[1:] / number, highs, phases


def _shown(plan: Plan) -> list[Candidate]:
    """Plain training, the plan, and the cheapest of other kinds: those whose parts are known."""
    found: list[Candidate] = []
    kinds: set[str] = set()
    first = [plan.plain, *([] if plan.best is None else [plan.best])]
    for candidate in [*first, *plan.candidates]:
        known = candidate.measurement is not None and candidate not in found
        if known and (candidate in first or candidate.strategy["kind"] not in kinds) and len(found) < MAX_BARS:
            found.append(candidate)
            kinds.add(candidate.strategy["kind"])
    return found


def _label(plan: Plan, found: Candidate) -> str:
    name = "plain" if found is plan.plain else in_words(found.strategy)
    return f"{name}, {plan.micro_batch(found)}{' (the plan)' if found is plan.best else ''}"


def _megabytes(found: Candidate) -> list[str]:
    return [f"{found.measurement.by_cause[cause] / 1e6:,.0f}" for cause in CAUSES]  # type: ignore[union-attr]


def _percent(found: Candidate) -> float:
    return 100 * max(found.extra_flops, 0.0)


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Doublings between the ends, as plain numbers, in place of powers of ten."""
    doublings = np.arange(np.ceil(np.log2(low)), np.log2(high) + 1e-9)
    ticks = 2.0 ** doublings[:: 1 + len(doublings) // 9]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()

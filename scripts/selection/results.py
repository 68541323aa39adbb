"""Scores of candidates -> results.json, results.csv, results.html, and a table for the terminal."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scripts.pages import counted, fill
from scripts.reports import charts
from scripts.reports.page import SYNTHETIC_BANNER
from scripts.reports.predictions import safe_cell, strict_json
from scripts.reports.resampling import BALANCED_ACCURACY, LIKELIHOOD, MACRO_AUROC
from scripts.reports.wording import cell_of, limits_of, text_of, value_of
from scripts.selection.search import named
from scripts.writing import write_file

BELOW = "below_chosen"
TITLES = {LIKELIHOOD: "likelihood", BALANCED_ACCURACY: "balanced accuracy", MACRO_AUROC: "macro AUROC"}
MAX_FAILURES = 3  # of a candidate, in the table


def write_results(folder: Path, results: Mapping[str, Any]) -> Path:
    """Path of results.html, written with the other two beside it.

    Args:
        folder: made if it is not there.
        results: of `scoring.score_candidates`, with `title`, `synthetic`, `num_exams`, `num_patients`, `num_folds`,
            `num_repeats`, `num_resamples`, `provenance`.
    """
    write_file(folder / "results.json", strict_json(results))
    write_file(folder / "results.csv", csv_of(results))
    path = folder / "results.html"
    write_file(path, html_of(results))
    return path


def table_of(results: Mapping[str, Any]) -> str:
    """Candidates, best first, aligned; then what was chosen and how far the numbers reach."""
    names = list(results["candidates"][0]["settings"])
    table = [("", *(name.replace("_", " ") for name in names), *TITLES.values(), "below the chosen", "epochs")]
    for place, entry in enumerate(results["candidates"], 1):
        below = "" if entry[BELOW] is None else text_of(entry[BELOW], signed=True)
        values = (*entry["settings"].values(), *(text_of(entry["scores"][name]) for name in TITLES))
        table.append((str(place), *map(cell_of, values), below, cell_of(entry["epochs"])))
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    synthetic = " (synthetic)" if results["synthetic"] else ""
    return "\n".join([results["title"] + synthetic, facts_of(results), *lines, *words_of(results), *failed(results)])


def facts_of(results: Mapping[str, Any]) -> str:
    """What was predicted, and how often."""
    return (
        f"{counted(results['num_exams'], 'exam')} of {counted(results['num_patients'], 'patient')} in training and "
        f"validation, {results['num_folds']} folds, {counted(results['num_repeats'], 'repeat')}, 95 % intervals"
    )


def words_of(results: Mapping[str, Any]) -> list[str]:
    """What was chosen, what to expect of it, and what these numbers are not."""
    chosen, entries = results["chosen"], results["candidates"]
    words = []
    if chosen is None:
        words.append("None is chosen: each lacks a fold.")
    elif len(entries) > 1:
        others = [entry[BELOW] for entry in entries if entry[BELOW] is not None]
        clear = sum(below["low"] is not None and below["low"] > 0 for below in others)
        words.append(
            f"Chosen: {named(chosen)}, the likeliest; clearly so beside {clear} of {counted(len(others), 'other')}."
        )
    if results["corrected"] is not None:
        found = ", ".join(f"{TITLES[name]} {text_of(results['corrected'][name])}" for name in TITLES)
        words.append(
            f"The best of {len(entries)} tends to look better than it is. With the choice made again in each resample "
            f"of patients and judged by the others: {found}."
        )
    words.append(
        "Each fold's model was trained on fewer exams than there are; the test split was not looked at. Quote what "
        "evaluate.yaml finds there, once, not these numbers."
    )
    return words


def failed(results: Mapping[str, Any]) -> list[str]:
    """What went wrong, a candidate at a time."""
    out = []
    for entry in results["candidates"]:
        if entry["failures"]:
            out.append(f"failed: {named(entry['settings'])}, {counted(len(entry['failures']), 'fold')}; not chosen")
            out += [f"  {text}" for text in entry["failures"][:MAX_FAILURES]]
    return out


def csv_of(results: Mapping[str, Any]) -> str:
    """A row for each candidate, best first; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("value", "low", "high")
    names = [name if part == "value" else f"{name}_{part}" for name in (*TITLES, BELOW) for part in parts]
    writer.writerow([*results["candidates"][0]["settings"], *names, "epochs", "failed_folds"])
    for entry in results["candidates"]:
        estimates = [*(entry["scores"][name] for name in TITLES), entry[BELOW] or dict.fromkeys(parts)]
        numbers = [estimate[part] for estimate in estimates for part in parts]
        settings = map(safe_cell, entry["settings"].values())
        writer.writerow([*settings, *numbers, entry["epochs"], len(entry["failures"])])
    return text.getvalue()


def html_of(results: Mapping[str, Any]) -> str:
    """The page as text."""
    rows = [
        (named(e["settings"]), [e["scores"][LIKELIHOOD], e["scores"][BALANCED_ACCURACY]]) for e in results["candidates"]
    ]
    chart = charts.interval_chart(
        rows, "Value and 95 % interval", "candidates", series=[TITLES[LIKELIHOOD], TITLES[BALANCED_ACCURACY]]
    )
    return fill(
        Path(__file__).parent / "results.html.j2",
        {"value": value_of, "limits": limits_of, "cell": cell_of},
        style=Markup((Path(charts.__file__).parent / "report.css").read_text()),  # one look for all pages
        results=results,
        names=list(results["candidates"][0]["settings"]),
        titles=TITLES,
        banner=SYNTHETIC_BANNER if results["synthetic"] else "",
        facts=facts_of(results),
        words=words_of(results),
        failed=failed(results),
        chart=Markup(chart),
        warnings=sorted({text for entry in results["candidates"] for text in entry["warnings"]}),
    )

"""Scores of the model and its controls -> report.json, report.html and a table for the terminal.

The page is one file without network access: inline style, inline SVG, no script. Only what is passed in is
written, and of the patients only their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from scripts.errors import bad_value
from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL, TASK, TYPE
from scripts.pages import aligned, counted, fill
from scripts.reports import charts, plots, wording
from scripts.reports.calibration import reliability
from scripts.reports.metrics import OVERALL_METRICS
from scripts.reports.predictions import strict_json
from scripts.reports.resampling import (
    AUPRC,
    AUROC,
    BALANCED_ACCURACY,
    BRIER,
    ECE,
    F1,
    MACRO_AUROC,
    MCC,
    NPV,
    PRECISION,
    SENSITIVITY,
    SPECIFICITY,
)
from scripts.reports.thresholds import THRESHOLD_METRICS
from scripts.reports.wording import MODEL_NAME, findings, text_of, title_of
from scripts.writing import write_file

SYNTHETIC_BANNER = "Synthetic data: these numbers say nothing about patients."
RAW_ARRAYS = ("labels", "probabilities", "patients")  # for the pictures only; never written
REQUIRED = ("title", "synthetic", TASK, "split", *RAW_ARRAYS, "model", "controls", "provenance")
RELIABILITY = "reliability"
DECISION_METRICS = (SENSITIVITY, SPECIFICITY, PRECISION, NPV, F1)
OTHER_METRICS = (BALANCED_ACCURACY, MCC, BRIER, ECE)
CLASS_SERIES = (AUROC, SENSITIVITY, SPECIFICITY)
MAX_CHART_CLASSES = 20
MAX_TABLE_CLASSES = 60


def write_report(output_dir: Path, results: Mapping[str, Any]) -> Path:
    """Path of report.html, written with report.json beside it.

    Args:
        output_dir: made if it is not there.
        results: `title`; `synthetic`, a bool; `task` with `type` and `classes`; `split`, its name; `labels`,
            `probabilities` and `patients`, for the pictures; `model`, as `metrics.score` returns it;
            `controls`, per name `score`, `difference` (model minus control, balanced accuracy, as
            `metrics.paired_difference` returns it), `explanation`, one sentence, and perhaps `question`, what the
            control answers; `provenance`, a flat mapping of what made the numbers.

            May hold as well, each shown where it is there: `absent_controls`, per name the sentence that says why
            and how to make it; `history`, per epoch its numbers by name, and `best_epoch`, for learning curves;
            `temperature`, as `calibration.fit_temperature` returns it; `thresholds`, a list of what
            `thresholds.at_thresholds` returns; `subgroups`, a list of what `subgroups.subgroup_scores` returns;
            `comparison`, as `comparison.compare_runs` returns it; `notes`, a list of sentences; `reliability`, as
            `calibration.reliability` returns it, by default made from labels and probabilities.
    """
    missing = [key for key in REQUIRED if key not in results]
    if missing:
        raise ValueError(bad_value("report", "missing entries of the results", ", ".join(missing), "none"))
    if RELIABILITY not in results:
        task = results[TASK]
        found = reliability(results["labels"], results["probabilities"], task[TYPE], task[CLASSES])
        results = {**results, RELIABILITY: found}
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = {key: value for key, value in results.items() if key not in RAW_ARRAYS}
    write_file(output_dir / "report.json", strict_json(numbers))
    path = output_dir / "report.html"
    write_file(path, html_of(results))
    return path


def summary_table(results: Mapping[str, Any]) -> str:
    """Model and controls with balanced accuracy, macro AUROC and the difference, aligned; then what they show."""
    model = results["model"]
    synthetic = " (synthetic)" if results["synthetic"] else ""
    heading = f"{results['title']}{synthetic}"
    counts = (
        f"split {results['split']}: {counted(model['num_sequences'], 'sequence')} of "
        f"{counted(model['num_patients'], 'patient')}, 95 % intervals"
    )
    table = [("", "balanced accuracy", "macro AUROC", "model minus control")]
    for row in compared(results):
        difference = "" if row["difference"] is None else text_of(row["difference"], signed=True)
        table.append((row["name"], text_of(row[BALANCED_ACCURACY]), text_of(row[MACRO_AUROC]), difference))
    words = [f"{found['question']} {found['verdict']}." for found in findings(results)]
    words += ["{question} {verdict}. {text}{command}".format(**found) for found in wording.absences(results)]
    return "\n".join([heading, counts, *aligned(table), *words])


def compared(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model, then each control: name, balanced accuracy, macro AUROC, difference, explanation."""
    controls = results["controls"]
    rows = [(MODEL_NAME, results["model"], None, "")]
    rows += [
        (name, control["score"], control["difference"], control["explanation"]) for name, control in controls.items()
    ]
    return [
        {
            "name": str(name),
            BALANCED_ACCURACY: score[BALANCED_ACCURACY],
            MACRO_AUROC: score[MACRO_AUROC],
            "difference": difference,
            "explanation": explanation,
        }
        for name, score, difference, explanation in rows
    ]


def html_of(results: Mapping[str, Any]) -> str:
    """The page as text."""
    task, model = results[TASK], results["model"]
    classes = [str(name) for name in task[CLASSES]]
    confusion = model.get("confusion")
    shown = weakest(model["per_class"], classes, MAX_TABLE_CLASSES)
    return fill(
        Path(__file__).parent / "report.html.j2",
        {
            "estimate": text_of,
            "value": wording.value_of,
            "limits": wording.limits_of,
            "number": wording.number_of,
            "p_value": wording.p_value_of,
            "title": title_of,
        },
        title=results["title"],
        banner=SYNTHETIC_BANNER if results["synthetic"] else "",
        split=results["split"],
        task_type=task[TYPE],
        classes=classes,
        shown_classes=shown,
        model=model,
        rows=compared(results),
        findings=findings(results),
        overall=[name for name in OVERALL_METRICS if name in model],
        meanings=wording.MEANINGS,
        class_tables=class_tables(model),
        threshold_metrics=THRESHOLD_METRICS,
        pictures={name: Markup(svg) for name, svg in pictures_of(results, classes).items()},
        confusion_words=wording.confusion_words(confusion, classes) if confusion is not None else "",
        per_class_curves=task[TYPE] != BINARY,
        one_label=task[TYPE] in (BINARY, MULTICLASS),
        reliability=results[RELIABILITY],
        temperature=results.get("temperature"),
        absences=wording.absences(results),
        thresholds=results.get("thresholds", []),
        subgroups=parted(results),
        comparison=results.get("comparison"),
        notes=[*model["notes"], *results.get("notes", [])],
        provenance={str(key): wording.cell_of(value) for key, value in results["provenance"].items()},
    )


def parted(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The subgroups by columns that part the sequences; of one group the scores are those of all."""
    return [found for found in results.get("subgroups", []) if len(found["groups"]) > 1]


def class_tables(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The metrics of a class, in tables that fit a sheet of paper."""
    found = next(iter(model["per_class"].values()))
    at = (name for name in found if name.startswith("sensitivity_at_specificity_"))
    return [DECISION_METRICS, (AUROC, AUPRC, *at), OTHER_METRICS]


def weakest(per_class: Mapping[str, Any], classes: Sequence[str], most: int) -> list[str]:
    """The classes, or where there are too many those with the lowest AUROC, in their own order."""
    if len(classes) <= most:
        return list(classes)

    def area(name: str) -> float:
        value = per_class[name][AUROC]["value"]
        return 2.0 if value is None else value

    chosen = set(sorted(classes, key=area)[:most])
    return [name for name in classes if name in chosen]


def pictures_of(results: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """All pictures of the page by name."""
    task_type, model = results[TASK][TYPE], results["model"]
    data = (results["labels"], results["probabilities"], classes, task_type)
    rows = compared(results)
    num_present = sum(model["per_class"][name]["num"] > 0 for name in classes)
    chance = 0.5 if task_type == MULTILABEL or not num_present else 1 / num_present
    found = {
        "roc": plots.roc_curves(*data),
        "pr": plots.precision_recall_curves(*data),
        "reliability": plots.reliability_diagram(results[RELIABILITY]),
        "controls": charts.interval_chart(
            [(row["name"], [row[BALANCED_ACCURACY]]) for row in rows],
            "Balanced accuracy",
            "controls",
            first_stands_out=True,
            mark=(chance, "chance"),
        ),
    }
    if len(rows) > 1:
        found["differences"] = charts.interval_chart(
            [(row["name"], [row["difference"]]) for row in rows[1:]],
            "Balanced accuracy: model minus control",
            "differences",
            span=(-0.1, 0.1),
            mark=(0.0, "equal"),
        )
    shown = weakest(model["per_class"], classes, MAX_CHART_CLASSES)[1 if task_type == BINARY else 0 :]
    found["classes"] = charts.interval_chart(
        [(name, [model["per_class"][name][metric] for metric in CLASS_SERIES]) for name in shown],
        "Value and 95 % interval",
        "classes",
        series=[title_of(metric) for metric in CLASS_SERIES],
    )
    if model.get("confusion") is not None:
        found["confusion"] = plots.confusion_matrix(model["confusion"], classes)
    if results.get("history"):
        found["learning"] = charts.learning_curves(results["history"], results.get("best_epoch"))
    for place, subgroup in enumerate(parted(results)):
        value = model[BALANCED_ACCURACY]["value"]
        found[f"subgroup {place}"] = charts.interval_chart(
            [(group["name"], [group[BALANCED_ACCURACY]]) for group in subgroup["groups"]],
            "Balanced accuracy",
            f"subgroup{place}",
            mark=None if value is None else (value, "all"),
        )
    return found

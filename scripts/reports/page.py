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
from scripts.pages import counted, fill
from scripts.reports import plots
from scripts.reports.predictions import plain, strict_json
from scripts.reports.resampling import BALANCED_ACCURACY, CLASS_METRICS, MACRO_AUROC
from scripts.writing import write_file

MODEL_NAME = "temporal model"
SYNTHETIC_BANNER = "Synthetic data: these numbers say nothing about patients."
NO_INTERVAL = "no interval"
RAW_ARRAYS = ("labels", "probabilities", "patients")  # for the pictures only; never written
REQUIRED = ("title", "synthetic", TASK, "split", *RAW_ARRAYS, "model", "controls", "provenance")
METRIC_TITLES = {
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision (PPV)",
    "npv": "NPV",
    "f1": "F1",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier score",
    "ece": "ECE",
}
# What losing to the model means, by control; a control may bring its own as "question".
QUESTIONS = {
    "shuffled order": "Does the order of frames help?",
    "single best frame": "Does more than one frame help?",
    "mean of frames": "Does the course over frames help, beyond their mean?",
    "time removed": "Does elapsed time help?",
    "untrained encoder": "Does the pretrained encoder help?",
}


def write_report(output_dir: Path, results: Mapping[str, Any]) -> Path:
    """Path of report.html, written with report.json beside it.

    Args:
        output_dir: made if it is not there.
        results: `title`; `synthetic`, a bool; `task` with `type` and `classes`; `split`, its name; `labels`,
            `probabilities` and `patients`, for the pictures; `model`, as `metrics.score` returns it;
            `controls`, per name `score`, `difference` (model minus control, balanced accuracy, as
            `metrics.paired_difference` returns it) and `explanation`, one sentence; `provenance`, a flat
            mapping of what made the numbers.
    """
    missing = [key for key in REQUIRED if key not in results]
    if missing:
        raise ValueError(bad_value("report", "missing entries of the results", ", ".join(missing), "none"))
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = {key: value for key, value in results.items() if key not in RAW_ARRAYS}
    write_file(output_dir / "report.json", strict_json(numbers))
    path = output_dir / "report.html"
    write_file(path, html_of(results))
    return path


def summary_table(results: Mapping[str, Any]) -> str:
    """Model and controls with balanced accuracy, macro AUROC and the difference, aligned for a terminal."""
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
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join([heading, counts, *(line.rstrip() for line in lines)])


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


def findings(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each control shows, in words: the question, a verdict, and the paired interval behind it."""
    found = []
    for name, control in results["controls"].items():
        question = control.get("question") or QUESTIONS.get(plain_name(name), f"Does the model beat “{name}”?")
        verdict, text = verdict_of(str(name), control["difference"])
        found.append({"question": question, "verdict": verdict, "text": text})
    return found


def verdict_of(control: str, difference: Mapping[str, Any]) -> tuple[str, str]:
    """Whether the model beats one control, and the sentence that says by how much."""
    value, low, high = (difference[part] for part in ("value", "low", "high"))
    if value is None:
        return "Cannot be said", "Balanced accuracy is not defined on this split."
    amount = "equal to" if value == 0 else f"{abs(value):.3f} {'higher' if value > 0 else 'lower'} than"
    text = f"The model's balanced accuracy is {amount} that of the control “{control}”"
    if low is None:
        return "Cannot be said", " ".join([f"{text}, without an interval.", *difference.get("notes", [])])
    text += f" (paired 95 % interval {low:+.3f} to {high:+.3f})."
    if low > 0:
        return "Yes", text
    if high < 0:
        return "No, it harms", text
    return "Not shown", f"{text} The interval holds zero: this split does not tell them apart."


def html_of(results: Mapping[str, Any]) -> str:
    """The page as text."""
    task, model = results[TASK], results["model"]
    classes = [str(name) for name in task[CLASSES]]
    labels, probabilities = results["labels"], results["probabilities"]
    rows = compared(results)
    chart_rows = [(row["name"], *(row[BALANCED_ACCURACY][part] for part in ("value", "low", "high"))) for row in rows]
    num_present = sum(model["per_class"][name]["num"] > 0 for name in classes)
    chance = 0.5 if task[TYPE] == MULTILABEL else 1 / num_present
    confusion = model.get("confusion")
    return fill(
        Path(__file__).parent / "report.html.j2",
        {"estimate": text_of, "value": value_of, "limits": limits_of},
        title=results["title"],
        banner=SYNTHETIC_BANNER if results["synthetic"] else "",
        split=results["split"],
        task_type=task[TYPE],
        classes=classes,
        model=model,
        rows=rows,
        findings=findings(results),
        class_metrics=[(name, METRIC_TITLES[name]) for name in CLASS_METRICS],
        roc=Markup(plots.roc_curves(labels, probabilities, classes, task[TYPE])),
        confusion=Markup(plots.confusion_matrix(confusion, classes)) if confusion is not None else "",
        controls=Markup(plots.controls_chart(chart_rows, chance=chance)),
        confusion_words=confusion_words(confusion, classes) if confusion is not None else "",
        roc_words=f"ROC curves, macro AUROC {text_of(model[MACRO_AUROC])}",
        controls_words="; ".join(f"{row['name']} {text_of(row[BALANCED_ACCURACY])}" for row in rows),
        per_class_roc=task[TYPE] != BINARY,
        one_label=task[TYPE] in (BINARY, MULTICLASS),
        provenance={str(key): cell_of(value) for key, value in results["provenance"].items()},
    )


def confusion_words(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The picture's alternative text: how many of each class were found."""
    found = [f"{name} {row[k]} of {sum(row)}" for k, (name, row) in enumerate(zip(classes, confusion, strict=True))]
    return "Confusion matrix; recognised: " + ", ".join(found)


def text_of(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """Value and interval on one line, `0.912 [0.870, 0.951]`."""
    limits = limits_of(estimate, signed)
    return f"{value_of(estimate, signed)} {limits}".rstrip()


def value_of(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """The value with three decimals, or that there is none."""
    value = estimate["value"]
    return "not defined" if value is None else f"{value:{'+' if signed else ''}.3f}"


def limits_of(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """The interval in brackets, that there is none, or nothing where the value is missing too."""
    if estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return f"({NO_INTERVAL})"
    form = "+.3f" if signed else ".3f"
    return f"[{estimate['low']:{form}}, {estimate['high']:{form}}]"


def plain_name(name: str) -> str:
    """A control's name as QUESTIONS spells it, whatever joins its words."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def cell_of(value: object) -> str:
    """A provenance value on one line; a mapping as `key value, key value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell_of(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(cell_of(item) for item in value)
    value = plain(value)
    return "none" if value is None else str(value)

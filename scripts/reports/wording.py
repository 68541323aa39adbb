"""Estimates, differences and names of metrics -> the words and figures that a reader sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.reports.predictions import plain

NO_INTERVAL = "no interval"
MODEL_NAME = "temporal model"
METRIC_TITLES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_auroc": "Macro AUROC",
    "micro_auroc": "Micro AUROC",
    "macro_auprc": "Macro AUPRC",
    "micro_auprc": "Micro AUPRC",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "micro_balanced_accuracy": "Micro balanced accuracy",
    "mcc": "MCC",
    "quadratic_kappa": "Quadratic kappa",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
    "log_loss": "Log loss",
    "likelihood": "Likelihood",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision (PPV)",
    "npv": "NPV",
    "f1": "F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
}
MEANINGS = {
    "balanced_accuracy": "mean sensitivity of the classes; of several labels, of sensitivity and specificity",
    "accuracy": "share of sequences that are right; of several labels, in all of them",
    "macro_auroc": "mean over classes, each against the others",
    "micro_auroc": "all classes and sequences in one ranking",
    "macro_auprc": "mean average precision of the classes",
    "micro_auprc": "all classes and sequences in one ranking",
    "macro_f1": "mean over classes",
    "micro_f1": "from the counts of all classes",
    "micro_balanced_accuracy": "from the counts of all classes",
    "mcc": "Matthews' correlation, 0 for guessing; of several classes Gorodkin's",
    "quadratic_kappa": "agreement beyond chance; grades further off count by their square",
    "brier": "mean squared error of the probabilities; lower is better",
    "ece": "mean distance of stated and seen shares; lower is better",
    "log_loss": "lower is better",
    "likelihood": "geometric mean of the probability given to the truth",
}
# What losing to the model means, by control; a control may bring its own as "question".
QUESTIONS = {
    "shuffled order": "Does the order of frames help?",
    "single best frame": "Does more than one frame help?",
    "mean of frames": "Does the course over frames help, beyond their mean?",
    "time removed": "Does elapsed time help?",
    "untrained encoder": "Does the pretrained encoder help?",
}


def title_of(metric: str) -> str:
    """A metric as a reader knows it."""
    prefix = "sensitivity_at_specificity_"
    if metric.startswith(prefix):
        return f"Sensitivity at {metric.removeprefix(prefix)} % specificity"
    return METRIC_TITLES.get(metric, metric.replace("_", " ").capitalize())


def findings(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each control shows, in words: the question, a verdict, and the paired interval behind it."""
    found = []
    for name, control in results["controls"].items():
        verdict, text = verdict_of(str(name), control["difference"])
        found.append({"question": control.get("question") or question_of(name), "verdict": verdict, "text": text})
    return found


def absences(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The questions that no control answers, in the form of `findings`; a command in the reason stands by itself."""
    found = []
    for name, why in results.get("absent_controls", {}).items():
        text, python, command = str(why).partition("python -m ")
        entry = {"question": question_of(name), "verdict": "Not measured", "text": text, "command": python + command}
        found.append(entry)
    return found


def question_of(control: str) -> str:
    """What losing to the model would answer."""
    return QUESTIONS.get(plain_name(control), f"Does the model beat “{control}”?")


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
    return number_of(estimate["value"], signed)


def number_of(value: float | None, signed: bool = False) -> str:
    """A number with three decimals, or that there is none."""
    return "not defined" if value is None else f"{value:{'+' if signed else ''}.3f}"


def limits_of(estimate: Mapping[str, float | None], signed: bool = False) -> str:
    """The interval in brackets, that there is none, or nothing where the value is missing too."""
    if estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return f"({NO_INTERVAL})"
    form = "+.3f" if signed else ".3f"
    return f"[{estimate['low']:{form}}, {estimate['high']:{form}}]"


def p_value_of(value: float | None) -> str:
    """A p value as journals print it."""
    if value is None:
        return "not defined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


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

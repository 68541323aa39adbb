"""Results of an evaluation as `page.write_report` takes them, made of simulated sequences."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.keys import BINARY, CLASSES, MULTICLASS, MULTILABEL, TASK, TYPE
from scripts.reports.calibration import fit_temperature
from scripts.reports.comparison import compare_runs
from scripts.reports.metrics import paired_difference, score
from scripts.reports.subgroups import subgroup_scores
from scripts.reports.thresholds import at_thresholds, choose_thresholds

NAMES = ["normal", "<b>bold</b> & 'co'", "pooling"]
EXPLAINED = {
    "shuffled order": "The same network trained and tested on frames in random order.",
    "time removed": "The same network without the times of the frames.",
    "single best frame": "Logistic regression on one frame, chosen on the validation split.",
    "mean of frames": "The same classifier on the mean of the frames.",
}


def results(
    task_type: str = MULTICLASS,
    synthetic: bool = True,
    names: list[str] = NAMES,
    num: int = 90,
    num_resamples: int = 200,
    controls: tuple[str, ...] = ("shuffled order", "single best frame"),
) -> dict[str, Any]:
    """What every report needs; patients are called secret-0 and so on."""
    rng = np.random.default_rng(0)
    names = names[:2] if task_type == BINARY else names
    patients = [f"secret-{k}" for k in rng.integers(0, 4 * num // 9, num)]
    labels = rng.integers(0, len(names), num)
    truth = labels[:, None] == np.arange(len(names))
    if task_type == MULTILABEL:
        labels = np.where(rng.random(truth.shape) < 0.1, -1, truth)
    model = simulated(rng, truth, 2.5, task_type)
    options = {"task_type": task_type, CLASSES: names, "num_resamples": num_resamples}
    found = {}
    for strength, name in zip((0.3, 0.8, 1.6, 2.4), controls, strict=False):
        control = simulated(rng, truth, strength, task_type)
        found[name] = {
            "score": score(labels, control, patients=patients, **options),
            "difference": paired_difference(labels, model, control, patients, **options),
            "explanation": f"About <{name}>. {EXPLAINED.get(name, '')}",
        }
    return {
        "title": "Held-out <evaluation>",
        "synthetic": synthetic,
        TASK: {TYPE: task_type, CLASSES: names},
        "split": "held out",
        "labels": labels,
        "probabilities": model,
        "patients": patients,
        "model": score(labels, model, patients=patients, **options),
        "controls": found,
        "provenance": {
            "seed": np.int64(3),
            "versions": {"monai": "1.6.1", "torch": "2.15.0"},
            "weights digest": "sha256:abc",
            "store digest": None,
        },
    }


def full_results(task_type: str = MULTICLASS, **changes: Any) -> dict[str, Any]:
    """The same with everything that a report may hold."""
    found = results(task_type, controls=tuple(EXPLAINED), **changes)
    labels, model, patients = found["labels"], found["probabilities"], found["patients"]
    rng, names, num = np.random.default_rng(1), found[TASK][CLASSES], len(labels)
    options = {"task_type": task_type, CLASSES: names, "num_resamples": 100}
    truth = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(len(names))
    validation = simulated(rng, truth, 2.0, task_type)
    epochs = np.arange(1, 41)
    return found | {
        "absent_controls": {
            "untrained encoder": "No store of an untrained encoder was given. Make one: "
            "python -m monai.bundle run --config_file configs/cache_features.yaml --weights random:0"
        },
        "history": {
            int(epoch): {
                "training_loss": 1.1 * np.exp(-epoch / 9) + 0.1,
                "validation_loss": 1.0 * np.exp(-epoch / 9) + 0.004 * epoch + 0.2,
                "validation_likelihood": None if epoch == 7 else 1 - 0.7 * np.exp(-epoch / 8),
            }
            for epoch in epochs
        },
        "best_epoch": 25,
        "temperature": fit_temperature(3 * np.log(validation), labels, task_type, names, "validation"),
        "thresholds": [
            at_thresholds(
                choose_thresholds(labels, validation, task_type, names, "validation", *rule),
                labels,
                model,
                patients,
                split="held out",
                **options,
            )
            for rule in (("youden",), ("specificity", 0.9))
        ],
        "subgroups": [
            subgroup_scores(column, values, labels, model, patients, **options)
            for column, values in (
                ("num_frames", rng.integers(5, 40, num).tolist()),
                ("site", [["north", "south", "a site with a very long name indeed", None][k % 4] for k in range(num)]),
            )
        ],
        "comparison": compare_runs(labels, model, validation, patients, names=("gru", "mean"), **options),
        "notes": ["Two <exams> could not be read."],
    }


def simulated(rng: np.random.Generator, truth: np.ndarray, strength: float, task_type: str) -> np.ndarray:
    """Probabilities (N, K) that favour the truth (N, K) bool by so much."""
    raised = np.exp(rng.normal(size=truth.shape) + strength * truth)
    if task_type == MULTILABEL:
        raised /= np.exp(strength / 2)
        return raised / (1 + raised)
    return raised / raised.sum(axis=1, keepdims=True)

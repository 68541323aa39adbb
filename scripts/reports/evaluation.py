"""The evaluation run: a trained model, its controls, a held-out split -> report.html, report.json, predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.datalists.datalist import is_synthetic, labelled_split
from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import (
    CLASSES,
    FRAME_INDICES,
    FRAME_TIMES,
    FRAME_WEIGHTS,
    IMAGE,
    LABEL,
    ORDERED,
    PATIENT,
    SEQUENCE,
    SOURCE,
    SYNTHETIC,
    TASK,
    TRAINING,
    TYPE,
    VALIDATION,
)
from scripts.record import RUN, versions
from scripts.reports.calibration import fit_temperature, probabilities_of
from scripts.reports.judged import Judged, controls_of, open_model
from scripts.reports.metrics import paired_difference, score
from scripts.reports.page import summary_table, write_report
from scripts.reports.predictions import AFTER_FRAME, NUM_FRAMES, PATIENT_NUMBER, PROBABILITIES, write_predictions
from scripts.reports.resampling import SPECIFICITY
from scripts.reports.subgroups import subgroup_scores
from scripts.reports.thresholds import YOUDEN, at_thresholds, choose_thresholds
from scripts.training.classes import labels_of
from scripts.training.outputs import explained, logits_of

RULES = ((YOUDEN, None), (SPECIFICITY, 0.95))  # of the thresholds, with their targets
COLUMNS = ("site", "device")  # of the datalist, by which scores are given where it has them
OF_FRAMES = "number of frames"
CURVES = {"train_loss": "training loss", "val_likelihood": "validation likelihood"}  # of run.json's epochs
SELECTED = "This split chose the model's epoch and its temperature, so its scores are too good."
RECORDED = ("encoder_name", "encoder_weights", "encoder_digest", "store_digest", "datalist_digest", "head_name", "seed")


def evaluate(
    model_path: str | Path,
    datalist: str | Path,
    dataset_dir: str | Path,
    features_dir: str | Path,
    untrained_dir: str | Path,
    report_dir: str | Path,
    split: str,
    subgroups: Sequence[str],
    device: torch.device | str,
    num_resamples: int = 2000,
    skip_missing: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a trained model beside its controls, write the report, print the table.

    Args:
        model_path: model.pt; its head is what is scored, on cached features.
        datalist: that the model was trained with; its splits `training` and `validation` train and choose the controls.
        dataset_dir: what its paths are relative to.
        features_dir: the feature store that the model was trained on.
        untrained_dir: one made with an untrained encoder; where there is none, that control is left out.
        report_dir: gets report.html, report.json, predictions.csv, predictions.json, and the controls' checkpoints.
        split: the held-out one to score.
        subgroups: columns of the datalist beside COLUMNS by whose values scores are given.
        device: where the heads run.
        num_resamples, seed: of the intervals.
        skip_missing: leave out sequences that the store does not hold, with a warning.

    Returns:
        What report.json holds, with the arrays.

    Raises:
        ValueError: the model is of other classes, another store or another list, or was trained on the split,
            before anything is trained; or a split that cannot be scored.
    """
    report_dir = Path(report_dir)
    judged = open_model(model_path, datalist, dataset_dir, features_dir)
    task = judged.task
    _refuse_seen(judged, split)
    items = {name: labelled_split(datalist, dataset_dir, name) for name in dict.fromkeys((TRAINING, VALIDATION, split))}
    data = {name: FeatureDataset(found, judged.store, skip_missing=skip_missing) for name, found in items.items()}
    _refuse_shared(data, split)
    test = data[split]
    labels, patients = labels_of(test), [str(item.get(PATIENT, item[SOURCE])) for item in test.data]
    common: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    named: dict[str, Any] = {"task_type": task.type, CLASSES: task.classes}

    logits, weights, after_frames = explained(judged.head, test, device)
    probabilities = probabilities_of(logits, task.type)
    found, absent = controls_of(judged, data, split, Path(untrained_dir), report_dir / "controls", device)
    results = {
        "title": "Angiography sequence classification: evaluation",
        SYNTHETIC: is_synthetic(datalist),
        TASK: {TYPE: task.type, CLASSES: list(task.classes), ORDERED: task.ordered},
        "split": split,
        "labels": labels,
        "probabilities": probabilities,
        "patients": patients,
        "model": score(labels, probabilities, task.type, task.classes, patients, ordered=task.ordered, **common),
        "controls": {
            name: {
                "score": score(labels, other, task.type, task.classes, patients, ordered=task.ordered, **common),
                "difference": paired_difference(labels, probabilities, other, patients, **named, **common),
                "explanation": explanation,
            }
            for name, (other, explanation) in found.items()
        },
        "absent_controls": absent,
        "subgroups": [
            subgroup_scores(column, values, labels, probabilities, patients, **named, **common)
            for column, values in groups_of(test, subgroups).items()
        ],
        **_chosen_on_validation(judged, data[VALIDATION], split, labels, probabilities, patients, device, common),
        **_history(judged),
        "provenance": _provenance(judged.card),
    }
    rows = _rows(test, probabilities, weights, after_frames, patients, task)
    write_predictions(report_dir, rows, task.classes, [], task_type=task.type, ordered=task.ordered)
    path = write_report(report_dir, results)
    print(summary_table(results))
    print(f"report: {path}")
    return results


def groups_of(test: FeatureDataset, columns: Sequence[str]) -> dict[str, list[Any]]:
    """What each sequence has in the columns by which scores are given, and its number of frames.

    Raises:
        ValueError: a column that no item has.
    """
    named: list[Any] = list(columns) if isinstance(columns, (list, tuple)) else [columns]  # a command line has one
    strange = [column for column in named if not any(column in item for item in test.data)]
    if strange:
        there = sorted({name for item in test.data for name in item} - {IMAGE, SOURCE, SEQUENCE, PATIENT, LABEL})
        allowed = f"a column of the datalist: {', '.join(there) or 'it has none beside image, label and patient'}"
        raise ValueError(bad_value("configuration", "subgroups", strange[0], allowed))
    given = [*(column for column in COLUMNS if any(column in item for item in test.data)), *named]
    found = {column: [item.get(column) for item in test.data] for column in dict.fromkeys(given)}
    return {**found, OF_FRAMES: test.lengths.tolist()}


def _chosen_on_validation(
    judged: Judged,
    validation: FeatureDataset,
    split: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: list[str],
    device: torch.device | str,
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """Temperature and thresholds, which the validation split chooses; not of a model that was trained on it too."""
    if judged.refit:
        note = "The model was trained on the validation split too, so no threshold is chosen there."
        return {"notes": [note]}
    task, known = judged.task, labels_of(validation)
    logits = logits_of(judged.head, validation, device)
    temperature = float(judged.head.temperature)  # type: ignore[arg-type]
    found: dict[str, Any] = {"notes": [SELECTED] if split == VALIDATION else []}
    if temperature != 1.0:
        found["temperature"] = fit_temperature(logits * temperature, known, task.type, task.classes, VALIDATION)
    stated = probabilities_of(logits, task.type)
    chosen = [choose_thresholds(known, stated, task.type, task.classes, VALIDATION, *rule) for rule in RULES]
    named: dict[str, Any] = {"task_type": task.type, CLASSES: task.classes, "split": split}
    found["thresholds"] = [at_thresholds(rule, labels, probabilities, patients, **named, **common) for rule in chosen]
    return found


def _history(judged: Judged) -> dict[str, Any]:
    """The learning curves, if the run.json beside the model is that of its training."""
    path = judged.path.with_name(RUN)
    try:
        record = json.loads(path.read_text())
        told = {name: record["recipe"].get(name) for name in ("store_digest", "datalist_digest", "head_name", "seed")}
        if all(judged.card.get(name) == value for name, value in told.items()):
            shown = {row["epoch"]: {CURVES[k]: v for k, v in row.items() if k in CURVES} for row in record["history"]}
            return {"history": shown, "best_epoch": record["best_epoch"]}
    except (OSError, ValueError, KeyError, TypeError):  # absent, or another program's
        pass
    return {}


def _rows(
    test: FeatureDataset,
    probabilities: np.ndarray,
    weights: Sequence[np.ndarray],
    after_frames: Sequence[torch.Tensor],
    patients: Sequence[str],
    task: Task,
) -> list[dict[str, Any]]:
    """What predictions.csv and predictions.json say of each sequence; of its patient only a number of this list's."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    rows = []
    for n, item in enumerate(test.data):
        stored = test.plain(n)
        rows.append(
            {
                SEQUENCE: item.get(SEQUENCE, item[SOURCE]),
                IMAGE: item[SOURCE],
                PATIENT_NUMBER: numbers[patients[n]],
                LABEL: item[LABEL],
                NUM_FRAMES: len(stored.features),
                PROBABILITIES: probabilities[n],
                FRAME_INDICES: stored.frame_indices.tolist(),
                FRAME_TIMES: stored.frame_times_ms.double().numpy().round(3),
                FRAME_WEIGHTS: weights[n],
                AFTER_FRAME: probabilities_of(after_frames[n].numpy(), task.type),
            }
        )
    return rows


def _refuse_seen(judged: Judged, split: str) -> None:
    """Refuse a split that the model was trained on."""
    if split == TRAINING or (split == VALIDATION and judged.refit):
        raise ValueError(
            bad_value("configuration", "split", split, "one that the model was not trained on, such as test")
        )


def _refuse_shared(data: Mapping[str, FeatureDataset], split: str) -> None:
    """Refuse a held-out exam whose very bytes are in another split under another name."""
    others = [data[name] for name in data if name != split]
    seen = {key: item[SOURCE] for other in others for key, item in zip(other.keys, other.data, strict=True)}
    for key, item in zip(data[split].keys, data[split].data, strict=True):
        if key in seen:
            raise ValueError(bad_value(item[SOURCE], "content", f"that of {seen[key]}", "an exam of one split only"))


def _provenance(card: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers were made with; nothing of a patient or a place."""
    return {name: str(card[name]) for name in RECORDED if name in card} | versions()

"""The evaluation run: model and controls on a held-out split -> report.html, report.json and a table."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.datalists.datalist import Task, datalist_digest
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import PATIENT, SOURCE
from scripts.networks.card import HEAD, load_fitting, read_card
from scripts.networks.weights import read_state
from scripts.reports.metrics import paired_difference, score
from scripts.reports.page import summary_table, write_report
from scripts.training.controls import labels_of, predict, single_best_frame

RECORDED_PACKAGES = ("torch", "monai", "timm", "pydicom", "scikit-learn", "numpy")


def evaluate(
    model_path: str | Path,
    head: nn.Module,
    shuffled_head: nn.Module,
    shuffled_path: str | Path,
    training: FeatureDataset,
    validation: FeatureDataset,
    test: FeatureDataset,
    shuffled_test: FeatureDataset,
    task: Task,
    datalist: str | Path,
    output_dir: str | Path,
    split: str,
    device: torch.device | str,
    synthetic: bool,
    seed: int = 0,
    num_resamples: int = 2000,
) -> dict[str, Any]:
    """Score a trained model beside its controls, write the report, print the table.

    Args:
        model_path: model.pt; its head is what is scored, on cached features.
        head: of that architecture, takes the weights.
        shuffled_head: the same architecture, trained on shuffled frames by the same recipe.
        shuffled_path: its best checkpoint.
        training, validation: fit and choose the single-frame control.
        test: the held-out split.
        shuffled_test: the same with frames shuffled.
        task: type and classes.
        datalist: where the splits come from.
        output_dir: gets report.html and report.json.
        split: name of the held-out split.
        device: where the heads run.
        synthetic: label every number so.
        seed: of the bootstrap.
        num_resamples: of the bootstrap.

    Returns:
        What report.json holds, with the arrays.
    """
    card = read_card(model_path)
    if tuple(card["classes"]) != task.classes:
        raise ValueError(
            bad_value(model_path, "classes", ", ".join(card["classes"]), f"those of the datalist: {task.classes}")
        )
    for key, now, what in (
        ("store_digest", test.store.digest, "the feature store it was trained on"),
        ("datalist_digest", datalist_digest(datalist), "the datalist it was trained with"),
    ):
        if card.get(key) != now:
            allowed = f"{str(card.get(key))[:16]}, {what}: another may hold exams that it has seen"
            raise ValueError(bad_value(model_path, key, now[:16], allowed, "Train again with train.yaml."))
    _refuse_shared(test, training, validation)
    state = read_state(model_path)
    load_fitting(head, {n.removeprefix(HEAD): t for n, t in state.items() if n.startswith(HEAD)}, Path(model_path))
    shuffled_head.load_state_dict(read_state(shuffled_path))
    labels = labels_of(test)
    patients = [str(item.get(PATIENT, item[SOURCE])) for item in test.data]
    alone, position = single_best_frame(training, validation, test, len(task.classes), task.type)
    probabilities = predict(head, test, device, task.type)
    controls = {
        "single best frame": (
            alone,
            f"Logistic regression on one frame, at {position:.0%} of the run, chosen on the validation split.",
        ),
        "shuffled order": (
            predict(shuffled_head, shuffled_test, device, task.type),
            "The same network trained and tested on frames in random order, times left in place.",
        ),
    }
    settings: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    results = {
        "title": "Angiography sequence classification: evaluation",
        "synthetic": synthetic,
        "task": {"type": task.type, "classes": list(task.classes)},
        "split": split,
        "labels": labels,
        "probabilities": probabilities,
        "patients": patients,
        "model": score(labels, probabilities, task.type, task.classes, patients, **settings),
        "controls": {
            name: {
                "score": score(labels, found, task.type, task.classes, patients, **settings),
                "difference": paired_difference(
                    labels,
                    probabilities,
                    found,
                    patients,
                    task_type=task.type,
                    classes=task.classes,
                    **settings,
                ),
                "explanation": explanation,
            }
            for name, (found, explanation) in controls.items()
        },
        "provenance": _provenance(card),
    }
    path = write_report(Path(output_dir), results)
    print(summary_table(results))
    print(f"report: {path}")
    return results


def _refuse_shared(test: FeatureDataset, *others: FeatureDataset) -> None:
    """Refuse a held-out exam whose very bytes are in another split under another name."""
    seen = {key: item[SOURCE] for other in others for key, item in zip(other.keys, other.data, strict=True)}
    for key, item in zip(test.keys, test.data, strict=True):
        if key in seen:
            raise ValueError(bad_value(item[SOURCE], "content", f"that of {seen[key]}", "an exam of one split only"))


def _provenance(card: dict[str, Any]) -> dict[str, str]:
    """What the numbers were made with; nothing of a patient or a place."""
    kept = ("encoder_name", "encoder_weights", "encoder_digest", "store_digest", "datalist_digest", "seed")
    record = {name: str(card[name]) for name in kept if name in card}
    record |= {"python": platform.python_version(), "machine": platform.machine()}
    return record | {package: version(package) for package in RECORDED_PACKAGES}

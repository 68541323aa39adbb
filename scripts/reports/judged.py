"""model.pt, list, store -> the model with what it was trained on, checked; what its controls make of a split."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from scripts.datalists.datalist import datalist_digest, is_synthetic, read_task
from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import CLASSES, ENTRY, LABEL, MULTILABEL, SYNTHETIC, TASK, TRAINING, TYPE, VALIDATION
from scripts.networks.card import HEAD, NOMINAL, load_fitting, read_card, require_model
from scripts.networks.encoder import encodes_volumes
from scripts.networks.heads import make_head
from scripts.networks.weights import read_state
from scripts.reports.calibration import probabilities_of
from scripts.store.origin import FINGERPRINT_FILE
from scripts.store.store import FeatureStore
from scripts.training.controls import (
    SINGLE_FRAME,
    TRAINED_CONTROLS,
    UNTRAINED,
    is_finetuned,
    recipe_of,
    single_best_frame,
    train_control,
)
from scripts.training.outputs import logits_of
from scripts.training.workflow import BUNDLE_ROOT

HEAD_OPTIONS = ("hidden_size", "num_layers", "bidirectional", "readout", "dropout", "use_times")


@dataclass(frozen=True)
class Judged:
    """A model that may be scored: it is of this task, trained on this store with this list."""

    path: Path
    card: dict[str, Any]
    head: nn.Module
    task: Task
    store: FeatureStore
    datalist: Path

    @property
    def refit(self) -> bool:
        """Whether it was trained on the validation split too, which then chooses nothing."""
        return "refit" in self.card


def open_model(
    model_path: str | Path, datalist: str | Path, dataset_dir: str | Path, features_dir: str | Path
) -> Judged:
    """A model with what it was trained on, checked to be just that; a finetuned one with features of its own encoder.

    Raises:
        FileNotFoundError: there is no such model, list or store.
        ValueError: classes, store or list are not those of its card.
    """
    path = require_model(model_path)
    card, task = read_card(path), read_task(datalist, dataset_dir)
    if is_finetuned(card):
        _require_features_of(path, card, Path(features_dir))
    store = FeatureStore.open(Path(features_dir))
    if (card["task_type"], tuple(card["classes"])) != (task.type, task.classes):
        found = f"{card['task_type']}: {', '.join(card['classes'])}"
        raise ValueError(
            bad_value(path, "task", found, f"that of the datalist, {task.type}: {', '.join(task.classes)}")
        )
    for key, now, what in (
        ("store_digest", store.digest if not is_finetuned(card) else None, "the feature store it was trained on"),
        ("datalist_digest", datalist_digest(datalist), "the datalist it was trained with"),
    ):
        if card.get(key) != now:
            allowed = f"{str(card.get(key))[:16]}, {what}: another may hold exams that it has seen"
            raise ValueError(bad_value(path, key, str(now)[:16], allowed, "Train again."))
    state = {n.removeprefix(HEAD): t for n, t in read_state(path).items() if n.startswith(HEAD)}
    options = {name: card[name] for name in HEAD_OPTIONS if name in card}
    head = make_head(card["head_name"], len(state["mean"]), len(task.classes), **options)
    load_fitting(head, state, path)
    return Judged(path, card, head, task, store, Path(datalist))


def controls_of(
    judged: Judged,
    data: Mapping[str, FeatureDataset],
    split: str,
    untrained_dir: Path,
    folder: Path,
    device: torch.device | str,
) -> tuple[dict[str, tuple[np.ndarray, str]], dict[str, str]]:
    """Probabilities (N, K) of each control and the sentence that explains it; of each absent one why it is.

    Their heads are trained on the entries of the store that the datalist's exams have, so no image is read again.
    """
    task, recipe = judged.task, recipe_of(judged.card)
    alone, position = single_best_frame(data[TRAINING], data[VALIDATION], data[split], len(task.classes), task.type)
    found = {
        SINGLE_FRAME: (
            alone,
            f"Logistic regression on one frame, at {100 * position:.0f} % of the run, chosen on the validation split.",
        )
    }
    absent: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "datalist.json"
    listed.write_text(_entries(judged, data))
    places: dict[str, Any] = {"dataset_dir": str(folder), "datalist": str(listed), "device": str(device)}
    places["progress"] = False  # one bar for all of them
    bar = tqdm(TRAINED_CONTROLS.items(), desc="controls", unit="control", mininterval=1, disable=None)  # none in a log
    for name, (changes, explanation) in bar:
        bar.set_postfix_str(name)
        store = judged.store
        if changes and all(recipe.get(id) == value for id, value in changes.items()):
            absent[name] = "The model itself is of this kind."
            continue
        if name == UNTRAINED:
            if not (untrained_dir / FINGERPRINT_FILE).is_file():
                absent[name] = _make_untrained(judged)
                continue
            store = FeatureStore.open(untrained_dir)
        with logging_redirect_tqdm():
            control = train_control(
                name, recipe, folder / name.replace(" ", "_"), store, judged.card["datalist_digest"], places
            )
        places["num_threads"] = control.num_threads  # measured once
        shown = changes.get("frames_shown", "all")
        seen = [{**item, ENTRY: key} for item, key in zip(data[split].data, data[split].keys, strict=True)]
        dataset = FeatureDataset(seen, store, frames_shown=shown, seed=recipe["seed"])
        found[name] = probabilities_of(logits_of(control.head, dataset, device), task.type), explanation
    return found, absent


def _entries(judged: Judged, data: Mapping[str, FeatureDataset]) -> str:
    """The JSON of a datalist that names exams by their entries in the store, and no patient or file."""
    content: dict[str, Any] = {TASK: {TYPE: judged.task.type, CLASSES: list(judged.task.classes)}}
    content[SYNTHETIC] = is_synthetic(judged.datalist)
    several = judged.task.type == MULTILABEL
    for split in (TRAINING, VALIDATION):
        content[split] = [
            {ENTRY: key, LABEL: [None if v < 0 else v for v in item[LABEL]] if several else item[LABEL]}
            for key, item in dict(zip(data[split].keys, data[split].data, strict=True)).items()
        ]
    return json.dumps(content)


def _make_untrained(judged: Judged) -> str:
    """Why the control of an untrained encoder is absent, and the command that makes what it needs."""
    return (
        "There are no features of an untrained encoder. With this evaluation's dataset_dir and datalist, and its "
        "untrained_dir as features_dir, this makes them: "
        + _command({**judged.store.settings, "encoder_weights": "random:0"})
    )


def _require_features_of(path: Path, card: Mapping[str, Any], folder: Path) -> None:
    """Refuse a store that the encoder of a finetuned model did not make, from exams prepared as it was trained.

    Raises:
        ValueError: names what differs, and the command that makes the features.
    """
    found = "absent"
    if (folder / FINGERPRINT_FILE).is_file():
        store = FeatureStore.open(folder)
        decided = [name for name in store.settings if name in card and name != "encoder_weights"]
        differ = [name for name in decided if store.settings[name] != card[name]]
        if not differ and store.fingerprint["encoder"]["digest"] == card["encoder_digest"]:
            return
        found = f"of another {differ[0] if differ else 'encoder'}"
    settings = {name: card[name] for name in _defaults() if name in NOMINAL} | {"encoder_weights": str(path)}
    way_out = (
        "With this evaluation's dataset_dir and datalist, and a features_dir of its own that is given here too, this "
        f"makes them: {_command(settings)}"
    )
    raise ValueError(bad_value(path, "features", found, "those of its own encoder, which was finetuned", way_out))


def _command(settings: Mapping[str, Any]) -> str:
    """The command line of cache_features.yaml with these knobs."""
    given = [f"--{name} '{value}'" for name, value in settings.items() if _defaults().get(name) != value]
    volumes = encodes_volumes(settings["encoder_name"])
    files = "\"['configs/cache_features.yaml','configs/volumes.yaml']\"" if volumes else "configs/cache_features.yaml"
    return f"python -m monai.bundle run --config_file {files} {' '.join(given)}"


@functools.cache
def _defaults() -> dict[str, Any]:
    """What cache_features.yaml has."""
    return yaml.safe_load((BUNDLE_ROOT / "configs" / "cache_features.yaml").read_text())

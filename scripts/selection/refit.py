"""The chosen recipe -> models/model.pt, trained on all exams that it was chosen by."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from scripts.keys import TRAINING
from scripts.selection.exams import Exams
from scripts.selection.search import SHARED
from scripts.training.workflow import part, train


def refit(
    options: Mapping[str, Any],
    epochs: int,
    temperature: float,
    workflow: ConfigWorkflow,
    exams: Exams,
    facts: Mapping[str, Any],
) -> Path:
    """Path of the model, written with its card and run.json by train.yaml.

    No exam is left to stop by, so training ends after as many epochs as were best in the folds, at the same point of
    the same schedule, and the last weights are kept.

    Args:
        options: of the chosen recipe.
        epochs: to train for.
        temperature: that logits are divided by, of the predictions out of fold.
        workflow: store and encoder are taken from it.
        exams: training and validation, all of which are trained on.
        facts: for the card and run.json.
    """
    with tempfile.TemporaryDirectory() as scratch:
        datalist = Path(scratch) / "datalist.json"
        datalist.write_text(exams.datalist(**{TRAINING: range(len(exams.items))}), encoding="utf-8")
        overrides = {
            **options,
            **{name: part(workflow, name) for name in SHARED},
            "datalist": str(datalist),
            "checkpoint_dir": str(Path(part(workflow, "output_dir")) / "refit"),
            "calibrate": False,  # the temperature is that of the predictions out of fold
            "resume": False,
            "train::trainer::max_epochs": epochs,  # max_epochs itself stays the length of the schedule
            # The engines want a validation: once, after the last epoch, of what was trained on, and named so.
            "val_interval": epochs,
            "validate::dataset": "@train::dataset",
            "validate::key_metric": {"train_likelihood": {"_target_": "scripts.training.engine.likelihood_metric"}},
            "trained::val_interval": part(workflow, "val_interval"),  # of the recipe, for those who train by the card
            "trained::datalist_digest": exams.digest,  # of the whole list, whose test split it may be judged by
            "trained::refit": {**facts, "epochs": epochs},
        }
        trained = train(overrides, finalize=True, temperature=temperature)
        return Path(part(trained.workflow, "model_path"))

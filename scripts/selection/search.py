"""Recipes, folds -> out-of-fold logits of each recipe; folds that an earlier run has finished are read, not trained."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser, ConfigWorkflow
from tqdm import tqdm

from scripts.features.batching import FeatureDataset
from scripts.keys import TEST, TRAINING, VALIDATION
from scripts.overrides import our_error
from scripts.selection.exams import Exams
from scripts.selection.folds import Fold
from scripts.training.outputs import logits_of
from scripts.training.threads import AUTO
from scripts.training.workflow import RECIPE, code_digest, part, train
from scripts.writing import write_file

logger = logging.getLogger("angiography")

SHARED = ("store", "encoder", "encoder_digest")  # made once, for all trainings
# What a fold does not follow from: places, and how it is computed rather than what.
ELSEWHERE = (
    *("bundle_root", "dataset_dir", "datalist", "output_dir", "features_dir", "models_dir", "model_path"),
    *("checkpoint_dir", "progress", "num_threads", "in_memory", "resume", "mlflow_uri"),
)


@dataclass
class Candidate:
    """A recipe, and what came of it.

    Attributes:
        settings: ids of train.yaml and their values, in which it differs from the others.
        logits: of each exam in each repeat, by the model of the fold that did not see it, (R, N, K); NaN where a fold
            failed.
        best_epochs: of each finished fold.
        failures: what the failed folds said.
        warnings: what folds warned of, each once.
    """

    settings: dict[str, Any]
    logits: np.ndarray
    best_epochs: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def search(
    grid: Sequence[dict[str, Any]],
    recipe: Mapping[str, Any],
    workflow: ConfigWorkflow,
    exams: Exams,
    folds: Sequence[Fold],
    progress: bool = True,
) -> list[Candidate]:
    """Each candidate of the grid, trained on every fold by train.yaml; a fold that fails does not stop the others.

    A finished fold is kept in `output_dir`/folds under the digest of all that it follows from: recipe, code, store,
    exams and their labels, parts. A run that was stopped goes on when the same command is given, and another command
    finds what both have in common.

    Args:
        grid: settings of each candidate.
        recipe: the ids that all have in common.
        workflow: of that recipe; store and encoder are taken from it.
        exams: that the folds are of.
        folds: of `make_folds`.
        progress: show a bar.
    """
    shared = {name: part(workflow, name) for name in SHARED}
    stated = ConfigParser.load_config_file(str(RECIPE))
    seed, kept = part(workflow, "seed"), Path(part(workflow, "output_dir")) / "folds"
    frames = {name: part(workflow, name) for name in ("frames_shown", "seed")}
    num_threads: dict[Any, int] = {}  # that train a head fastest, measured once
    repeats = 1 + max(fold.repeat for fold in folds)
    shape = (repeats, len(exams.items), len(exams.task.classes))
    candidates = [Candidate(settings, np.full(shape, np.nan)) for settings in grid]
    with tqdm(total=len(grid) * len(folds), desc="cross-validation", unit="fold", disable=not progress) as bar:
        for candidate, fold in product(candidates, folds):
            bar.set_postfix_str(named(candidate.settings))
            options = {**recipe, **candidate.settings, "seed": seed + fold.repeat}
            head_name = options.get("head_name")
            lists = {TRAINING: fold.training, VALIDATION: fold.validation, TEST: fold.held_out}
            datalist = exams.datalist(**lists)
            path = kept / f"{_follows_from({**stated, **options}, shared['store'].digest, datalist)}.json"
            done = _finished(path, (len(fold.held_out), shape[2]))
            if done is None:
                if options.get("num_threads", AUTO) == AUTO:
                    options["num_threads"] = num_threads.get(head_name, AUTO)
                held_out = FeatureDataset(exams.select(fold.held_out), shared["store"], **frames)
                try:
                    done = _train({**options, **shared}, datalist, held_out)
                    write_file(path, json.dumps(done, allow_nan=False) + "\n")
                except Exception as error:
                    ours = our_error(error)
                    if ours is None:  # a slip, not a recipe that fails
                        raise
                    candidate.failures.append(f"repeat {fold.repeat + 1}, fold {fold.number + 1}: {ours}")
            if done is not None:
                num_threads.setdefault(head_name, done["num_threads"])
                candidate.logits[fold.repeat, fold.held_out] = done["logits"]
                candidate.best_epochs.append(done["best_epoch"])
                candidate.warnings += [text for text in done["warnings"] if text not in candidate.warnings]
            bar.update()
    return candidates


def _train(overrides: Mapping[str, Any], datalist: str, held_out: FeatureDataset) -> dict[str, Any]:
    """What a fold leaves, as JSON holds it; its weights are not kept."""
    with tempfile.TemporaryDirectory() as folder, warnings_kept() as warned:
        path = Path(folder) / "datalist.json"
        path.write_text(datalist, encoding="utf-8")
        own = {"datalist": str(path), "checkpoint_dir": f"{folder}/checkpoints", "progress": False, "resume": False}
        trained = train({**overrides, **own})
        return {
            "best_epoch": trained.best_epoch,
            "num_threads": trained.num_threads,
            "warnings": warned,
            "logits": logits_of(trained.head, held_out, part(trained.workflow, "device")).tolist(),
        }


def named(settings: Mapping[str, Any]) -> str:
    """A candidate's name: its values."""
    return ", ".join(str(value) for value in settings.values())


@contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """A list that gets what the bundle warns of; neither that nor what ignite says of an error is shown meanwhile."""
    found: list[str] = []
    keeper = logging.Handler(logging.WARNING)
    keeper.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    engines = logging.getLogger("ignite")
    propagates, level = logger.propagate, engines.level
    logger.addHandler(keeper)
    logger.propagate = False
    engines.setLevel(logging.CRITICAL)
    try:
        yield found
    finally:
        logger.removeHandler(keeper)
        logger.propagate = propagates
        engines.setLevel(level)


def _follows_from(recipe: Mapping[str, Any], store_digest: str, datalist: str) -> str:
    """Digest of all that the result of a fold follows from, on machines that compute alike."""
    recipe = {name: value for name, value in recipe.items() if name not in ELSEWHERE}
    content = {"recipe": recipe, "store": store_digest, "datalist": datalist, "code": code_digest()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _finished(path: Path, shape: tuple[int, int]) -> dict[str, Any] | None:
    """The result in a file; None where there is none, or none that could be used."""
    try:
        done = json.loads(path.read_text())
        logits = np.array(done["logits"], dtype=np.float64)
        usable = logits.shape == shape and bool(np.isfinite(logits).all()) and "warnings" in done
        return done if usable and done["best_epoch"] > 0 and done["num_threads"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

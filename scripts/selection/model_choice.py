"""Command line -> candidates, cross-validated and compared in one table; the chosen one trained on all exams."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from scripts.errors import bad_value
from scripts.networks.heads import HEADS
from scripts.overrides import check_value
from scripts.record import RunRecord
from scripts.selection.exams import find_exams
from scripts.selection.folds import check_classes, make_folds
from scripts.selection.refit import refit as train_on_all
from scripts.selection.results import table_of, write_results
from scripts.selection.scoring import score_candidates
from scripts.selection.search import search
from scripts.training.workflow import check_overrides, open_workflow, part

HEAD_NAME, LEARNING_RATE = "head_name", "learning_rate"
TITLES = {"cross_validate": "Cross-validation by patient", "sweep": "Recipes compared by cross-validation"}


def choose(
    command: str,
    heads: Sequence[str] | None,
    learning_rates: Sequence[float] | None,
    folds: int,
    repeats: int,
    num_resamples: int,
    refit: bool,
    recipe: Mapping[str, Any],
) -> tuple[str, bool]:
    """The table and where things lie, in words, and whether all went well.

    Writes results.json, results.csv, results.html and run.json into `output_dir`/`command`.

    Args:
        command: cross_validate or sweep.
        heads: to compare; None: the recipe's.
        learning_rates: to compare with each head; None: the recipe's.
        folds, repeats: of `make_folds`.
        num_resamples: of the bootstrap.
        refit: also train the chosen candidate on all exams and write the model.
        recipe: ids of train.yaml.

    Raises:
        ValueError: what train.yaml's command line refuses, an unknown head, or exams that make no folds.
    """
    for name, listed, values in ((HEAD_NAME, "heads", heads), (LEARNING_RATE, "learning_rates", learning_rates)):
        if values is not None and name in recipe:
            raise ValueError(bad_value(command, f"--{name}", recipe[name], f"--{listed} in its place"))
    for name, value in (("folds", folds), ("repeats", repeats), ("num_resamples", num_resamples)):
        check_value(name, str(value), 1)
    check_value("refit", str(refit), False)
    check_overrides(recipe)
    workflow = open_workflow(recipe)
    options = [list(dict.fromkeys(heads or [part(workflow, HEAD_NAME)]))]
    options += [list(dict.fromkeys(learning_rates or [part(workflow, LEARNING_RATE)]))]
    grid = [dict(zip((HEAD_NAME, LEARNING_RATE), values, strict=True)) for values in product(*options)]
    for settings in grid:
        if settings[HEAD_NAME] not in HEADS:
            raise ValueError(bad_value(command, "head", settings[HEAD_NAME], f"one of {', '.join(HEADS)}"))
        check_overrides(settings)
    record, task, seed = RunRecord(command), part(workflow, "task"), part(workflow, "seed")
    places = (part(workflow, "datalist"), part(workflow, "dataset_dir"))
    exams = find_exams(*places, part(workflow, "store"), task, part(workflow, "skip_missing"))
    check_classes(exams.labels, exams.patients, task, folds)
    parts = make_folds(exams.strata, exams.patients, folds, repeats, seed)
    candidates = search(grid, recipe, workflow, exams, parts, part(workflow, "progress"))
    facts = {
        "num_exams": len(exams.items),
        "num_patients": len(set(exams.patients)),
        "num_folds": folds,
        "num_repeats": repeats,
        "num_resamples": num_resamples,
        "seed": seed,
    }
    provenance = {
        "encoder_digest": part(workflow, "encoder_digest"),
        "store_digest": part(workflow, "store").digest,
        "datalist_digest": exams.digest,
        "torch": str(torch.__version__),
    }
    results = {
        "title": TITLES[command],
        "synthetic": exams.synthetic,
        **facts,
        **score_candidates(candidates, exams, num_resamples, seed),
        "provenance": {**facts, **provenance},
    }
    folder = Path(part(workflow, "output_dir")) / command
    page = write_results(folder, results)
    record.write([folder], {**facts, **provenance, "grid": grid, "chosen": results["chosen"]})
    said = [table_of(results), f"results: {page}"]
    chosen = results["candidates"][0]
    if refit and results["chosen"] is not None:
        temperature = results["temperature"]
        summary = {**facts, "candidates": len(grid), "temperature": temperature}
        model = train_on_all(
            {**recipe, **chosen["settings"]}, chosen["epochs"], temperature["temperature"], workflow, exams, summary
        )
        said.append(f"model: {model}, trained on training and validation for {chosen['epochs']} epochs")
        said.append("judge it by configs/evaluate.yaml, on the test split")
    return "\n".join(said), not any(candidate.failures for candidate in candidates)

"""The final training: on all exams, for the epochs given, along the same schedule, with a temperature."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.features.batching import FeatureDataset, feature_scale
from scripts.keys import TASK, TEST
from scripts.networks.card import card_path
from scripts.selection.exams import find_exams
from scripts.selection.refit import refit
from scripts.training.workflow import open_workflow, part, train
from tests.runs import QUICK, weights, write_features
from tests.test_evaluation import evaluate, message_of

FACTS = {"num_folds": 3, "candidates": 2}


@pytest.fixture
def made(tmp_path) -> tuple[Path, dict[str, Any], Any, Any]:
    """Folder, recipe, workflow and exams; a test split lies beside them."""
    options = {
        **write_features(tmp_path, {"training": 12, "validation": 6, TEST: 6}),
        **{**QUICK, "max_epochs": 8, "progress": False, "head_name": "mean"},
        **{"output_dir": str(tmp_path / "out"), "model_path": str(tmp_path / "out" / "model.pt")},
    }
    workflow = open_workflow(options)
    exams = find_exams(tmp_path / "datalist.json", tmp_path, part(workflow, "store"), part(workflow, TASK), False)
    return tmp_path, options, workflow, exams


def test_model_is_trained_on_training_and_validation_and_not_on_the_test_split(made):
    _, options, workflow, exams = made
    model = refit(options, 3, 1.5, workflow, exams, FACTS)
    both = FeatureDataset(exams.select(range(18)), part(workflow, "store"))
    mean, _ = feature_scale(both)
    state = weights(model)
    torch.testing.assert_close(state["head.mean"], mean)  # standardised by what it was trained on
    assert len(both) == 18 and state["head.temperature"] == 1.5
    assert not torch.allclose(state["head.mean"], feature_scale(FeatureDataset(both.data[:12], both.store))[0])


def test_training_ends_after_the_epochs_given_on_the_schedule_of_the_folds(made):
    folder, options, workflow, exams = made
    refit(options, 3, 1.0, workflow, exams, FACTS)
    state = torch.load(folder / "out" / "refit" / "state.pt", weights_only=True)
    assert (state["epoch"], state["best_metric_epoch"], state["finished"]) == (3, 3, True)
    assert all(torch.equal(tensor, weights(folder / "out/refit/last.pt")[n]) for n, tensor in state["best"].items())
    # As many batches an epoch as here, without a stop: the learning rates of its first epochs are the same.
    content = json.loads((folder / "datalist.json").read_text())
    content["training"] += content.pop("validation")
    content["validation"] = content.pop(TEST)
    (folder / "all.json").write_text(json.dumps(content))
    whole = {**options, "datalist": str(folder / "all.json"), "checkpoint_dir": str(folder / "whole"), "patience": 99}
    train(whole)
    rates = [row["learning_rate"] for row in torch.load(folder / "whole" / "state.pt", weights_only=True)["history"]]
    assert [row["learning_rate"] for row in state["history"]] == rates[:3] and len(rates) == 8
    assert rates[2] > rates[7]


def test_card_and_record_say_how_it_was_made_and_name_the_whole_list(made):
    _, options, workflow, exams = made
    model = refit(options, 2, 1.25, workflow, exams, FACTS)
    card = json.loads(card_path(model).read_text())
    assert card["refit"] == {**FACTS, "epochs": 2}
    assert card["datalist_digest"] == exams.digest
    assert (card["max_epochs"], card["val_interval"]) == (8, 1)  # the recipe, by which controls are trained
    record = json.loads((model.parent / "run.json").read_text())
    assert record["workflow"] == "train" and record["recipe"]["refit"] == card["refit"]
    (first, last) = record["history"]
    assert "train_likelihood" in last and not any("val_" in name for row in (first, last) for name in row)


def test_refit_again_makes_the_same_model(made):
    _, options, workflow, exams = made
    first = weights(refit(options, 2, 1.0, workflow, exams, FACTS))
    again = weights(refit(options, 2, 1.0, workflow, exams, FACTS))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code
def test_model_is_evaluated_on_the_test_split_alone_beside_controls_of_its_recipe(made):
    _, options, workflow, exams = made
    model = refit(options, 3, 1.5, workflow, exams, FACTS)
    places = {name: options[name] for name in ("dataset_dir", "features_dir")}
    report = evaluate(model.parent, places)
    assert report["model"]["num_sequences"] == 6
    assert "trained on the validation split too" in report["notes"][0] and "thresholds" not in report
    states = sorted((model.parent / "evaluation" / "controls").rglob("state.pt"))
    recipes = [json.loads(torch.load(path, weights_only=True)["recipe"]) for path in states]
    assert len(recipes) == 3
    assert {(recipe["max_epochs"], recipe["val_interval"], recipe["datalist_digest"]) for recipe in recipes} == {
        (8, 1, exams.digest)
    }
    for split in ("training", "validation"):
        with pytest.raises(RuntimeError) as refused:
            evaluate(model.parent, places, split=split)
        assert f"split is {split}, needs one that the model was not trained on" in message_of(refused.value)

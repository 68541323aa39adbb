"""train.yaml in this process: the training of its command line, its refusals, and nothing left behind."""

import json
import sys
import threading
from pathlib import Path

import pytest
import torch

from scripts.training import workflow
from scripts.training.workflow import BUNDLE_ROOT, CODE, check_overrides, code_digest, open_workflow, part, train
from tests import runs
from tests.conftest import assert_message
from tests.runs import QUICK, weights, write_features


def recipe(folder: Path, output: str, **options) -> dict:
    out = folder / output
    places = {"output_dir": str(out), "model_path": str(out / "model.pt"), "progress": False}
    return {**write_features(folder), **QUICK, **places, **options}


def parts(overrides: dict) -> dict:
    workflow = open_workflow(overrides)
    return {name: part(workflow, name) for name in ("store", "encoder", "encoder_digest")}


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code
def test_training_is_that_of_the_command_line_also_with_parts_that_are_open_already(tmp_path):
    overrides = recipe(tmp_path, "here", head_name="attention")
    trained = train({**overrides, **parts(overrides)}, finalize=True)
    places = {name: overrides[name] for name in ("dataset_dir", "features_dir")}
    runs.train(tmp_path / "there", **places, head_name="attention")
    here, there = (tmp_path / name for name in ("here", "there"))
    runs.assert_same_weights(here / "model.pt", there / "model.pt")
    runs.assert_same_weights(here / "checkpoints" / "best.pt", there / "checkpoints" / "best.pt")
    assert json.loads((there / "run.json").read_text())["best_epoch"] == trained.best_epoch
    best = weights(here / "checkpoints" / "best.pt")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trained.head.state_dict().items())
    assert not trained.head.training


def test_threads_search_path_and_writers_are_as_before(tmp_path, monkeypatch):
    overrides = recipe(tmp_path, "out", max_epochs=1)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = torch.get_num_threads(), list(sys.path)
    train(overrides)  # warms up what starts threads of its own
    alive = threading.active_count()
    assert train({**overrides, "num_threads": 2}).num_threads == 2
    assert (torch.get_num_threads(), list(sys.path)) == before
    assert threading.active_count() == alive


def test_digest_of_the_code_changes_with_each_file_that_trains_a_head_and_with_no_other(tmp_path, monkeypatch):
    files = [path.relative_to(BUNDLE_ROOT) for name in CODE for path in BUNDLE_ROOT.glob(name)]
    for path in (*files, Path("scripts/keys.py")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((BUNDLE_ROOT / path).read_bytes())
    before = code_digest.__wrapped__()
    monkeypatch.setattr(workflow, "BUNDLE_ROOT", tmp_path)
    assert code_digest.__wrapped__() == before and len(files) > 10
    for path in files:
        content = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(content + b"#")
        assert code_digest.__wrapped__() != before, path
        (tmp_path / path).write_bytes(content)
    (tmp_path / "scripts" / "keys.py").write_text("")
    assert code_digest.__wrapped__() == before


def test_training_that_fails_leaves_threads_as_they_were_and_says_why(tmp_path):
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError) as error:
        train(recipe(tmp_path, "out", head_name="nothing"))
    cause = error.value.__cause__
    assert "head_name is nothing" in str(cause)
    assert torch.get_num_threads() == before


def test_temperature_that_is_known_is_in_the_head_and_in_the_model(tmp_path):
    overrides = recipe(tmp_path, "out", max_epochs=1, calibrate=False)
    trained = train(overrides, finalize=True, temperature=1.75)
    assert trained.head.temperature == 1.75
    assert weights(tmp_path / "out" / "model.pt")["head.temperature"] == 1.75
    assert weights(tmp_path / "out" / "checkpoints" / "best.pt")["temperature"] == 1.75


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"max_epoch": 3}, "--max_epoch"),
        ({"seed": 1, "max_epochs": 0}, "--max_epochs"),
        ({"dropout": "much"}, "--dropout"),
        ({"use_times": 3}, "--use_times"),
    ],
)
def test_what_the_command_line_refuses_is_refused(overrides, field):
    with pytest.raises(ValueError, match=field) as error:
        check_overrides(overrides)
    assert "command line" in str(error.value)
    assert_message(error.value, "command line", field)


def test_what_the_command_line_takes_is_taken():
    check_overrides({"max_epochs": 3, "dropout": 0.0, "class_weights": [1.0, 2.0], "train::trainer::amp": False})

"""Cross-validation: folds are trained by train.yaml itself, kept when finished, and fail one by one."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.features.batching import FeatureDataset
from scripts.keys import TASK
from scripts.networks.heads import make_head
from scripts.selection import search as searching
from scripts.selection.exams import Exams, find_exams
from scripts.selection.folds import Fold, make_folds
from scripts.selection.search import Candidate, search, warnings_kept
from scripts.training.workflow import open_workflow, part
from tests.runs import QUICK, train, weights, write_features

GRID = [{"head_name": "mean", "learning_rate": 0.01}, {"head_name": "gru", "learning_rate": 0.01}]


class Setting:
    """A store of 32 exams, three folds of it, and the trainings that were asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, repeats: int = 1) -> None:
        self.folder, self.repeats = folder, repeats
        self.recipe: dict[str, Any] = {**write_features(folder), **QUICK, "max_epochs": 2, "output_dir": str(folder)}
        self.trained: list[dict[str, Any]] = []
        plainly = searching.train

        def counted(overrides: dict[str, Any]) -> Any:
            self.trained.append(overrides)
            return plainly(overrides)

        monkeypatch.setattr(searching, "train", counted)

    def parts(self, **recipe: Any) -> tuple[dict[str, Any], Any, Exams, list[Fold]]:
        """Recipe, workflow, exams and folds."""
        options = {**self.recipe, **recipe}
        workflow = open_workflow(options)
        exams = find_exams(
            self.folder / "datalist.json", self.folder, part(workflow, "store"), part(workflow, TASK), False
        )
        return options, workflow, exams, make_folds(exams.strata, exams.patients, 3, self.repeats)

    def search(self, grid: list[dict[str, Any]] = GRID, **recipe: Any) -> list[Candidate]:
        options, *others = self.parts(**recipe)
        return search(grid, options, *others, progress=False)


@pytest.fixture
def setting(tmp_path, monkeypatch) -> Setting:
    return Setting(tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code
def test_fold_is_the_training_of_train_yaml(setting, tmp_path):
    (candidate,) = setting.search(GRID[1:])
    _, workflow, exams, folds = setting.parts()
    for fold in folds:
        path = tmp_path / "by hand.json"
        path.write_text(exams.datalist(training=fold.training, validation=fold.validation))
        output = tmp_path / "by hand" / str(fold.number)
        places = {"dataset_dir": str(tmp_path), "features_dir": str(tmp_path / "features"), "datalist": str(path)}
        train(output, **places, max_epochs=2, head_name="gru", learning_rate=0.01)
        head = make_head("gru", 64, 3, hidden_size=8).eval()
        head.load_state_dict(weights(output / "checkpoints" / "best.pt"))
        head.set_temperature(1.0)  # what the validation split makes of it comes after the fold
        held_out = FeatureDataset(exams.select(fold.held_out), part(workflow, "store"))
        with torch.inference_mode():
            alone = [head(item["features"][None], None, item["frame_times_ms"][None])[0].numpy() for item in held_out]
        np.testing.assert_allclose(candidate.logits[0, fold.held_out], alone, atol=1e-6)
        assert candidate.best_epochs[fold.number] == json.loads((output / "run.json").read_text())["best_epoch"]
    assert len(folds) == 3 and np.isfinite(candidate.logits).all()


def test_finished_folds_are_read_and_not_trained_again(setting):
    first = setting.search()
    assert len(setting.trained) == 6
    again = setting.search()
    assert len(setting.trained) == 6
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.logits, two.logits)
        assert (one.best_epochs, one.failures) == (two.best_epochs, two.failures)
    setting.search([*GRID, {"head_name": "max", "learning_rate": 0.01}])  # another command, two candidates in common
    assert len(setting.trained) == 9
    setting.search(max_epochs=2, hidden_size=8, in_memory=True, label_smoothing=0.05)  # the same, said otherwise
    assert len(setting.trained) == 9


@pytest.mark.parametrize(
    "change", [{"hidden_size": 6}, {"seed": 5}, {"dropout": 0.2}, {"batch_loss::focal_gamma": 1.0}]
)
def test_another_recipe_is_trained(setting, change):
    setting.search(GRID[:1])
    setting.search(GRID[:1], **change)
    assert len(setting.trained) == 6


def test_another_label_is_trained(setting, tmp_path):
    setting.search(GRID[:1])
    content = json.loads((tmp_path / "datalist.json").read_text())
    content["training"][0]["label"] = 2
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    setting.search(GRID[:1])
    assert len(setting.trained) == 6


@pytest.mark.parametrize(
    "damage", [lambda text: text[:50], lambda text: "[]", lambda text: text.replace("logits", "x"), lambda text: ""]
)
def test_damaged_file_of_a_fold_is_made_anew(setting, tmp_path, damage):
    (first,) = setting.search(GRID[:1])
    path = sorted((tmp_path / "folds").iterdir())[0]
    whole = path.read_text()
    path.write_text(damage(whole))
    (again,) = setting.search(GRID[:1])
    assert len(setting.trained) == 4 and path.read_text() == whole
    np.testing.assert_array_equal(first.logits, again.logits)


def test_search_that_was_stopped_goes_on(setting, monkeypatch):
    plainly = searching.train

    def stopped(overrides: dict[str, Any]) -> Any:
        if len(setting.trained) == 4:
            raise KeyboardInterrupt
        return plainly(overrides)

    monkeypatch.setattr(searching, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        setting.search()
    monkeypatch.setattr(searching, "train", plainly)
    found = setting.search()
    assert len(setting.trained) == 6
    assert all(np.isfinite(candidate.logits).all() for candidate in found)


def test_fold_that_fails_stops_no_other_and_is_named(setting, monkeypatch):
    plainly = searching.train

    def failing(overrides: dict[str, Any]) -> Any:
        return plainly({**overrides, **({"label_smoothing": 2.0} if len(setting.trained) == 1 else {})})

    monkeypatch.setattr(searching, "train", failing)
    first, second = setting.search()
    (failure,) = first.failures
    assert failure.startswith("repeat 1, fold 2: configuration: label_smoothing is 2.0")
    assert np.isnan(first.logits[0]).any(axis=1).sum() == len(setting.parts()[3][1].held_out)
    assert second.failures == [] and np.isfinite(second.logits).all()
    assert len(setting.trained) == 6
    monkeypatch.setattr(searching, "train", plainly)
    first, second = setting.search()  # what failed is tried again, alone
    assert first.failures == [] and len(setting.trained) == 7


def test_features_that_are_not_finite_fail_each_fold_where_they_are_met(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch)
    _, _, exams, folds = setting.parts()
    broken = set(folds[0].held_out.tolist())

    class Broken(FeatureDataset):
        def _stored(self, index: int, number: int) -> Any:
            stored = super()._stored(index, number)
            named = {exams.items[n]["entry"] for n in broken}
            return stored._replace(features=stored.features * float("nan")) if self.keys[index] in named else stored

    monkeypatch.setattr("scripts.features.batching.FeatureDataset", Broken)
    monkeypatch.setattr(searching, "FeatureDataset", Broken)
    (candidate,) = setting.search(GRID[:1])
    assert len(candidate.failures) == 3
    assert f"logits is not finite for {len(broken)} of {len(broken)} sequences" in candidate.failures[0]
    assert "epoch 1, batch with" in candidate.failures[1] and "loss is nan" in candidate.failures[1]
    assert "val_likelihood is 0.0 in every epoch" in candidate.failures[2]  # they are its validation split
    assert not (tmp_path / "folds").exists()


def test_slip_in_the_code_is_no_failing_fold(setting, monkeypatch):
    monkeypatch.setattr(searching, "logits_of", lambda *_: {}["nothing"])
    with pytest.raises(KeyError):
        setting.search(GRID[:1])


def test_threads_are_measured_once_a_head_and_stay_as_they_were(setting):
    before = torch.get_num_threads()
    setting.recipe["num_threads"] = "auto"
    setting.search([*GRID, {"head_name": "gru", "learning_rate": 0.02}])
    asked = [(overrides["head_name"], overrides["num_threads"]) for overrides in setting.trained]
    assert [head for head, number in asked if number == "auto"] == ["mean", "gru"]
    assert len(asked) == 9 and torch.get_num_threads() == before


def test_repeats_have_other_parts_and_other_seeds(tmp_path, monkeypatch):
    setting = Setting(tmp_path, monkeypatch, repeats=2)
    (candidate,) = setting.search(GRID[:1], seed=7)
    assert [overrides["seed"] for overrides in setting.trained] == [7, 7, 7, 8, 8, 8]
    assert candidate.logits.shape == (2, 32, 3) and len(candidate.best_epochs) == 6
    assert not np.allclose(candidate.logits[0], candidate.logits[1])


def test_warnings_of_folds_are_kept_and_not_shown(caplog):
    logger = logging.getLogger("angiography")
    with warnings_kept() as found:
        logger.warning("a class is missing")
        logger.info("not this")
    logger.warning("shown")
    assert found == ["a class is missing"]
    assert [record.message for record in caplog.records] == ["shown"]

"""cross_validate and sweep as a whole: the command line, the files, equal results of equal seeds, the exit status."""

import json
import sys
from pathlib import Path

import pytest
import torch

from scripts.__main__ import main
from scripts.keys import TEST
from scripts.selection import search as searching
from scripts.selection.model_choice import choose
from tests.conftest import assert_message
from tests.runs import QUICK, weights, write_features

SPLITS = {"training": 14, "validation": 7, TEST: 6}
SMALL = {**QUICK, "max_epochs": 2, "progress": False}


def sweep(folder: Path, output: str = "out", heads=("mean", "max"), rates=(0.01,), refit: bool = False, **recipe):
    out = folder / output
    places = {"output_dir": str(out), "model_path": str(out / "model.pt")}
    options = {**write_features(folder, SPLITS, patient="Doe{}".format), **SMALL, **places, **recipe}
    return choose("sweep", heads, rates, 3, 1, 100, refit, options)


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # main() changes it
    monkeypatch.setattr(sys, "argv", ["python -m scripts", *map(str, arguments)])
    main()


def flags(folder: Path, **more) -> list[str]:
    options = {**write_features(folder, SPLITS), **SMALL, "output_dir": folder / "out", **more}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_sweep_compares_every_head_with_every_learning_rate_and_leaves_its_files(tmp_path):
    text, well = sweep(tmp_path, heads=("mean", "attention", "mean"), rates=(0.01, 0.001))
    assert well
    folder = tmp_path / "out" / "sweep"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("results.csv", "results.html", "results.json", "run.json"),
    ]
    results = json.loads((folder / "results.json").read_text())
    found = [(entry["settings"]["head_name"], entry["settings"]["learning_rate"]) for entry in results["candidates"]]
    assert sorted(found) == [("attention", 0.001), ("attention", 0.01), ("mean", 0.001), ("mean", 0.01)]
    assert results["num_exams"] == 21  # training and validation, not the test split
    likelihoods = [entry["scores"]["likelihood"]["value"] for entry in results["candidates"]]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert len(list((tmp_path / "out" / "folds").iterdir())) == 12
    record = json.loads((folder / "run.json").read_text())
    assert record["workflow"] == "sweep" and record["chosen"] == results["chosen"]
    everything = "".join(path.read_text() for path in [*folder.iterdir(), *(tmp_path / "out" / "folds").iterdir()])
    assert "Doe" not in everything and str(tmp_path) not in everything
    assert str(folder / "results.html") in text


def test_equal_seeds_give_equal_results_and_others_do_not(tmp_path):
    texts = [sweep(tmp_path, output, ["mean"])[0].splitlines()[:4] for output in ("a", "b")]
    assert texts[0] == texts[1]
    results = [(tmp_path / output / "sweep" / "results.json").read_text() for output in ("a", "b")]
    assert results[0] == results[1]
    assert sweep(tmp_path, "c", ["mean"], seed=1)[0].splitlines()[:4] != texts[0]


def test_final_training_writes_the_chosen_model_with_its_temperature(tmp_path):
    text, well = sweep(tmp_path, refit=True)
    out = tmp_path / "out"
    results = json.loads((out / "sweep" / "results.json").read_text())
    card = json.loads((out / "model.json").read_text())
    assert well and card["head_name"] == results["chosen"]["head_name"]
    assert card["refit"]["temperature"] == results["temperature"]
    assert card["refit"]["epochs"] == results["candidates"][0]["epochs"]
    found = weights(out / "model.pt")["head.temperature"]
    torch.testing.assert_close(found, torch.tensor(results["temperature"]["temperature"]))
    assert f"model: {out / 'model.pt'}, trained on training and validation for" in text


def test_failing_folds_are_told_at_the_end_and_choose_no_model(tmp_path, monkeypatch):
    plainly = searching.train
    spoiled = {"batch_loss::label_smoothing": 2.0}
    monkeypatch.setattr(
        searching, "train", lambda given: plainly({**given, **(spoiled if given["head_name"] == "max" else {})})
    )
    text, well = sweep(tmp_path, refit=True)
    assert not well
    assert "failed: max, 0.01, 3 folds; not chosen" in text and "label_smoothing is 2.0" in text
    assert json.loads((tmp_path / "out" / "model.json").read_text())["head_name"] == "mean"
    text, well = sweep(tmp_path, "other", heads=("max",), refit=True)
    assert not well and "None is chosen" in text and not (tmp_path / "other" / "model.pt").exists()


def test_commands_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "cross_validate", "--folds", 3, "--repeats", 2, *flags(tmp_path, head_name="last"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Cross-validation by patient"
    assert lines[1].startswith("21 exams of 21 patients in training and validation, 3 folds, 2 repeats")
    assert lines[3].split()[:3] == ["1", "last", "0.003"] and "Chosen" not in "".join(lines)
    run(monkeypatch, "sweep", "--folds", 3, "--repeats", 1, "--heads", "mean,last", "--learning_rates", 0.003,
        *flags(tmp_path))  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines[3:5]} == {"mean", "last"}
    assert len(list((tmp_path / "out" / "folds").iterdir())) == 9  # three of `last` served both


def test_exit_status_is_1_if_a_fold_failed(tmp_path, monkeypatch, capsys):
    spoiled = flags(tmp_path, class_weights="odd", head_name="mean")
    with pytest.raises(SystemExit) as status:
        run(monkeypatch, "cross_validate", "--folds", 3, "--repeats", 1, *spoiled)
    assert status.value.code == 1
    assert "class_weights is odd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "item", "field"),
    [
        ({"heads": ["gro"]}, "sweep", "head"),
        ({"rates": ["fast"]}, "command line", "--learning_rate"),
        ({"max_epoch": 3}, "command line", "--max_epoch"),
        ({"head_name": "gru"}, "sweep", "--head_name"),
        ({"learning_rate": 0.1}, "sweep", "--learning_rate"),
        ({"refit": "perhaps"}, "command line", "--refit"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tmp_path, monkeypatch, options, item, field):
    monkeypatch.setattr(searching, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=field) as error:
        sweep(tmp_path, **options)
    assert_message(error.value, item, field)


def test_class_of_too_few_patients_for_the_folds_is_named(tmp_path):
    places = {**write_features(tmp_path, {"training": 8, "validation": 0}), "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="patients is 2 of class still, needs at least 3"):
        choose("sweep", ["mean"], [0.01], 3, 1, 100, False, {**places, **SMALL})


@pytest.mark.parametrize("task_type", ["binary", "multilabel"])
def test_other_tasks_are_compared_too(tmp_path, task_type):
    labels = {"binary": lambda n: n % 2, "multilabel": lambda n: [n % 2, None if n % 5 == 1 else int(n % 3 == 0)]}
    places = write_features(tmp_path, SPLITS, label=labels[task_type], task_type=task_type, classes=["a", "b"])
    options = {**places, **SMALL, "output_dir": str(tmp_path / "out")}
    text, well = choose("sweep", ["mean", "last"], [0.01], 3, 1, 100, False, options)
    assert well, text
    results = json.loads((tmp_path / "out" / "sweep" / "results.json").read_text())
    assert all(0 < entry["scores"]["likelihood"]["value"] < 1 for entry in results["candidates"])

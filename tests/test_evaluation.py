"""Evaluation of trained models on small stores, through the workflow: what is scored, beside what, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import create_workflow

from scripts.keys import MULTICLASS, MULTILABEL
from scripts.networks.card import read_card
from scripts.reports.evaluation import SELECTED
from scripts.reports.wording import QUESTIONS
from scripts.training.controls import TRAINED_CONTROLS, UNTRAINED
from scripts.training.workflow import code_digest
from tests.runs import CLASS_NAMES, ROOT, train, write_features

SPLITS = {"training": 23, "validation": 11, "test": 13}
RECIPE = {"batch_size": 8, "max_epochs": 15, "learning_rate": 0.01}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def evaluate(folder: Path, places: dict[str, str], **overrides: Any) -> dict[str, Any]:
    """Run evaluate.yaml on the model in `folder`; what report.json then holds."""
    options = {"num_resamples": 50, "device": "cpu", "untrained_dir": str(folder / "none"), **overrides}
    workflow = create_workflow(
        workflow_type="train",
        config_file=str(ROOT / "configs" / "evaluate.yaml"),
        bundle_root=str(ROOT),
        logging_file=False,
        output_dir=str(folder),
        model_path=str(folder / "model.pt"),
        **{**places, **options},
    )
    workflow.run()
    workflow.finalize()
    return json.loads((folder / "evaluation" / "report.json").read_text())


def message_of(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A model, and where its store and list are; a fifth of the labels is wrong, so that no probability is near 1."""
    folder = tmp_path_factory.mktemp("trained")
    places = write_features(folder / "data", SPLITS, label=lambda n: (n + (n % 5 == 0)) % 3)
    train(folder, **places, **RECIPE)
    return folder, places


@pytest.fixture(scope="module")
def judged(trained) -> tuple[Path, dict[str, str], dict[str, Any]]:
    folder, places = trained
    return folder, places, evaluate(folder, places)


# --- what is there ---


def test_every_control_is_scored_or_said_to_be_absent_with_the_command_that_makes_it(judged):
    _, _, report = judged
    assert report["controls"].keys() | report["absent_controls"].keys() == QUESTIONS.keys()
    assert list(report["absent_controls"]) == [UNTRAINED]
    assert "configs/cache_features.yaml" in report["absent_controls"][UNTRAINED]
    assert "--encoder_name 'test_vit'" in report["absent_controls"][UNTRAINED]
    for control in report["controls"].values():
        assert control["difference"].keys() >= {"value", "low", "high"}


def test_predictions_are_those_of_the_models_head_and_name_labels_but_no_patient(judged):
    folder, _, report = judged
    content = json.loads((folder / "evaluation" / "predictions.json").read_text())
    entries = content["predictions"]
    assert len(entries) == SPLITS["test"] == report["model"]["num_sequences"]
    right = sum(CLASS_NAMES[entry["label"]] == entry["predicted"] for entry in entries)
    assert right / len(entries) == pytest.approx(report["model"]["accuracy"]["value"])
    assert [entry["patient_number"] for entry in entries] == list(range(SPLITS["test"]))
    text = (folder / "evaluation" / "predictions.json").read_text()
    assert '"patient"' not in text and "tP" not in text
    header = (folder / "evaluation" / "predictions.csv").read_text().splitlines()[0]
    assert "label" in header.split(",")


def test_report_has_thresholds_of_validation_subgroups_and_the_training_curves(judged):
    folder, _, report = judged
    assert [found["chosen"]["split"] for found in report["thresholds"]] == ["validation"] * 2
    assert [found["split"] for found in report["thresholds"]] == ["test"] * 2
    assert [found["column"] for found in report["subgroups"]] == ["number of frames"]
    assert len(report["history"]) == RECIPE["max_epochs"]
    page = (folder / "evaluation" / "report.html").read_text()
    assert "Learning curves" in page and "http://" not in page.replace("http://www.w3.org", "")
    record = json.loads((folder / "evaluation" / "run.json").read_text())
    assert (record["workflow"], record["split"]) == ("evaluate", "test")


def test_temperature_of_the_model_is_the_one_its_validation_split_chooses(judged):
    folder, _, report = judged
    state = torch.load(folder / "model.pt", weights_only=True)
    temperature = float(state["head.temperature"])
    assert temperature == read_card(folder / "model.pt")["temperature"] != 1.0
    assert report["temperature"]["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert report["temperature"]["log_loss"]["after"] < report["temperature"]["log_loss"]["before"]


def test_calibration_changes_no_decision_and_can_be_left_out(trained, tmp_path):
    folder, places = trained
    train(tmp_path, **places, **RECIPE, calibrate=False)
    ours, theirs = (torch.load(path / "model.pt", weights_only=True) for path in (folder, tmp_path))
    assert float(theirs["head.temperature"]) == 1.0
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["head.temperature"]


def test_second_evaluation_trains_no_control_again_and_says_the_same(judged, caplog):
    folder, places, first = judged
    before = {path: path.stat().st_mtime_ns for path in (folder / "evaluation" / "controls").rglob("state.pt")}
    assert len(before) == len(TRAINED_CONTROLS) - 1
    again = evaluate(folder, places)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name, control in first["controls"].items():
        assert again["controls"][name] == control


def test_control_of_another_code_is_trained_again(judged, tmp_path):
    folder, places, _ = judged
    for name in ("model.pt", "model.json"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "evaluation" / "controls", tmp_path / "evaluation" / "controls")
    states = sorted((tmp_path / "evaluation" / "controls").rglob("state.pt"))
    before = {path: path.stat().st_mtime_ns for path in states}
    mean = tmp_path / "evaluation" / "controls" / "mean_of_frames" / "state.pt"
    state = torch.load(mean, weights_only=True)
    torch.save({**state, "recipe": json.dumps({**json.loads(state["recipe"]), "code_digest": "0" * 64})}, mean)
    before[mean] = mean.stat().st_mtime_ns
    evaluate(tmp_path, places)
    assert [path.parent.name for path in states if path.stat().st_mtime_ns != before[path]] == ["mean_of_frames"]
    assert json.loads(torch.load(mean, weights_only=True)["recipe"])["code_digest"] == code_digest()


def test_controls_show_one_bar_and_no_bar_of_their_trainings(trained, tmp_path, monkeypatch, capsys):
    folder, places = trained
    for name in ("model.pt", "model.json"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    evaluate(tmp_path, places)
    shown = capsys.readouterr().err
    assert f"controls: 100%|██████████| {len(TRAINED_CONTROLS)}/{len(TRAINED_CONTROLS)} " in shown
    assert "epoch" not in shown.replace("best epoch", "").replace("epochs", "")


def test_controls_are_trained_by_the_recipe_in_the_models_card(judged):
    folder, _, _ = judged
    for name, (changes, _) in TRAINED_CONTROLS.items():
        if name == UNTRAINED:
            continue
        path = folder / "evaluation" / "controls" / name.replace(" ", "_") / "state.pt"
        recipe = json.loads(torch.load(path, weights_only=True)["recipe"])
        card = read_card(folder / "model.pt")
        differing = {id for id in recipe if recipe[id] != card.get(id)}
        assert differing == {id for id, value in changes.items() if card[id] != value}, name


def test_untrained_encoder_is_scored_where_its_features_are(judged):
    folder, places, _ = judged
    write_features(folder / "untrained", SPLITS, value=torch.zeros_like)
    report = evaluate(folder, places, untrained_dir=str(folder / "untrained" / "features"))
    assert report["absent_controls"] == {}
    chance = report["controls"][UNTRAINED]["score"]["balanced_accuracy"]["value"]
    assert chance == pytest.approx(1 / len(CLASS_NAMES))  # equal features: one class for all


def test_scores_are_given_by_a_column_of_the_datalist_and_an_unknown_one_is_refused(trained, tmp_path):
    _, places = trained
    content = json.loads((Path(places["dataset_dir"]) / "datalist.json").read_text())
    for number, item in enumerate(content["test"]):
        item |= {"device": f"maker {number % 2}", "quality": "good" if number % 3 else "poor"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(content))
    places = {**places, "dataset_dir": str(tmp_path / "data")}
    train(tmp_path, **places, **RECIPE)
    report = evaluate(tmp_path, places, subgroups=["quality"])
    assert [found["column"] for found in report["subgroups"]] == ["device", "quality", "number of frames"]
    assert {group["name"] for group in report["subgroups"][1]["groups"]} == {"good", "poor"}
    with pytest.raises(RuntimeError) as refused:
        evaluate(tmp_path, places, subgroups="hospital")  # as a command line has one
    assert "subgroups is hospital, needs a column of the datalist: device, entry, quality" in message_of(refused.value)


def test_scores_on_the_validation_split_are_said_to_be_too_good(judged, tmp_path):
    folder, places, _ = judged
    for name in ("model.pt", "model.json"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "evaluation" / "controls", tmp_path / "evaluation" / "controls")
    report = evaluate(tmp_path, places, split="validation")
    assert SELECTED in report["notes"]
    assert all("these numbers are too good" in found["notes"][0] for found in report["thresholds"])


# --- what is refused, before anything is trained ---


@pytest.mark.parametrize("what", ["classes", "datalist_digest", "store_digest", "model_path", "split", "seen split"])
def test_what_the_model_was_not_trained_with_is_refused_before_a_control_is_trained(trained, tmp_path, what):
    folder, places = trained
    for name in ("model.pt", "model.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    options = {}
    if what == "model_path":
        (tmp_path / "model.pt").unlink()
    elif what == "split":
        options["split"] = "holdout"
    elif what == "seen split":
        options["split"] = "training"
    else:
        card = json.loads((folder / "model.json").read_text())
        card[what] = ["slow", "fast", "other"] if what == "classes" else "0" * 64
        (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(RuntimeError) as refused:
        evaluate(tmp_path, places, **options)
    names = {"classes": "task", "seen split": "split"}
    assert f"{names.get(what, what)} is" in message_of(refused.value)
    assert not (tmp_path / "evaluation" / "controls").exists()


# --- labels that are hard to score ---

HOSTILE: dict[str, dict[str, Any]] = {
    "a class that the test split lacks": {"label": lambda n: n % 2 if n > 33 else n % 3},
    "one patient in the test split": {"patient": lambda n: "same" if n >= 34 else str(n)},
    "a test split of one": {"splits": {**SPLITS, "test": 1}},
    "equal features": {"value": torch.zeros_like},
    "labels that are not known": {
        "task_type": MULTILABEL,
        "label": lambda n: [n % 2, None if n % 4 else 1, 1 - n % 2],
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_scores_of_hostile_labels_are_defined_or_absent_with_a_note_and_never_nan(tmp_path, case):
    places = write_features(tmp_path / "data", **{"splits": SPLITS, **HOSTILE[case]})
    train(tmp_path, **places, **RECIPE)
    report = evaluate(tmp_path, places)
    assert "NaN" not in (tmp_path / "evaluation" / "report.json").read_text()
    assert report["model"]["notes"]
    assert report["task"]["type"] == HOSTILE[case].get("task_type", MULTICLASS)
    if case == "one patient in the test split":
        assert report["model"]["balanced_accuracy"]["low"] is None

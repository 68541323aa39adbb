"""Trainings through the config: every type of task, hostile labels, and what is left on disk."""

import json
import logging
import re

import pytest
import torch
from torch.nn import functional as F

from scripts.keys import LABEL
from scripts.networks.heads import HEADS
from scripts.store.shards import StoredSequence
from scripts.store.store import FeatureStore
from scripts.training.workflow import check_overrides
from tests.runs import SPLITS, prepare_training, train, weights, write_features
from tests.stores import key_of
from tests.test_configs import knobs

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    return write_features(tmp_path_factory.mktemp("features"))


def record_of(output) -> dict:
    return json.loads((output / "run.json").read_text())


def assert_trained(output, epochs: int = 4) -> list[dict]:
    """The curves of a training with numbers everywhere and a best epoch."""
    record = record_of(output)
    assert len(record["history"]) == epochs
    assert 1 <= record["best_epoch"] <= epochs
    for row in record["history"]:
        assert 0.0 < row["val_likelihood"] < 1.0 and 0.0 < row["train_loss"] < 20.0
    assert all(torch.isfinite(tensor).all() for tensor in weights(output / "model.pt").values())
    return record["history"]


def cause_of(error: BaseException) -> str:
    """The bundle's own message, under what MONAI makes of it."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return next(str(link) for link in chain if isinstance(link, ValueError))


# --- tasks and options ---


@pytest.mark.parametrize(
    ("task_type", "label"),
    [
        ("binary", lambda n: n % 2),
        ("multiclass", lambda n: n % 3),
        ("multilabel", lambda n: [n % 2, None if n % 5 == 1 else int(n % 3 == 0), 1 - n % 2]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced", "focal_gamma": 2.0, "sampling": "balanced"}])
def test_every_task_trains_with_and_without_balance(tmp_path, task_type, label, options):
    classes = ["a", "b", "c"][: 2 if task_type == "binary" else 3]
    places = write_features(tmp_path, label=label, task_type=task_type, classes=classes)
    train(tmp_path / "out", **places, **options)
    assert_trained(tmp_path / "out")


@pytest.mark.parametrize("head_name", HEADS)
def test_every_head_trains_with_a_moving_average_of_its_weights(tmp_path, head_name):
    places = write_features(tmp_path)
    train(tmp_path / "out", **places, head_name=head_name, ema_decay=0.9, use_times=False, max_epochs=2)
    assert_trained(tmp_path / "out", 2)
    state = torch.load(tmp_path / "out" / "checkpoints" / "state.pt", weights_only=True)
    last = weights(tmp_path / "out" / "checkpoints" / "last.pt")
    assert last.keys() == state["network"].keys()
    learnt = [name for name in last if not torch.equal(last[name], state["network"][name])]
    assert len(learnt) > 3  # what is saved is the average
    for name in last:
        torch.testing.assert_close(last[name], state["averaged"][f"module.{name}"], rtol=0, atol=0)


def test_the_loss_of_the_config_is_the_loss_of_its_knobs(tmp_path):
    places = write_features(tmp_path)
    options = {"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.2}
    loss = prepare_training(tmp_path / "out", **places, **options).trainer.loss_function
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1])
    wanted = F.cross_entropy(logits, labels, torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.2)
    torch.testing.assert_close(loss(logits, labels), wanted)


def test_accumulated_batches_train_to_the_weights_of_the_whole_batch(tmp_path):
    places = write_features(tmp_path, {"training": 24, "validation": 6})
    exact = {**places, "dropout": 0.0, "max_epochs": 3}
    train(tmp_path / "whole", **exact, batch_size=8)
    train(tmp_path / "parts", **exact, batch_size=2, accumulation_steps=4)
    whole, parts = (weights(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    assert len(whole) > 10
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)


def test_accumulated_batches_of_unequal_size_and_weight_train_to_the_weights_of_the_whole_batch(tmp_path):
    places = write_features(tmp_path, {"training": 23, "validation": 6})
    exact = {**places, "dropout": 0.0, "frame_dropout": 0.0, "max_epochs": 3, "class_weights": [1.0, 9.0, 3.0]}
    train(tmp_path / "whole", **exact, batch_size=23)
    train(tmp_path / "parts", **exact, batch_size=4, accumulation_steps=6)  # of 3 or 4 sequences
    whole, parts = (weights(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in record_of(tmp_path / name)["history"]] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][2] < losses[0][0]


@pytest.mark.parametrize("name", sorted(knobs("train").keys() - {"mlflow_uri"}))  # which may be any text
def test_a_knob_of_another_kind_or_range_is_refused_by_its_name_before_training(tmp_path, places, name):
    for value in ("banana", -1, [1, 2]):
        with pytest.raises((ValueError, RuntimeError)) as refused:
            check_overrides({name: value})
            prepare_training(tmp_path, **{**places, name: value}).run()
        said = cause_of(refused.value)
        assert f"{name} is {value}, needs " in said and "\n" not in said
    assert not (tmp_path / "checkpoints" / "state.pt").exists()


# --- hostile labels ---


@pytest.mark.parametrize(
    ("splits", "label", "said"),
    [
        (SPLITS, lambda n: 2 * (n % 2), "training: label is never fast"),
        (SPLITS, lambda n: n % 3 if n < 23 else 1, "validation: label is never slow, still"),
        ({"training": 23, "validation": 1}, lambda n: n % 3, "validation: split is of one sequence"),
        ({"training": 2, "validation": 9}, lambda n: n % 3, "training: label is never still"),
    ],
)
def test_training_on_classes_that_a_split_lacks_has_a_result_and_a_warning(tmp_path, caplog, splits, label, said):
    places = write_features(tmp_path, splits, label)
    with caplog.at_level(logging.WARNING, logger="angiography"):
        train(tmp_path / "out", **places)
    assert said in caplog.text
    assert_trained(tmp_path / "out")


def test_training_on_one_patient_has_a_result_and_a_warning(tmp_path, caplog):
    places = write_features(tmp_path, patient=lambda n: "P1")
    with caplog.at_level(logging.WARNING, logger="angiography"):
        train(tmp_path / "out", **places)
    assert "training: split is of one patient" in caplog.text and "validation: split is of one patient" in caplog.text
    assert_trained(tmp_path / "out")


def test_a_place_where_no_model_can_lie_is_refused_before_training(tmp_path, places):
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(Exception) as refused:
        train(tmp_path, **places)
    assert "model.pt: path is a folder, needs a file" in cause_of(refused.value)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("splits", "label", "said"),
    [
        (SPLITS, lambda n: 1, "training: label is fast alone, needs two classes or more"),
        ({"training": 1, "validation": 9}, lambda n: n % 3, "training: label is slow alone"),
        ({"training": 9}, lambda n: n % 3, "validation is empty, needs at least one item"),
    ],
)
def test_training_that_cannot_learn_is_refused_in_one_line(tmp_path, splits, label, said):
    places = write_features(tmp_path, splits, label)
    with pytest.raises(RuntimeError) as refused:
        train(tmp_path / "out", **places)
    assert said in cause_of(refused.value) and "\n" not in cause_of(refused.value)
    assert not (tmp_path / "out" / "model.pt").exists()


def test_a_thousand_classes_train(tmp_path):
    places = write_features(tmp_path, label=lambda n: 31 * n, classes=[f"class {n}" for n in range(1000)])
    train(tmp_path / "out", **places, class_weights="balanced", sampling="balanced")
    assert_trained(tmp_path / "out")


def test_scores_that_are_all_equal_have_a_first_epoch_that_is_best_and_an_end(tmp_path):
    places = write_features(tmp_path, value=lambda features: torch.zeros_like(features))
    train(tmp_path / "out", **places, use_times=False, learning_rate=1e-9, ema_decay=0.0, patience=2, max_epochs=30)
    record = record_of(tmp_path / "out")
    assert record["history"][-1]["epoch"] == record["best_epoch"] + 2 < 30
    assert all(0.2 < row["val_likelihood"] < 0.4 for row in record["history"])


def test_features_that_are_not_finite_never_reach_training(tmp_path):
    store = FeatureStore.create(tmp_path / "features", {"test": "training"})
    features = torch.full((2, 4), torch.nan)
    with pytest.raises(ValueError, match="finite"), store.writer() as writer:
        writer.add(key_of(0), StoredSequence(features, torch.zeros(2), torch.arange(2)))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_batch_named_and_no_model(tmp_path):
    places = write_features(tmp_path)
    workflow = prepare_training(tmp_path / "out", **places)
    with torch.no_grad():
        workflow.network_def.classify.bias.fill_(torch.inf)
    with pytest.raises(RuntimeError) as refused:
        workflow.run()
    assert re.search(r"epoch 1, batch with [0-9a-f]{16}.*: loss is nan, needs a finite number", cause_of(refused.value))
    assert not (tmp_path / "out" / "checkpoints" / "best.pt").exists()


# --- what is left ---


def test_training_leaves_model_card_record_and_checkpoints(tmp_path):
    places = write_features(tmp_path)
    train(tmp_path / "out", **places)
    card, record = json.loads((tmp_path / "out" / "model.json").read_text()), record_of(tmp_path / "out")
    assert card == {**record["recipe"], "temperature": card["temperature"]} and card["temperature"] > 0
    assert {"seed", "datalist_digest", "store_digest", "encoder_digest", "head_name", "schedule"} <= card.keys()
    assert record == json.loads((tmp_path / "out" / "checkpoints" / "run.json").read_text())
    best, model = weights(tmp_path / "out" / "checkpoints" / "best.pt"), weights(tmp_path / "out" / "model.pt")
    for name in best:
        torch.testing.assert_close(model[f"head.{name}"], best[name], rtol=0, atol=0)
    assert str(tmp_path) not in (tmp_path / "out" / "run.json").read_text()
    assert LABEL not in record


def test_a_control_leaves_model_card_and_record_of_the_training_beside_it_as_they_are(tmp_path):
    places = write_features(tmp_path)
    train(tmp_path / "out", **places, max_epochs=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert before.keys() == {"model.pt", "model.json", "run.json"}
    control = str(tmp_path / "control")
    train(tmp_path / "out", **places, max_epochs=1, frames_shown="shuffled", checkpoint_dir=control)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert json.loads((tmp_path / "control" / "run.json").read_text())["recipe"]["frames_shown"] == "shuffled"

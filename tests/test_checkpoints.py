"""Interrupted trainings go on to the weights of others, bit for bit; what is kept is whole and not mistaken."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from scripts.training.checkpoints import interrupted_epoch, read_run
from tests.conftest import assert_message
from tests.runs import QUICK, ROOT, assert_same_weights, prepare_training, train, write_features

# Everything that draws or remembers.
FULL = {
    "accumulation_steps": 2,
    "ema_decay": 0.9,
    "class_weights": "balanced",
    "focal_gamma": 1.0,
    "sampling": "balanced",
    "time_jitter": 0.3,
}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


class KilledError(Exception):
    """Stands for what ends a process."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    return write_features(tmp_path_factory.mktemp("features"))


def interrupt(output: Path, iteration: int, **overrides: object) -> None:
    """Train until an iteration begins, and leave what is on disk by then."""
    workflow = prepare_training(output, **overrides)

    def stop() -> None:
        raise KilledError

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), stop)
    with pytest.raises(RuntimeError, match="Failed to evaluate"):
        workflow.run()
    assert not (output / "model.pt").exists()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("iterations", [(14,), (2, 9, 21)])
def test_an_interrupted_training_goes_on_to_the_same_weights(places, tmp_path, schedule, iterations):
    options = {**places, **FULL, "schedule": schedule}
    train(tmp_path / "whole", **options)
    for iteration in iterations:
        interrupt(tmp_path / "parts", iteration, resume=True, **options)
    train(tmp_path / "parts", resume=True, **options)
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert_same_weights(tmp_path / "parts" / name, tmp_path / "whole" / name)
    whole, parts = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "parts"))
    assert parts["history"] == whole["history"]
    assert [row["epoch"] for row in whole["history"]] == [1, 2, 3, 4]
    assert (whole["resumed_from_epoch"], parts["resumed_from_epoch"]) == (0, (iterations[-1] - 1) // 6)


@pytest.mark.parametrize(("killed", "share"), [("best.pt", 1.0), ("state.pt", 0.5)])
def test_a_training_killed_while_it_writes_goes_on_to_the_same_weights(places, tmp_path, monkeypatch, killed, share):
    options = {**places, **FULL, "max_epochs": 6, "learning_rate": 0.02}
    train(tmp_path / "whole", **options)
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["best_epoch"] > 1  # so best.pt is written twice
    write, number = Path.write_bytes, 0

    def interrupted(path: Path, content: bytes) -> int:
        nonlocal number
        number += path.name == f"{killed}.tmp"
        if number == 2 and path.name == f"{killed}.tmp":
            write(path, content[: int(share * len(content))])
            patched.setattr(Path, "unlink", lambda *_, **__: None)  # a process that is killed tidies nothing up
            raise KilledError
        return write(path, content)

    workflow = prepare_training(tmp_path / "parts", **options)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(RuntimeError, match="Failed to evaluate"):
            workflow.run()
    assert number == 2 and interrupted_epoch(tmp_path / "parts" / "checkpoints" / "state.pt") in range(1, 6)
    train(tmp_path / "parts", resume=True, **options)
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert_same_weights(tmp_path / "parts" / name, tmp_path / "whole" / name)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_finished_training_is_not_trained_again_and_an_early_stopped_one_neither(places, tmp_path):
    for name, options in (("all", {}), ("early", {"learning_rate": 1e-9, "patience": 1})):
        train(tmp_path / name, **places, **options)
        state = read_run(tmp_path / name / "checkpoints" / "state.pt")
        assert state["finished"] and state["epoch"] == (4 if name == "all" else len(state["history"]))
        before = (tmp_path / name / "model.pt").read_bytes()
        train(tmp_path / name, resume=True, **places, **options)
        assert (tmp_path / name / "model.pt").read_bytes() == before
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["resumed_from_epoch"] == state["epoch"]


def test_without_resume_an_interrupted_training_is_told_and_begins_anew(places, tmp_path, caplog):
    interrupt(tmp_path, 14, **places)
    assert interrupted_epoch(tmp_path / "checkpoints" / "state.pt") == 2
    with caplog.at_level(logging.WARNING, logger="angiography"):
        interrupt(tmp_path, 2, **places)
    assert "a run was interrupted here after epoch 2. This one begins anew" in caplog.text
    assert "--resume True would go on with it" in caplog.text
    assert interrupted_epoch(tmp_path / "checkpoints" / "state.pt") == 2  # until there is something in its place
    interrupt(tmp_path, 9, **places)
    assert interrupted_epoch(tmp_path / "checkpoints" / "state.pt") == 1


def test_resume_where_there_is_nothing_begins_and_says_so(places, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="angiography"):
        train(tmp_path, resume=True, max_epochs=1, **places)
    assert "resume: no run to go on with" in caplog.text


def test_a_training_by_another_recipe_is_not_gone_on_with(places, tmp_path):
    interrupt(tmp_path, 14, **places)
    workflow = prepare_training(tmp_path, resume=True, learning_rate=0.5, **places)
    with pytest.raises(RuntimeError) as refused:
        workflow.run()
    assert_message(refused.value.__cause__, "resume", "learning_rate", "0.5", "0.003, with which the run in")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02N."])
def test_a_state_that_cannot_be_read_is_refused_by_name_and_no_reason_to_stop_a_new_run(places, tmp_path, content):
    path = tmp_path / "checkpoints" / "state.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: content is unreadable")):
        read_run(path)
    assert interrupted_epoch(path) is None


def test_state_holds_nothing_but_tensors_and_plain_values(places, tmp_path):
    train(tmp_path, **places, **FULL, max_epochs=1)
    state = torch.load(tmp_path / "checkpoints" / "state.pt", weights_only=True)
    assert {"network", "averaged", "optimizer", "lr_scheduler", "best"} <= state.keys()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.pt",
        "last.pt",
        "run.json",
        "state.pt",
        "tensorboard",
    ]


# --- processes ---


@pytest.fixture(scope="module")
def driven(places, tmp_path_factory) -> Path:
    """Trainings in processes of their own, some killed, some two together; where they are."""
    folder = tmp_path_factory.mktemp("driven")
    arguments = json.dumps({"places": places, "folder": str(folder), "options": {**QUICK, **FULL}})
    code = "import sys; from tests.runs import drive; drive(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, arguments], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_training_killed_at_any_batch_goes_on_to_the_weights_of_one_that_was_not(driven):
    killed_after = json.loads((driven / "killed.json").read_text())
    assert len(killed_after) == 3
    assert all(0 < epoch < 40 for epoch in killed_after) and killed_after == sorted(killed_after)
    for name in ("model.pt", "checkpoints/best.pt", "checkpoints/last.pt"):
        assert_same_weights(driven / "killed" / name, driven / "whole" / name)
    assert not list((driven / "killed").rglob("*.tmp"))


def test_two_processes_train_to_the_weights_of_one_with_the_whole_batch(driven):
    """Sums are added up in another order, so to a tolerance: 1e-4 of each weight after 18 steps."""
    one, two = (torch.load(driven / name / "checkpoints" / "last.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 10
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    histories = [json.loads((driven / name / "run.json").read_text())["history"] for name in ("one", "two")]
    assert len(histories[0]) == 3
    for ours, theirs in zip(*histories, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert json.loads((driven / "two" / "run.json").read_text())["processes"] == 2


def test_two_processes_interrupted_go_on_to_the_weights_of_two_that_were_not(driven):
    assert_same_weights(driven / "two_parts" / "checkpoints" / "last.pt", driven / "two" / "checkpoints" / "last.pt")

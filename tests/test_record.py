"""run.json: what it holds, and what it must not."""

import json
import os
import re
import sys

import pytest
import torch

from scripts.record import RunRecord, overrides, peak_memory_bytes, reduced, reduced_command, write_run

MONAI = "/home/jane/.venv/lib/python3.11/site-packages/monai/bundle/__main__.py"
COMMAND = [
    MONAI,
    "run",
    "--config_file",
    "['/home/jane/bundle/configs/train.yaml','configs/evaluate.yaml']",
    "--dataset_dir",
    "/mnt/st_elsewhere/angio",
    "--learning_rate=0.01",
    "--model_path=../jane/model.pt",
    "--class_weights",
    "[1.0, 2.0]",
]


def test_command_and_overrides_are_kept_without_the_folders_of_whoever_ran_it():
    found = reduced_command(COMMAND)
    assert found[:2] == ["monai.bundle", "run"]
    assert found[3] == "['.../train.yaml', 'configs/evaluate.yaml']"
    assert overrides(COMMAND[1:]) == {
        "dataset_dir": ".../angio",
        "learning_rate": "0.01",
        "model_path": ".../model.pt",
        "class_weights": "[1.0, 2.0]",
    }
    assert not re.search("jane|elsewhere", json.dumps(found))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("gru", "gru"),
        ("-1", "-1"),
        ("configs/train.yaml", "configs/train.yaml"),
        ("/home/jane doe/x.json", ".../x.json"),
        ("~/data", ".../data"),
        (r"C:\Users\jane\data", ".../data"),
        ("../jane/data", ".../data"),
        ("sqlite:////home/jane/mlruns.db", ".../mlruns.db"),
        ("--datalist=/home/jane/list.json", "--datalist=.../list.json"),
        ("[not a list", "[not a list"),
    ],
)
def test_paths_outside_the_working_directory_lose_their_folders(text, kept):
    assert reduced(text) == kept


def test_record_says_with_what_on_what_and_how_long(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", COMMAND)
    folders = [tmp_path / "models", tmp_path / "checkpoints"]
    write_run(
        RunRecord("train"), folders, recipe={"seed": 3, "encoder_weights": "/home/jane/weights.pth"}, others={"a": 1}
    )
    record, again = (json.loads((folder / "run.json").read_text()) for folder in folders)
    assert record == again
    assert record["workflow"] == "train"
    assert record["recipe"] == {"seed": 3, "encoder_weights": ".../weights.pth"}
    assert record["a"] == 1
    assert record["versions"]["torch"] == torch.__version__
    assert {"bundle", "python", "monai", "numpy"} <= record["versions"].keys()
    assert 0 <= record["duration_s"] < 60
    assert record["host"]["cores"] == os.cpu_count()
    assert not {"node", "name", "hostname"} & record["host"].keys()
    assert "jane" not in (folders[0] / "run.json").read_text()
    assert [path.name for path in folders[0].iterdir()] == ["run.json"]


def test_peak_memory_is_of_this_process_and_grows_with_what_it_holds():
    before = peak_memory_bytes()
    if before["resident"] is None:
        pytest.skip("no /proc here")
    held = bytearray(os.urandom(1)) * (before["resident"] // 2 + 200_000_000)
    assert peak_memory_bytes()["resident"] >= before["resident"]
    assert peak_memory_bytes()["resident"] > len(held) // 2
    assert (before["cuda"] is None) is not torch.cuda.is_available()

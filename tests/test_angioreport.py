"""Data in the AngioReport layout, from its folder to a trained model, by the commands a user types. Synthetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.networks.card import read_card
from scripts.store.store import FeatureStore
from tests.angioreport import CLASSES, write_angioreport

ROOT = Path(__file__).resolve().parent.parent


def command(cwd: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run `python -m ...` from a folder that is not the bundle's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_angioreport_data_is_listed_checked_cached_and_trained_on(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    _, split_file = write_angioreport(data)
    listed = command(tmp_path, "scripts", "datalist", data, "--labels", split_file, "--synthetic")
    assert listed.returncode == 0, listed.stderr
    content = json.loads((data / "datalist.json").read_text())
    items = [item for split in ("training", "validation", "test") for item in content[split]]
    assert len(items) == 30
    assert content["task"]["classes"] == sorted(CLASSES)
    splits_of = {}
    for split in ("training", "validation", "test"):
        for item in content[split]:
            splits_of.setdefault(item["patient"], set()).add(split)
    assert len(splits_of) == 15 and all(len(splits) == 1 for splits in splits_of.values())

    checked = command(tmp_path, "scripts", "check", data / "datalist.json", "--output_dir", out)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "pass" in checked.stdout.strip().splitlines()[-1]
    assert (out / "check.html").is_file() and (out / "check.json").is_file()

    run = ("monai.bundle", "run", "--bundle_root", ROOT, "--dataset_dir", data, "--output_dir", out, "--config_file")
    encoder = ("--encoder_name", "test_vit", "--encoder_weights", "random:0", "--image_size", 48)
    choice = ("--panel", "left", "--frame_choice", "phase_stratified")
    cached = command(tmp_path, *run, ROOT / "configs" / "cache_features.yaml", *encoder, *choice, "--max_frames", 6)
    assert cached.returncode == 0, cached.stderr
    store = FeatureStore.open(out / "features")
    assert len(store) == 30
    assert store.settings["panel"] == "left"
    for sequence in map(store.read, store.keys()):
        assert len(sequence.features) == len(sequence.frame_times_ms) == 6

    training = ("--model_path", out / "model.pt", "--max_epochs", 2, "--batch_size", 8)
    trained = command(tmp_path, *run, ROOT / "configs" / "train.yaml", *training)
    assert trained.returncode == 0, trained.stderr
    card = read_card(out / "model.pt")
    assert (card["panel"], card["frame_choice"], card["synthetic"]) == ("left", "phase_stratified", True)

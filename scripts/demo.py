"""The whole flow on synthetic exams, by the very commands a user would type."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from scripts.datalists.collect import make_datalist
from scripts.errors import bad_value
from scripts.networks.fetching import fetch
from scripts.sequences.phantom import CLASSES, write_exams

BUNDLE_ROOT = Path(__file__).resolve().parent.parent
KIND = "ffa_leak"
ENCODER_WEIGHTS = "dinov2_small"
IMAGE_SIZE = 112  # a quarter of the encoder's work at 224; enough for the synthetic spots


def run_demo(output_dir: str, num_patients: int, seed: int) -> None:
    """Make exams, cache their features, train, evaluate beside controls, predict; print each command.

    Raises:
        OSError: the encoder weights cannot be had.
        RuntimeError: a command failed; its own message stands above.
    """
    start = time.monotonic()
    out, data = Path(output_dir).resolve(), Path(output_dir).resolve() / "data"
    model_path = out / "models" / "model.pt"  # beside what a user trained, which stays
    print("1. Synthetic exams, as DICOM")
    labels = write_exams(data, KIND, num_patients, seed)
    print(make_datalist(data, labels, classes=CLASSES[KIND], seed=seed))

    print(f"\n2. Encoder weights: {ENCODER_WEIGHTS}")
    path, digest = fetch(ENCODER_WEIGHTS, BUNDLE_ROOT / "models")
    print(f"{path}, digest {digest[:16]}")

    places = ["--dataset_dir", str(data), "--output_dir", str(out / "output")]
    model = ["--model_path", str(model_path)]
    print("\n3. Every frame through the frozen encoder, once")
    _workflow("cache_features.yaml", [*places, "--image_size", str(IMAGE_SIZE)])
    print("\n   and once through one with random weights, for comparison")
    untrained = ["--encoder_weights", "random:0", "--features_dir", str(out / "output" / "features_untrained")]
    _workflow("cache_features.yaml", [*places, "--image_size", str(IMAGE_SIZE), *untrained])
    print("\n4. The temporal head on the stored features")
    _workflow("train.yaml", [*places, *model, "--seed", str(seed)])
    print("\n5. Held-out patients, beside the controls (synthetic)")
    _workflow("evaluate.yaml", [*places, *model])
    print("\n6. Predictions for one patient's exams, straight from DICOM")
    patient = sorted((data / "exams").iterdir())[0]
    _workflow("inference.yaml", ["--input", str(patient), "--output_dir", str(out / "output"), *model])
    print(f"\nDone in {time.monotonic() - start:.0f} s. All numbers are of synthetic exams.")
    found = out / "output"
    print(f"report:      {found / 'evaluation' / 'report.html'}\npredictions: {found / 'predictions.csv'}")
    print(f"model:       {model_path}")


def _workflow(file: str, overrides: list[str]) -> None:
    config = str(BUNDLE_ROOT / "configs" / file)
    command = [
        "python",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        config,
        "--bundle_root",
        str(BUNDLE_ROOT),
    ]
    command += overrides
    print("$ " + shlex.join(command), flush=True)
    # MONAI warns that a config runs code, which is so, and this one is ours.
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore::UserWarning:monai.bundle.scripts"}
    if subprocess.run([sys.executable, *command[1:]], env=quiet, check=False).returncode:
        raise RuntimeError(bad_value("demo", "command", file, "an end without error; see its message above"))

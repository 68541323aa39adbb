"""Encoder and head trained together on synthetic exams: against cached features, killed, planned, in two processes.

    python -m tests.benchmarks.finetuning [--quick] [--check]

Synthetic exams, a tiny ViT with random weights, the workflows as their commands run them, on a CPU. Likelihood is that
of the true class in the validation split, by which both trainings choose their best epoch.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from monai.bundle import create_workflow

from scripts.datalists.collect import make_datalist
from scripts.sequences.phantom import CLASSES, write_exams
from tests.benchmarks.report import ROOT, Figure, finish, print_table, seconds

ENCODER = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48, "max_frames": 8}
KILLED_AFTER = 2  # epochs
PAIRS = (("planned", "whole"), ("blocks", "plain"), ("broken", "unbroken"), ("two", "plain"))


def command(name: str, *overlays: str, processes: int = 1, **given: Any) -> list[str]:
    """The command line of a workflow."""
    files = [str(ROOT / "configs" / f"{file}.yaml") for file in (name, *overlays)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    start = [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", str(files)]
    return [*start, "--bundle_root", str(ROOT), *words]


def run(name: str, **given: Any) -> Any:
    """A workflow from start to end in this process; itself."""
    workflow = create_workflow(
        workflow_type="train",
        config_file=str(ROOT / "configs" / f"{name}.yaml"),
        bundle_root=str(ROOT),
        logging_file=False,
        **given,
    )
    workflow.run()
    workflow.finalize()
    return workflow


def likelihood(folder: Path) -> float:
    """Of the best epoch."""
    record = json.loads((folder / "run.json").read_text())
    return max(epoch["val_likelihood"] for epoch in record["history"] if "val_likelihood" in epoch)


def apart(one: Path, other: Path) -> float:
    """Largest difference of two checkpoints, as a share of the largest weight of its tensor."""
    ours, theirs = (torch.load(path, weights_only=True) for path in (one, other))
    differences = [
        float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)) for name in theirs
    ]
    return max(differences)


def kill_and_resume(folder: Path, given: dict[str, Any]) -> int:
    """Kill -9 a training after some epochs and go on; the epoch after which it went on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = command("finetune", **given, output_dir=folder, model_path=folder / "model.pt", resume=True)
    state = folder / "finetuning" / "state.pt"
    silent: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(line, **silent) as process:
        while not state.is_file() or torch.load(state, weights_only=True)["epoch"] < KILLED_AFTER:
            if process.poll() is not None:
                raise RuntimeError("the training ended before it could be killed")
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    subprocess.run(line, **silent, check=True)
    return int(json.loads((folder / "run.json").read_text())["resumed_from_epoch"])


def measure(root: Path, quick: bool) -> list[Figure]:
    """All of it, in one folder."""
    write_exams(root / "data", num_patients=24 if quick else 60, rows=64, progress=False)
    make_datalist(root / "data", root / "data" / "labels.csv", classes=CLASSES["ffa_leak"])
    there: dict[str, Any] = {"dataset_dir": str(root / "data"), "progress": False, "device": "cpu"}
    cached = there | {"output_dir": str(root / "cached")}
    start = root / "cached" / "model.pt"
    run("cache_features", **cached, **ENCODER)
    epochs = 15 if quick else 60
    head_s = seconds(lambda: run("train", **cached, model_path=str(start), max_epochs=epochs, num_threads=1))

    def options(name: str, **given: Any) -> dict[str, Any]:
        places = {"output_dir": str(root / name), "model_path": str(root / name / "model.pt"), "start_from": str(start)}
        return there | places | {"batch_size": 4, "accumulation_steps": 2, "trainable_blocks": -1} | given

    given = options("tuned", max_epochs=4 if quick else 20, learning_rate=0.0005, encoder_learning_rate=0.0005)
    tuned_s = seconds(lambda: run("finetune", **given))
    before, after = likelihood(root / "cached"), likelihood(root / "tuned")
    rows = [
        ("head on cached features", f"{head_s:.0f}", f"{before:.3f}"),
        ("finetuned", f"{tuned_s:.0f}", f"{after:.3f}"),
    ]
    print_table("Synthetic exams", ("training", "seconds", "likelihood"), rows)

    short = {"max_epochs": 3, "augment": False, "dropout": 0.0, "calibrate": False}
    plain, blocks = (
        run("finetune", **options(name, **short, checkpointing=kind)).parser.get_parsed_content("fit")
        for name, kind in (("plain", "none"), ("blocks", "blocks"))
    )
    in_one = {"batch_size": 16, "accumulation_steps": 1}  # steps have the same exams, however they are divided
    whole = run("finetune", **options("whole", **short, **in_one)).parser.get_parsed_content("fit")
    planned = {**in_one, "checkpointing": "plan", "memory_budget": int(0.5 * whole.peak_bytes)}
    fit = run("finetune", **options("planned", **short, **planned)).parser.get_parsed_content("fit")
    last = "finetuning/last.pt"

    drawn = {"max_epochs": 4, "drop_path": 0.2, "ema_decay": 0.9}
    run("finetune", **options("unbroken", **drawn))
    broken = {
        key: value for key, value in options("broken", **drawn).items() if key not in ("output_dir", "model_path")
    }
    went_on = kill_and_resume(root / "broken", broken)

    two = command("finetune", "multi_gpu_train", processes=2, **options("two", **short) | {"batch_size": 2})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(two, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    gaps = {name: apart(root / name / last, root / other / last) for name, other in PAIRS}
    print_table(
        "Weights after training: the largest difference, as a share of the largest weight of its tensor",
        ("run", "difference"),
        [(f"{name} against {other}", f"{gaps[name]:.1e}") for name, other in PAIRS],
    )
    fits = {"plain": plain, "blocks": blocks, "whole": whole, "planned": fit}
    rows = [(n, f"{f.batch_size} x {f.accumulation_steps}", f"{f.peak_bytes / 1e6:.1f}") for n, f in fits.items()]
    print_table(f"A step; a run was killed after epoch {went_on}", ("run", "sequences", "peak MB, simulated"), rows)
    return [
        Figure("finetuned likelihood over cached", after / before, at_least=1.0),
        Figure("planned against whole", gaps["planned"], at_most=1e-3),
        Figure("checkpointed against plain", gaps["blocks"], at_most=1e-3),
        Figure("killed and resumed against unbroken", gaps["broken"], at_most=0.0),
        Figure("two processes against one", gaps["two"], at_most=1e-3),
        Figure("peak of blocks against plain", blocks.peak_bytes / plain.peak_bytes, at_most=0.999),
        Figure("peak of planned against whole", fit.peak_bytes / whole.peak_bytes, at_most=0.5),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer exams and epochs")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a bar is missed")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "parsing config_file", UserWarning)  # MONAI 1.6.1: configs run code
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), given.quick)
    return finish("finetuning", figures, {"quick": given.quick, **ENCODER}, given.check)


if __name__ == "__main__":
    sys.exit(main())

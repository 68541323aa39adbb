"""Both kinds of synthetic exams through the whole flow: the model by train.yaml's defaults, beside its controls.

    python -m tests.benchmarks.phantoms [--quick] [--check] [--work_dir FOLDER] [--image_size 112]

For each kind and seed: 240 synthetic patients as DICOM, their frames through the encoder once with its trained and once
with untrained weights, the head by configs/train.yaml with every knob at its default, and the evaluation of held-out
patients by configs/evaluate.yaml's functions. Nothing is set for one kind that is not set for the other.

Why 240 patients: a fifth of them is tested. Of the 120 of the demo that is 25 with 50 runs, and an accuracy of 0.92
is known to 0.04 then, twice the way from the model to its bar. 240 halve that variance, and leave 144 patients to learn
from, still few.

Frames are shown to the encoder at 112 pixels, not at the default of 224, which takes four times as long: at 112 the six
sets cost about two minutes each on two idle cores, and again as much with the untrained encoder. `--work_dir` keeps
exams and features, and uses what is there. All numbers are of synthetic exams.
"""

import argparse
import contextlib
import io
import logging
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from scripts.datalists.collect import make_datalist
from scripts.keys import TEST
from scripts.networks.fetching import fetch
from scripts.reports.evaluation import evaluate
from scripts.sequences.phantom import CLASSES, KINDS, write_exams
from scripts.training.controls import SINGLE_FRAME
from scripts.training.workflow import train
from tests.benchmarks.report import ROOT, Figure, finish, print_table

METRIC = "balanced_accuracy"
ACCURACY, SHUFFLED, NO_TIME = 0.90, "shuffled order", "time removed"
COSTS = {  # what a model without it must lose
    ("ffa_leak", SINGLE_FRAME): 0.20,
    ("xa_flow", SINGLE_FRAME): 0.20,
    ("ffa_leak", SHUFFLED): 0.20,
    ("xa_flow", NO_TIME): 0.15,
}
ENCODERS = {"features": "dinov2_small", "untrained": "random:0"}  # folder of the store, weights


def make_features(folder: Path, kind: str, seed: int, num_patients: int, image_size: int) -> None:
    """Exams, datalist and both stores in `folder`; what is there already stays."""
    data = folder / "data"
    labels = write_exams(data, kind, num_patients, seed, progress=False)
    if not (data / "datalist.json").is_file():
        make_datalist(data, labels, classes=CLASSES[kind], seed=seed)
    for store, weights in ENCODERS.items():
        overrides = {
            "dataset_dir": data,
            "features_dir": folder / store,
            "output_dir": folder,
            "image_size": image_size,
            "encoder_weights": weights,
            "progress": False,
        }
        words = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
        command = ["-m", "monai.bundle", "run", "--config_file", "configs/cache_features.yaml", *words]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)


def judged(folder: Path, num_resamples: int) -> dict[str, Any]:
    """What report.json holds of a head trained and evaluated there."""
    places = {"dataset_dir": str(folder / "data"), "features_dir": str(folder / "features")}
    model = folder / "model.pt"
    with contextlib.redirect_stdout(io.StringIO()):
        train(
            {**places, "output_dir": str(folder), "model_path": str(model), "device": "cpu", "progress": False},
            finalize=True,
        )
        return evaluate(
            model_path=model,
            datalist=folder / "data" / "datalist.json",
            **places,  # type: ignore[arg-type]
            untrained_dir=folder / "untrained",
            report_dir=folder / "report",
            split=TEST,
            subgroups=(),
            device="cpu",
            num_resamples=num_resamples,
        )


def interval(metric: dict[str, float]) -> str:
    """Such as `0.90 [0.81, 0.97]`."""
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**metric)


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of few patients and small images, without bars")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--work_dir", type=Path, help="keep exams and features here, and use what is there")
    parser.add_argument("--image_size", type=int, default=112, help="pixels; a multiple of 14")
    options = parser.parse_args()
    seeds, num_patients, image_size = (1, 24, 28) if options.quick else (3, 240, options.image_size)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # MONAI 1.6.1: configs run code
    fetch(ENCODERS["features"], ROOT / "models")
    figures = []
    with contextlib.ExitStack() as stack:
        work = options.work_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind in KINDS:
            rows, accuracies, costs = [], [], {}
            for seed in range(seeds):
                folder = work / f"{kind}{seed}_{num_patients}_{image_size}"
                make_features(folder, kind, seed, num_patients, image_size)
                found = judged(folder, 2000)
                accuracies.append(found["model"][METRIC]["value"])
                rows.append((f"seed {seed}: model", interval(found["model"][METRIC]), ""))
                for name, control in found["controls"].items():
                    cost = control["difference"]
                    costs.setdefault(name, []).append(cost["value"])
                    rows.append((f"  {name}", interval(control["score"][METRIC]), interval(cost)))
            title = f"{kind}, synthetic: balanced accuracy on held-out patients, 95 % intervals by patient"
            print_table(title, ("", "balanced accuracy", "model less control, paired"), rows)
            barred = not options.quick  # a few patients at 28 pixels show that it runs, no more
            for seed, value in enumerate(accuracies):
                name = f"{kind}, seed {seed}: balanced accuracy"
                figures.append(Figure(name, value, at_least=ACCURACY if barred else None))
            for name, values in costs.items():
                bar = COSTS.get((kind, name)) if barred else None
                figures.append(Figure(f"{kind}: {name} costs, least of the seeds", min(values), at_least=bar))
            figures.append(Figure(f"{kind}: mean balanced accuracy", statistics.mean(accuracies)))
    settings = {"seeds": seeds, "patients": num_patients, "image size": image_size, "synthetic": True}
    return finish("phantoms", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())

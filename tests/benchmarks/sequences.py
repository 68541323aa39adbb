"""JapaneseVowels: our heads by train.yaml's defaults, beside MiniRocket, on the archive's own split.

    python -m tests.benchmarks.sequences [--quick] [--check]

Real, public data that aeon ships (pip install aeon==1.6.0; nothing is downloaded): which of nine speakers says a vowel,
from 12 cepstral coefficients at 7 to 29 steps; 270 utterances to learn from and 370 to test (Kudo et al. 1999, Pattern
Recognition Letters 20). They go through the feature store and configs/train.yaml as exams do, with every knob at its
default but the head's name and the seed. Validation, which chooses the epoch, takes three utterances of each speaker
from those to learn from, drawn anew by each seed; apart by speaker it cannot be, since the speakers are the classes.

The peer learns from all 270, in the equal-length form that aeon ships beside them, where it does better than on the
same sequences padded with zeros. Frame times are unknown here: the benchmark has none to show.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from scripts.datalists.datalist import labelled_split
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import CLASSES, ENTRY, LABEL, PATIENT, TASK, TEST, TRAINING, TYPE, VALIDATION
from scripts.store.store import FeatureStore, StoredSequence
from scripts.training.classes import labels_of
from scripts.training.outputs import logits_of
from scripts.training.workflow import part, train
from tests.benchmarks.report import Figure, finish, print_table
from tests.benchmarks.store import key_of

HEADS, PEER = ("gru", "attention", "transformer"), "MiniRocket"
SPEAKERS, COEFFICIENTS, HELD_OUT = 9, 12, 3
ACCURACY = 0.975
FINGERPRINT = {"encoder": {"name": "none", "digest": "JapaneseVowels"}, "benchmark": "sequences"}
SETTINGS = {"encoder_name": "none", "encoder_weights": "none", "pooling": "avg", "layers": 1}


def read_split(name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences (12, T) and speakers (N,) from 0; `name` is train or test."""
    try:
        from aeon.datasets import load_japanese_vowels
    except ImportError as error:
        way_out = "pip install aeon==1.6.0"
        raise SystemExit(bad_value("sequences", "aeon", "not installed", "the data that it ships", way_out)) from error
    sequences, speakers = load_japanese_vowels(split=name)
    return list(sequences), speakers.astype(int) - 1


def write_store(folder: Path) -> dict[str, np.ndarray]:
    """All sequences as a feature store, the training ones first; the speakers of both splits."""
    speakers, number = {}, 0
    with FeatureStore.create(folder / "features", FINGERPRINT, SETTINGS).writer() as writer:
        for name in ("train", "test"):
            sequences, speakers[name] = read_split(name)
            for sequence in sequences:
                steps = torch.arange(sequence.shape[1])
                unknown = torch.full(steps.shape, torch.nan)
                features = torch.from_numpy(sequence.T.copy()).to(torch.float32)
                writer.add(key_of(number), StoredSequence(features, unknown, steps))
                number += 1
    return speakers


def write_datalist(path: Path, speakers: dict[str, np.ndarray], seed: int) -> None:
    """The official split, less what `seed` draws for validation."""
    labels = np.concatenate([speakers["train"], speakers["test"]]).tolist()
    learn, random = speakers["train"], np.random.default_rng(seed)
    held_out = [random.choice(np.flatnonzero(learn == n), HELD_OUT, replace=False) for n in range(SPEAKERS)]
    parts = {
        TRAINING: np.setdiff1d(np.arange(len(learn)), held_out).tolist(),
        VALIDATION: np.concatenate(held_out).tolist(),
        TEST: list(range(len(learn), len(labels))),
    }
    content: dict[str, Any] = {TASK: {TYPE: "multiclass", CLASSES: [f"speaker {n + 1}" for n in range(SPEAKERS)]}}
    for split, numbers in parts.items():
        content[split] = [{ENTRY: key_of(n), LABEL: labels[n], PATIENT: f"utterance {n}"} for n in numbers]
    path.write_text(json.dumps(content))


def accuracy_of(folder: Path, speakers: dict[str, np.ndarray], head_name: str, seed: int) -> float:
    """Share of the test utterances whose speaker a head names that train.yaml trained."""
    datalist = folder / "datalist.json"
    write_datalist(datalist, speakers, seed)
    trained = train(
        {
            "dataset_dir": str(folder),
            "features_dir": str(folder / "features"),
            "output_dir": str(folder / f"{head_name}{seed}"),
            "head_name": head_name,
            "seed": seed,
            "device": "cpu",
            "progress": False,
            "encoder": SimpleNamespace(num_features=COEFFICIENTS),  # there is none: features are as they come
            "encoder_digest": FINGERPRINT["encoder"]["digest"],  # type: ignore[index]
        }
    )
    test = FeatureDataset(labelled_split(datalist, folder, TEST), part(trained.workflow, "store"))
    return float((logits_of(trained.head, test, "cpu").argmax(axis=1) == labels_of(test)).mean())


def peer_accuracy(speakers: dict[str, np.ndarray], seed: int) -> float:
    """The same of aeon's MiniRocket."""
    import aeon.datasets
    from aeon.classification.convolution_based import MiniRocketClassifier

    shipped = Path(aeon.datasets.__file__).parent / "data" / "JapaneseVowels"
    train_x, test_x = (
        aeon.datasets.load_from_ts_file(shipped / f"JapaneseVowels_eq_{name}.ts")[0] for name in ("TRAIN", "TEST")
    )
    peer = MiniRocketClassifier(random_state=seed).fit(train_x, speakers["train"])
    return float(peer.score(test_x, speakers["test"]))


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed instead of five, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    seeds = range(1 if options.quick else 5)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # MONAI 1.6.1: configs run code
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        speakers = write_store(Path(name))
        rows = []
        for who in (*HEADS, PEER):
            start = time.perf_counter()
            if who == PEER:
                found[who] = [peer_accuracy(speakers, seed) for seed in seeds]
            else:
                found[who] = [accuracy_of(Path(name), speakers, who, seed) for seed in seeds]
            each_s = (time.perf_counter() - start) / len(seeds)
            rows.append((who, *(f"{value:.4f}" for value in found[who]), f"{np.mean(found[who]):.4f}", f"{each_s:.1f}"))
    print_table("Accuracy on the 370 test utterances", ("", *(f"seed {n}" for n in seeds), "mean", "s each"), rows)
    means = {who: float(np.mean(values)) for who, values in found.items()}
    best = max(HEADS, key=means.__getitem__)
    figures = [Figure(f"{who}: mean accuracy", means[who]) for who in (*HEADS, PEER)]
    figures.append(Figure("best head: mean accuracy", means[best], at_least=ACCURACY))
    figures.append(Figure("best head less the peer", means[best] - means[PEER], at_least=0.0))
    return finish("sequences", figures, {"seeds": len(seeds), "best head": best}, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""What a model is compared with: heads trained by its recipe without order, time or a trained encoder; one frame."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.features.batching import FeatureDataset
from scripts.keys import MULTILABEL
from scripts.store.store import FeatureStore
from scripts.training.checkpoints import STATE, read_run
from scripts.training.classes import labels_of
from scripts.training.workflow import Trained, code_digest, open_workflow, train

logger = logging.getLogger("angiography")

POSITIONS = np.linspace(0.0, 1.0, 9)  # of the single frame: first, ..., middle, ..., last
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse L2 penalties tried
SINGLE_FRAME, UNTRAINED = "single best frame", "untrained encoder"


# What finetune.yaml has in its own way, or not at all.
OF_STEPS = (
    *(
        "max_epochs",
        "patience",
        "batch_size",
        "accumulation_steps",
        "world_size",
        "learning_rate",
        "schedule",
        "warmup",
    ),
    *("weight_decay", "max_gradient_norm", "frame_dropout", "time_jitter", "frames_shown"),
)


class Control(NamedTuple):
    """A head that is trained as the model was, but for what it does without.

    Attributes:
        changes: ids of train.yaml and their values.
        explanation: a sentence for the report.
    """

    changes: dict[str, Any]
    explanation: str


TRAINED_CONTROLS = {
    "mean of frames": Control(
        {"head_name": "mean", "use_times": False, "num_layers": None, "bidirectional": None, "readout": None},
        "Every frame embedded by itself and the embeddings averaged: no order, no time.",
    ),
    "shuffled order": Control(
        {"frames_shown": "shuffled"},
        "The model's head trained and tested on frames in random order, times left in place.",
    ),
    "time removed": Control(
        {"use_times": False}, "The model's head trained and tested without the times of the frames; their order stays."
    ),
    UNTRAINED: Control({}, "The model's head trained and tested on the features of an encoder with random weights."),
}


def is_finetuned(card: Mapping[str, Any]) -> bool:
    """Whether finetune.yaml made the model, from exams, and train.yaml did not, from a feature store."""
    return "store_digest" not in card


def recipe_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of train.yaml that a model was trained with, as its card has them.

    Of a finetuned model the steps are those of train.yaml: a head alone would learn too little in those of an encoder.
    """
    ids: dict[str, Any] = open_workflow({}).parser.get()
    if is_finetuned(card):
        card = {**card, **{name: ids[name] for name in OF_STEPS}}
    made = {name for name, value in ids.items() if isinstance(value, dict) or str(value).startswith("$")}
    recipe = {name: card[name] for name in ids if name in card and name not in made}
    recipe["batch_size"] *= recipe.pop("world_size", 1)  # as many sequences a step
    return recipe


def train_control(
    name: str, recipe: Mapping[str, Any], folder: Path, store: FeatureStore, digest: str, places: Mapping[str, Any]
) -> Trained:
    """The head of one control; where `folder` has it from an earlier evaluation by this code, it is not trained again.

    Args:
        name: of TRAINED_CONTROLS.
        recipe: of `recipe_of`.
        folder: gets its checkpoints.
        store: has the features it sees.
        digest: of the datalist whose exams it is trained on.
        places: other ids of train.yaml, which its weights do not follow from, such as dataset_dir.
    """
    changed = {**recipe, **TRAINED_CONTROLS[name].changes}
    others = {"store_digest": store.digest, "datalist_digest": digest, "code_digest": code_digest()}
    known = _was_trained(folder / STATE, changed | others)
    logger.info(f"control: {name}{', trained by an earlier evaluation' if known else ''}")
    kept = {"store": store, "checkpoint_dir": str(folder), "resume": known, "trained::datalist_digest": digest}
    return train({**places, **changed, **kept})


def _was_trained(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a run at `path` ended, or was interrupted, that began with this recipe."""
    try:
        began = json.loads(read_run(path)["recipe"]) if path.is_file() else {}
    except ValueError:  # unreadable: it is trained again
        began = {}
    return began != {} and all(began.get(name) == value for name, value in recipe.items())


def single_best_frame(
    training: FeatureDataset,
    validation: FeatureDataset,
    test: FeatureDataset,
    num_classes: int,
    task_type: str,
) -> tuple[np.ndarray, float]:
    """Probabilities (N, K) of the best classifier that sees one frame of each sequence.

    A logistic regression for each of nine positions in the run, first to last, and several penalties; the
    one with the best balanced accuracy on the validation split is used. Ties go to the stronger penalty.

    Returns:
        Test probabilities, and the position chosen, from 0 (first frame) to 1 (last).
    """
    best_score, best_position = -1.0, 0.0
    best: Regression | None = None
    labels, held_out = labels_of(training), labels_of(validation)
    for position in POSITIONS:
        frames, held_out_frames = _frames_at(training, position), _frames_at(validation, position)
        for strength in STRENGTHS:
            if task_type == MULTILABEL:
                found = _regress_each(frames, labels, strength)
            else:
                found = _regress(frames, labels, num_classes, strength)
            score = _balanced_accuracy(held_out, found(held_out_frames))
            if score > best_score:
                best_score, best_position, best = score, float(position), found
    assert best is not None  # a score is never below 0
    return best(_frames_at(test, best_position)), best_position


Regression = Callable[[np.ndarray], np.ndarray]  # frames (N, D) -> probabilities (N, K)


def _regress(frames: np.ndarray, labels: np.ndarray, num_classes: int, strength: float) -> Regression:
    """Fitted on frames (N, D) and labels (N,); where all are of one class, always that class."""
    present = np.unique(labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    if len(present) > 1:
        model.fit(frames, labels)

    def predict(others: np.ndarray) -> np.ndarray:
        out = np.zeros((len(others), num_classes))
        out[:, present] = model.predict_proba(others) if len(present) > 1 else 1.0
        return out

    return predict


def _regress_each(frames: np.ndarray, labels: np.ndarray, strength: float) -> Regression:
    """Fitted on frames (N, D) and labels (N, K), each label from the sequences where it is known."""
    known = [column >= 0 for column in labels.T]
    models = [
        _regress(frames[there], column[there], 2, strength) for there, column in zip(known, labels.T, strict=True)
    ]
    return lambda others: np.stack([model(others)[:, 1] for model in models], axis=1)


def _frames_at(dataset: FeatureDataset, position: float) -> np.ndarray:
    """One frame's features of each sequence, (N, D)."""
    stored = (dataset.plain(n).features for n in range(len(dataset)))
    return torch.stack([f[round(position * (len(f) - 1))] for f in stored]).to(torch.float32).numpy()


def _balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean recall over the classes present, or over the answers present to each label where it is known."""
    if labels.ndim == 1:
        columns = [(labels, probabilities.argmax(axis=1))]
    else:
        columns = [(y[y >= 0], (p > 0.5)[y >= 0].astype(int)) for y, p in zip(labels.T, probabilities.T, strict=True)]
    scores = [recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0) for y, p in columns if len(y)]
    return float(np.mean(scores)) if scores else 0.0

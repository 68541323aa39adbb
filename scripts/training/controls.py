"""Predictions of a trained head, and the controls beside it: what shuffled order and one frame alone can tell."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader

from scripts.features.batching import FeatureDataset, collate_sequences
from scripts.keys import LABEL, MULTILABEL
from scripts.training.engine import prepare_batch
from scripts.training.losses import to_probabilities

POSITIONS = np.linspace(0.0, 1.0, 9)  # of the single frame: first, ..., middle, ..., last
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse L2 penalties tried


@torch.inference_mode()
def predict(
    head: nn.Module, dataset: FeatureDataset, device: torch.device | str, task_type: str, batch_size: int = 64
) -> np.ndarray:
    """Probabilities of every sequence of a dataset, (N, K) float64."""
    head.eval().to(device)
    out = []
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_sequences):
        features, _, _, others = prepare_batch(batch, torch.device(device))
        out.append(to_probabilities(head(features, **others), task_type).cpu())
    return torch.cat(out).numpy().astype(np.float64)


def labels_of(dataset: FeatureDataset) -> np.ndarray:
    """Labels (N,) int64, or (N, K) zeros and ones for multilabel."""
    return np.asarray([item[LABEL] for item in dataset.data], dtype=np.int64)


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
    best_model: Any = None
    labels, held_out = labels_of(training), labels_of(validation)
    for position in POSITIONS:
        frames, held_out_frames = _frames_at(training, position), _frames_at(validation, position)
        for strength in STRENGTHS:
            regression = LogisticRegression(C=strength, max_iter=2000)
            model = make_pipeline(
                StandardScaler(), OneVsRestClassifier(regression) if task_type == MULTILABEL else regression
            )
            model.fit(frames, labels)
            score = _balanced_accuracy(held_out, model.predict(held_out_frames))
            if score > best_score:
                best_score, best_position, best_model = score, float(position), model
    found = best_model.predict_proba(_frames_at(test, best_position))
    if task_type == MULTILABEL:
        return found, best_position
    probabilities = np.zeros((len(test), num_classes))
    probabilities[:, best_model.classes_] = found
    return probabilities, best_position


def _frames_at(dataset: FeatureDataset, position: float) -> np.ndarray:
    """One frame's features of each sequence, (N, D)."""
    stored = (dataset.plain(n).features for n in range(len(dataset)))
    return torch.stack([f[round(position * (len(f) - 1))] for f in stored]).to(torch.float32).numpy()


def _balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes present, or over both answers of each label for multilabel."""
    columns = [(labels, predicted)] if labels.ndim == 1 else list(zip(labels.T, predicted.T, strict=True))
    return float(
        np.mean([recall_score(y, p, labels=np.unique(y), average="macro", zero_division=0) for y, p in columns])
    )

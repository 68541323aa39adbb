"""Logits and probabilities against what happened -> a temperature, and the numbers of a reliability diagram."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import optimize, special
from torch import nn

from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset
from scripts.keys import BINARY, MULTICLASS, MULTILABEL, VALIDATION
from scripts.networks.weights import read_state
from scripts.reports.metrics import checked, score
from scripts.reports.resampling import ECE, LOG_LOSS, NUM_BINS, Split, bins_of, decisions
from scripts.training.classes import labels_of
from scripts.training.outputs import logits_of
from scripts.writing import write_file

logger = logging.getLogger("angiography")

TEMPERATURES = (0.05, 20.0)  # beyond these a model is not miscalibrated, its validation split says nothing
NUM_SIMULATIONS = 200
LIKELIEST, EVERY_LABEL = "the likeliest class", "every label"


def probabilities_of(logits: ArrayLike, task_type: str, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) float64 of logits (N, K): softmax over classes, or a sigmoid each for multilabel."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return special.expit(scaled) if task_type == MULTILABEL else special.softmax(scaled, axis=1)


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike, task_type: str, classes: Sequence[str], split: str
) -> dict[str, Any]:
    """The number by which to divide logits so that a split's labels are likeliest (Guo et al. 2017).

    It changes no order and no decision of a model with one label a sequence. Where the split does not tell, as
    when every sequence is right and ever larger logits are likelier, it is 1.0 and `notes` says why.

    Args:
        logits: of the split, (N, K), finite.
        labels: as `metrics.score` takes them.
        task_type: binary, multiclass or multilabel.
        classes: K names.
        split: name of the split, never the one to be scored; carried in the result.

    Returns:
        `temperature`, `split`, `num_sequences`; `log_loss` and `ece`, each `before` and `after`; `notes`.
    """
    values = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(values).all():
        found = f"{(~np.isfinite(values)).sum()} of {values.size}"
        raise ValueError(bad_value(f"split {split}", "number of non-finite logits", found, "0"))
    # Rows are their own patients here: without resamples nobody is counted.
    known = checked(labels, probabilities_of(values, task_type), task_type, classes, range(len(values)))

    def loss(log_temperature: float) -> float:
        return _log_loss(values / np.exp(log_temperature), known)

    notes: list[str] = []
    temperature = 1.0
    if not known.known.any():
        notes.append(f"No label of split {split} is known: the temperature stays 1.")
    else:
        ends = np.log(TEMPERATURES)
        best = optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-7})
        at_ends = [loss(end) for end in ends]
        gain = loss(0.0) - best.fun  # none where 1 is as good as any, as when all logits are equal
        if gain > 1e-12 and min(at_ends) - best.fun < 1e-6:
            way = "larger" if at_ends[0] < at_ends[1] else "smaller"
            notes.append(f"Split {split} is likeliest for ever {way} logits, so it fixes no temperature: it stays 1.")
        elif gain > 1e-12:
            temperature = float(np.exp(best.x))
    scores = {
        when: score(labels, probabilities_of(values, task_type, at), task_type, classes, range(len(values)), 0)
        for when, at in (("before", 1.0), ("after", temperature))
    }
    result: dict[str, Any] = {"temperature": temperature, "split": split, "num_sequences": len(values)}
    for name in (LOG_LOSS, ECE):
        result[name] = {when: found[name]["value"] for when, found in scores.items()}
    return result | {"notes": notes}


def calibrate(
    head: nn.Module, head_path: str | Path, validation: FeatureDataset, task: Task, device: torch.device | str
) -> None:
    """Give the best head of a training its temperature, fitted on the validation split, and write it back.

    Args:
        head: of the architecture; takes the weights at `head_path`.
        head_path: best.pt.
        validation: the split that chose them.
        task: type and classes.
        device: where the head runs.
    """
    head.load_state_dict(read_state(head_path))
    head.set_temperature(1.0)  # type: ignore[operator]
    logits = logits_of(head, validation, device)
    found = fit_temperature(logits, labels_of(validation), task.type, task.classes, VALIDATION)
    head.set_temperature(found["temperature"])  # type: ignore[operator]
    stream = io.BytesIO()
    torch.save(head.state_dict(), stream)
    write_file(Path(head_path), stream.getvalue())
    before, after = (f"{found[LOG_LOSS][when]:.3f}" for when in ("before", "after"))
    logger.info(
        f"temperature {found['temperature']:.3f}, by the validation split: log loss {before} before, {after} after"
    )


def _log_loss(logits: np.ndarray, split: Split) -> float:
    """Mean of minus the logarithm of the probability of each known label, straight from logits (N, K)."""
    if split.task_type == MULTILABEL:
        return float(-special.log_expit(np.where(split.truth, logits, -logits))[split.known].mean())
    return float(-special.log_softmax(logits, axis=1)[split.truth].mean())


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, task_type: str, classes: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Stated probability against seen share, bin by bin: the numbers of a reliability diagram.

    For a binary task of the second class, for multiclass of the class that is predicted, for multilabel of all
    known labels together.

    Args:
        labels, probabilities, task_type, classes: as `metrics.score` takes them.
        seed: of the simulation behind `ece_if_calibrated`.

    Returns:
        `of`, what the probabilities are of; `bins`, each with `from`, `to`, `num`, and `stated` and `seen`, None in
        an empty one; `ece`; `ece_if_calibrated`, what a model whose probabilities are true would show on average
        with as many sequences.
    """
    split = checked(labels, probabilities, task_type, classes, range(len(np.asarray(probabilities))))
    of = {BINARY: str(classes[-1]), MULTICLASS: LIKELIEST, MULTILABEL: EVERY_LABEL}[task_type]
    if task_type == BINARY:
        stated, happened = split.scores[:, 1], split.truth[:, 1]
    elif task_type == MULTICLASS:
        stated = split.scores.max(axis=1)
        happened = (split.truth & decisions(split.scores, task_type)).any(axis=1)
    else:
        stated, happened = split.scores[split.known], split.truth[split.known]
    bins = bins_of(stated)
    num = np.bincount(bins, minlength=NUM_BINS)
    sum_stated, sum_seen = (np.bincount(bins, weights=w, minlength=NUM_BINS) for w in (stated, happened))
    rng = np.random.default_rng(seed)
    simulated = [
        np.bincount(bins, weights=rng.random(len(stated)) < stated, minlength=NUM_BINS) for _ in range(NUM_SIMULATIONS)
    ]
    edges = np.linspace(0, 1, NUM_BINS + 1).round(6)
    return {
        "of": of,
        ECE: float(np.abs(sum_stated - sum_seen).sum() / len(stated)) if len(stated) else None,
        "ece_if_calibrated": float(np.abs(simulated - sum_stated).sum(axis=1).mean() / len(stated))
        if len(stated)
        else None,
        "bins": [
            {
                "from": float(edges[b]),
                "to": float(edges[b + 1]),
                "num": int(num[b]),
                "stated": float(sum_stated[b] / num[b]) if num[b] else None,
                "seen": float(sum_seen[b] / num[b]) if num[b] else None,
            }
            for b in range(NUM_BINS)
        ],
    }

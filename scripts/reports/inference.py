"""What the inference evaluator is given: one pass of the network that explains itself, the writer of predictions."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from scripts.errors import bad_value
from scripts.keys import (
    ERROR,
    FRAME_INDICES,
    FRAME_TIMES,
    FRAME_WEIGHTS,
    IMAGE,
    LENGTHS,
    PRED,
    SEQUENCE,
    SOURCE,
)
from scripts.reports.predictions import AFTER_FRAME, NUM_FRAMES, PROBABILITIES, REASON, write_predictions
from scripts.sequences.dataset import refuse_failures
from scripts.training.losses import to_probabilities

logger = logging.getLogger("angiography")

PREFIX_LOGITS = "prefix_logits"  # engine output: the decision after each frame, (B, T, K)


def predict_sequences(engine: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """`iteration_update` of the inference evaluator: what the network explains; nothing for unreadable exams."""
    if IMAGE not in batch:
        return {}
    image, _, _, others = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
    with engine.mode(engine.network), torch.autocast(engine.state.device.type, enabled=engine.amp):
        logits, weights, prefixes = engine.inferer(image, engine.network.explain, **others)
    return {PRED: logits.float(), FRAME_WEIGHTS: weights.float(), PREFIX_LOGITS: prefixes.float()}


class PredictionWriter:
    """Handler of the inference evaluator: one row a sequence, written as CSV and JSON at the end.

    Args:
        output_dir: gets predictions.csv and predictions.json.
        task_type: decides the activation.
        classes: names of the columns.
        progress: show a progress bar.
    """

    def __init__(self, output_dir: str | Path, task_type: str, classes: Sequence[str], progress: bool = True) -> None:
        self.output_dir, self.task_type, self.classes = Path(output_dir), task_type, tuple(classes)
        self.progress = progress
        self.rows: list[dict[str, Any]] = []
        self.failures: list[dict[str, str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Any) -> None:
        self.rows, self.failures = [], []
        self.bar = tqdm(
            total=engine.state.epoch_length,
            desc="inference",
            unit="exam",
            mininterval=1,
            disable=not self.progress,
        )

    def __call__(self, engine: Any) -> None:
        self.bar.update()
        batch, output = engine.state.batch, engine.state.output
        self.failures += batch.get(ERROR, [])
        if PRED not in output:
            return
        probabilities = to_probabilities(output[PRED], self.task_type).cpu().numpy()
        for i, length in enumerate(batch[LENGTHS].tolist()):
            if not np.isfinite(probabilities[i]).all():
                reason = bad_value(batch[SOURCE][i], "probabilities", "not finite", "finite numbers")
                self.failures.append({SOURCE: batch[SOURCE][i], ERROR: reason})
                continue
            after_frame = to_probabilities(output[PREFIX_LOGITS][i, :length], self.task_type)  # (T, K)
            self.rows.append(
                {
                    SEQUENCE: batch[SEQUENCE][i] if SEQUENCE in batch else batch[SOURCE][i],
                    IMAGE: batch[SOURCE][i],
                    NUM_FRAMES: length,
                    PROBABILITIES: probabilities[i],
                    FRAME_INDICES: batch[FRAME_INDICES][i].tolist(),
                    FRAME_TIMES: batch[FRAME_TIMES][i, :length].tolist(),
                    FRAME_WEIGHTS: output[FRAME_WEIGHTS][i, :length].cpu().tolist(),
                    AFTER_FRAME: after_frame.cpu().tolist(),
                }
            )

    def write(self, engine: Any) -> None:
        self.bar.close()
        failures = [{IMAGE: failure[SOURCE], REASON: failure[ERROR]} for failure in self.failures]
        path = write_predictions(self.output_dir, self.rows, self.classes, failures, task_type=self.task_type)
        logger.info(f"{len(self.rows)} sequences predicted, {len(failures)} failed: {path}")

    def finish(self) -> None:
        """End the run with an error if any exam could not be used; the predictions are written by then."""
        refuse_failures(self.failures, len(self.rows) + len(self.failures), "inference")

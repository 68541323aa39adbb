"""Trainer and evaluator after an epoch -> best.pt, last.pt, and all that an interrupted run needs to go on exactly."""

import io
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scripts.errors import READ_ERRORS, bad_value
from scripts.training.optimizer import bare
from scripts.writing import write_file

logger = logging.getLogger("angiography")

BEST, LAST, STATE = "best.pt", "last.pt", "state.pt"
UNREADABLE: tuple[type[Exception], ...] = (*READ_ERRORS, pickle.UnpicklingError)
ANEW = "leave --resume out to start anew"


class Checkpoints:
    """Handler of the trainer, after validation: keeps the best weights and, after each epoch, the state of the run.

    Both are in one file, `state.pt`, written whole or not at all: a run that is killed at any moment goes on from its
    last complete epoch. What MONAI's CheckpointSaver keeps in several files, or removes before it writes the next
    (ignite 0.5.5), a kill can leave apart from each other or not there. No random state is kept: see EpochSeeds.

    Args:
        folder: of the files.
        evaluator: says which epoch was best.
        network: as it is trained, without DistributedDataParallel around it.
        averaged: of `averaged_weights`; what best.pt and last.pt hold.
        optimizer: of the network.
        lr_scheduler: of the optimizer.
        recipe: all that the weights follow from; as JSON would hold it.
        resume: go on with the run that is in the folder, or begin if there is none.
    """

    def __init__(
        self,
        folder: str | Path,
        evaluator: Engine,
        network: nn.Module,
        averaged: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        recipe: Mapping[str, Any],
        resume: bool = False,
    ) -> None:
        self.folder, self.evaluator, self.averaged = Path(folder), evaluator, averaged
        self.parts: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        if averaged is not network:
            self.parts["averaged"] = averaged
        self.recipe, self.resume = json.loads(json.dumps(recipe)), resume
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.resumed_from = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.keep)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def facts(self) -> dict[str, Any]:
        """What run.json says of the training: the curves, the best epoch, where it went on."""
        best: int = self.evaluator.state.best_metric_epoch  # type: ignore[attr-defined]
        return {"best_epoch": best, "resumed_from_epoch": self.resumed_from, "history": self.history}

    def start(self, engine: Any) -> None:
        """Go on, or begin.

        Raises:
            ValueError: the state cannot be read, or is that of a run by another recipe.
        """
        path = self.folder / STATE
        if self.resume and path.is_file():
            self._restore(engine, read_run(path), path)
        elif engine.state.rank == 0:
            if self.resume:
                logger.info(f"resume: no run to go on with in {self.folder}, so this one begins")
            elif (epoch := interrupted_epoch(path)) is not None:
                logger.warning(
                    f"{path}: a run was interrupted here after epoch {epoch}. This one begins anew, and after its "
                    "first epoch that one is gone; --resume True would go on with it."
                )

    def keep(self, engine: Any) -> None:
        """Write the state after an epoch, and the weights if it is the best."""
        state, epoch = self.evaluator.state, engine.state.epoch
        metrics = dict(engine.state.metrics) | (dict(state.metrics) if state.epoch == epoch else {})
        rate = self.parts["optimizer"].param_groups[0]["lr"]  # of the step to come
        self.history.append({"epoch": epoch, **metrics, "learning_rate": rate})
        if engine.state.rank > 0:
            return
        if state.best_metric_epoch == epoch:  # type: ignore[attr-defined]
            weights = bare(self.averaged).state_dict()
            self.best = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}  # not a card's
            self._write(BEST, self.best)
        scaler = engine.scaler
        kept = {
            "recipe": json.dumps(self.recipe),
            "epoch": epoch,
            "finished": bool(engine.should_terminate) or epoch >= engine.state.max_epochs,
            "best_metric": float(state.best_metric),  # type: ignore[attr-defined]
            "best_metric_epoch": state.best_metric_epoch,  # type: ignore[attr-defined]
            "best": self.best,
            "history": self.history,
            "num_threads": torch.get_num_threads(),
            "scaler": {} if scaler is None else scaler.state_dict(),
        }
        self._write(STATE, kept | {name: part.state_dict() for name, part in self.parts.items()})

    def finish(self, engine: Any) -> None:
        if engine.state.rank == 0:
            self._write(LAST, bare(self.averaged).state_dict())

    def _write(self, name: str, content: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(content, stream)
        write_file(self.folder / name, stream.getvalue())

    def _restore(self, engine: Any, state: dict[str, Any], path: Path) -> None:
        began, epoch = json.loads(state["recipe"]), state["epoch"]
        for name in sorted(began.keys() | self.recipe.keys()):
            if began.get(name) != self.recipe.get(name):
                allowed = f"{began.get(name)}, with which the run in {path} began"
                way_out = f"Give the same settings, or {ANEW}."
                raise ValueError(bad_value("resume", name, self.recipe.get(name), allowed, way_out))
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        if engine.scaler is not None:
            engine.scaler.load_state_dict(state["scaler"])
        if engine.state.device.type == "cpu":
            torch.set_num_threads(state["num_threads"])  # another number adds up in another order
        self.best, self.history, self.resumed_from = state["best"], state["history"], epoch
        self.evaluator.state.best_metric = state["best_metric"]  # type: ignore[attr-defined]
        self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]  # type: ignore[attr-defined]
        engine.state.epoch, engine.state.iteration = epoch, epoch * engine.state.epoch_length
        if engine.state.rank == 0:
            if self.best:
                self._write(BEST, self.best)
            logger.info(f"resume: going on after epoch {epoch} of {engine.state.max_epochs}, as {path} has it")
        if state["finished"]:
            engine.terminate()


def read_run(path: Path) -> dict[str, Any]:
    """The state of a run, tensors on the CPU.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "recipe" not in state:  # such as best.pt, renamed
            raise ValueError("not a state")
        return state
    except UNREADABLE as error:
        allowed, way_out = "the state of a run, as this version writes it", f"{ANEW.capitalize()}."
        raise ValueError(bad_value(path, "content", "unreadable", allowed, way_out)) from error


def interrupted_epoch(path: Path) -> int | None:
    """The last complete epoch of the run at `path`; None where there is none, or none that could go on."""
    try:
        state = read_run(path)
    except ValueError:
        return None
    return None if state["finished"] else state["epoch"]

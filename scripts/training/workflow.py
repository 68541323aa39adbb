"""Overrides -> a head trained by configs/train.yaml in this process: one recipe for all that trains many heads."""

import functools
import hashlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from monai.handlers import TensorBoardHandler
from torch import nn

from scripts.networks.weights import read_state
from scripts.overrides import reject_unknown_ids
from scripts.training.checkpoints import BEST

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
RECIPE = BUNDLE_ROOT / "configs" / "train.yaml"
# What the weights of a head follow from beside its recipe, its features and its labels.
CODE = (
    *("configs/train.yaml", "scripts/networks/heads.py", "scripts/networks/time_encoding.py"),
    *("scripts/features/batching.py", "scripts/features/sampling.py", "scripts/training/*.py"),
)

# ConfigWorkflow warns at each start that logging was left alone, which is what is asked of it here.
logging.getLogger("monai.bundle.workflows").addFilter(lambda record: not record.msg.startswith("Logging file"))


class Trained(NamedTuple):
    """What a training leaves.

    Attributes:
        head: on its device, with the weights of the best epoch.
        best_epoch: 1 is the first.
        num_threads: of the CPU, that it trained on.
        workflow: its other parts, by `part`.
    """

    head: nn.Module
    best_epoch: int
    num_threads: int
    workflow: ConfigWorkflow


@functools.cache  # of what this process runs, whatever is written while it does
def code_digest() -> str:
    """Digest of the code that trains a head: what another code left is neither gone on with nor taken for its own.

    A comment that changes changes it too. That costs trainings of seconds; a version that someone forgets to raise
    would cost a comparison of heads that were trained in two ways.
    """
    files = (path for name in CODE for path in sorted(BUNDLE_ROOT.glob(name)))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuse what the command line of train.yaml would refuse.

    Raises:
        ValueError: an id that it does not have, or a value of another kind or range.
    """
    given = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    reject_unknown_ids(["--config_file", str(RECIPE), *given])


def open_workflow(overrides: Mapping[str, Any], *overlays: str | Path) -> ConfigWorkflow:
    """The workflow of train.yaml, of which nothing is made yet.

    Args:
        overrides: id -> value, also an object that takes the place of one that the file would make, such as a store
            that is open already.
        overlays: further files, as after train.yaml on the command line.
    """
    files = [str(RECIPE), *map(str, overlays)]
    workflow = ConfigWorkflow(files, logging_file=False, **{"bundle_root": str(BUNDLE_ROOT), **overrides})
    workflow.parser.parse(reset=True)
    return workflow


def part(workflow: ConfigWorkflow, name: str) -> Any:
    """What the workflow has under an id, made now if it is not there yet."""
    return workflow.parser.get_parsed_content(name)


def train(
    overrides: Mapping[str, Any], *overlays: str | Path, finalize: bool = False, temperature: float | None = None
) -> Trained:
    """Train by train.yaml; number of threads and search path of this process stay what they were.

    Args:
        overrides: as `open_workflow` takes them.
        overlays: likewise.
        finalize: also write model.pt, its card and run.json.
        temperature: that the head divides logits by from now on, if it is known from elsewhere; `calibrate` is then
            to be False, as it would choose another.
    """
    num_threads, paths = torch.get_num_threads(), list(sys.path)
    workflow = open_workflow(overrides, *overlays)
    try:
        workflow.initialize()
        workflow.run()
        head = part(workflow, "network_def")
        best = Path(part(workflow, "checkpoint_dir")) / BEST
        head.load_state_dict(read_state(best))
        if temperature is not None:
            head.set_temperature(temperature)
            torch.save(head.state_dict(), best)
        if finalize:
            workflow.finalize()
        best_epoch = part(workflow, "validate::evaluator").state.best_metric_epoch
        return Trained(head.eval(), best_epoch, torch.get_num_threads(), workflow)
    finally:
        torch.set_num_threads(num_threads)
        sys.path[:] = paths  # both file and MONAI add the bundle, each time
        for made in workflow.parser.ref_resolver.resolved_content.values():
            if isinstance(made, TensorBoardHandler):
                made.close()  # MONAI (1.6.1) leaves its thread and its file open

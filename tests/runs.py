"""Small feature stores with a datalist, and trainings on them through the configs, for the tests of training."""

import json
import os
import random
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import create_workflow

from scripts.keys import CLASSES, ENTRY, LABEL, PATIENT, TASK, TYPE
from scripts.networks.card import NOMINAL
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import load_into
from scripts.store.store import FeatureStore, StoredSequence
from tests.stores import key_of

ROOT = Path(__file__).resolve().parent.parent
CLASS_NAMES = ["slow", "fast", "still"]
SPLITS = {"training": 23, "validation": 9}
OF_HEAD = ("head_name", "hidden_size", "num_layers", "bidirectional", "readout", "use_times")
OF_TRAINING = (*OF_HEAD, "task_type", "classes")  # the rest of a card is the store's
SETTINGS = {name: value for name, value in NOMINAL.items() if name not in OF_TRAINING}
SETTINGS |= {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48}
QUICK = {"num_threads": 1, "batch_size": 4, "max_epochs": 4, "hidden_size": 8, "device": "cpu"}


def write_features(
    folder: Path,
    splits: dict[str, int] | None = None,
    label: Callable[[int], Any] = lambda n: n % len(CLASS_NAMES),
    task_type: str = "multiclass",
    patient: Callable[[int], str] = "P{}".format,
    classes: Sequence[str] = tuple(CLASS_NAMES),
    value: Callable[[torch.Tensor], torch.Tensor] = lambda features: features,
) -> dict[str, str]:
    """A store of sequences of 2 to 7 frames, and the datalist of its entries; the overrides that name them.

    Args:
        folder: of both.
        splits: how many sequences each has.
        label: of the sequence of that number.
        task_type: of the datalist.
        patient: of the sequence of that number; no patient is in two splits.
        classes: their names.
        value: what is stored in place of random features, of which the first rises at the speed of the default label.
    """
    encoder = FrameEncoder("test_vit")
    digest = load_into(encoder, "random:0", folder)
    store = FeatureStore.create(folder / "features", {"encoder": {"name": "test_vit", "digest": digest}}, SETTINGS)
    content: dict[str, Any] = {TASK: {TYPE: task_type, CLASSES: list(classes)}}
    generator = torch.Generator().manual_seed(0)
    number = 0
    with store.writer() as writer:
        for split, count in (splits or SPLITS).items():
            content[split] = []
            for _ in range(count):
                length = 2 + number % 6
                features = torch.randn(length, encoder.num_features, generator=generator)
                features[:, 0] += 2.0 * (number % len(CLASS_NAMES)) * torch.arange(length)
                stored = StoredSequence(value(features).half(), torch.arange(length) * 100.0, torch.arange(length))
                writer.add(key_of(number), stored)
                content[split].append(
                    {ENTRY: key_of(number), LABEL: label(number), PATIENT: f"{split[0]}{patient(number)}"}
                )
                number += 1
    (folder / "datalist.json").write_text(json.dumps(content))
    return {"dataset_dir": str(folder), "features_dir": str(folder / "features")}


def prepare_training(output: Path, *overlays: str, **overrides: Any) -> Any:
    """The workflow of configs/train.yaml, initialised; model.pt comes to lie in `output`."""
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("train", *overlays)]
    places = {"output_dir": str(output), "model_path": str(output / "model.pt")}
    stop_after = overrides.pop("stop_after", None)
    options = {**places, **QUICK, **overrides}
    workflow = create_workflow(
        workflow_type="train", config_file=files, bundle_root=str(ROOT), logging_file=False, **options
    )
    workflow.initialize()
    if stop_after is not None:  # as if killed in the epoch that follows
        event = Events.ITERATION_STARTED(once=stop_after * workflow.trainer.state.epoch_length + 2)
        workflow.trainer.add_event_handler(event, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return workflow


def train(output: Path, *overlays: str, **overrides: Any) -> None:
    """Train in this process."""
    workflow = prepare_training(output, *overlays, **overrides)
    workflow.run()
    workflow.finalize()


# --- processes ---


def forked(environment: dict[str, str], output: Path, *overlays: str, **overrides: Any) -> int:
    """A process that trains; its id. Forked, since importing PyTorch and MONAI takes longer than the training."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(environment)
        train(output, *overlays, **overrides)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(*processes: int) -> None:
    codes = [os.waitpid(process, 0)[1] for process in processes]
    assert not any(codes), codes


def drive(arguments: str) -> None:
    """Train without a break, with three kills, in one process with the whole batch, in two that share it."""
    given = json.loads(arguments)
    folder, places, options = Path(given["folder"]), given["places"], given["options"]
    torch.set_num_threads(1)
    long = {**places, **options, "max_epochs": 40, "patience": 40}
    whole = forked({}, folder / "whole", **long)
    killed_after = []
    moments = random.Random(0)
    state = folder / "killed" / "checkpoints" / "state.pt"
    for _ in range(3):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = forked({}, folder / "killed", resume=True, **long)
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        killed_after.append(torch.load(state, weights_only=True)["epoch"])
    wait(whole, forked({}, folder / "killed", resume=True, **long))
    (folder / "killed.json").write_text(json.dumps(killed_after))

    # What differs by process: dropout in the head, and the draws of a sequence that is read twice in an epoch.
    exact = {**places, **options, "max_epochs": 3, "dropout": 0.0, "sampling": "shuffled", "use_times": False}
    wait(forked({}, folder / "one", **{**exact, "batch_size": 2 * options["batch_size"]}))
    wait(*together(folder / "two", **exact))
    stop = together(folder / "two_parts", **exact, stop_after=2)
    for process in stop:
        os.waitpid(process, 0)
    wait(*together(folder / "two_parts", **exact, resume=True))


def together(output: Path, **overrides: Any) -> list[int]:
    """Two processes that train as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        forked({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, output, "multi_gpu_train", **overrides)
        for rank in range(2)
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def assert_same_weights(found: Path, wanted: Path, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Equal to the bit, unless a tolerance is given."""
    ours, theirs = weights(found), weights(wanted)
    assert ours.keys() == theirs.keys() and len(ours) > 5
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")

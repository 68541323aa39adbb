"""The name of a network, or a config -> what is to be planned for: network, shape of a sample, batch."""

import difflib
import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn
from yaml import YAMLError

from scripts.datalists.items import Task
from scripts.errors import bad_value, reading
from scripts.memory.search import Workload
from scripts.networks.card import NOMINAL
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import encodes_volumes, make_encoder
from scripts.networks.heads import make_head
from scripts.overrides import reject_unknown_ids

LONGEST = 2**12  # of a number of a shape: more frames take minutes to simulate
MOST_VALUES = 2**40  # of an input: 4 TB
OF_DATALIST = ("synthetic", "datalist_digest")  # what a recipe says of it
SCRATCH = "scratch"  # start_from of finetune.yaml
PRESETS: dict[str, dict[str, Any]] = {  # arguments of MONAI's networks that have no default there, as often used
    "UNet": {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2},
    "AttentionUnet": {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)},
    "DynUNet": {
        "kernel_size": [3] * 5,
        "strides": [1, 2, 2, 2, 2],
        "upsample_kernel_size": [2] * 4,
        "filters": [32, 64, 128, 256, 320],  # nnU-Net's
    },
    "SwinUNETR": {"feature_size": 24},
}


class Subject(NamedTuple):
    """What is planned for.

    Attributes:
        name: of the network or the workflow.
        workload: what it trains.
        assumed: a sentence on what was taken in place of files that are not there; empty if they all are.
    """

    name: str
    workload: Workload
    assumed: str = ""


def named_workload(network: str, shape: Any, options: dict[str, Any] | None = None, **settings: Any) -> Workload:
    """The workload of a network by name.

    Args:
        network: a timm backbone, which gets a GRU head over its frames, or the dotted path of a class, such as
            monai.networks.nets.UNet; spatial_dims, in_channels and out_channels follow from the shape. An encoder of
            volumes gets a head as well where the shape has a time.
        shape: of a batch, (B, T, 3, H, W), (B, C, D, H, W) or (B, T, 1, D, H, W), as numbers or text with commas.
        options: further arguments of the network.
        settings: of Workload.

    Raises:
        ValueError: an unknown network, options it does not take, or a shape that is none.
    """
    sizes = _sizes(shape)
    if "." not in network or len(sizes) == 6:
        volumes = encodes_volumes(network)
        if len(sizes) != 5 + volumes or sizes[2] != (1 if volumes else 3):
            allowed = "B,T,1,D,H,W for an encoder of volumes" if volumes else "B,T,3,H,W for a timm backbone"
            raise ValueError(bad_value("plan", "shape", shape, allowed))
        try:
            encoder = make_encoder(network, **(options or {}))
        except TypeError as error:
            allowed = "pooling or layers, arguments of the encoder"
            raise ValueError(bad_value(f"encoder {network}", "options", options, allowed)) from error
        head = make_head("gru", encoder.num_features, len(NOMINAL["classes"]))
        made: nn.Module = SequenceClassifier(encoder, head, chunk_frames=MOST_VALUES)  # all at once, whatever the batch
    else:
        made = _of_class(network, sizes, options or {})
    return Workload(lambda: made, sizes[1:], sizes[0], **settings)


def _sizes(shape: Any) -> tuple[int, ...]:
    parts = shape.split(",") if isinstance(shape, str) else shape
    try:
        sizes = tuple(int(str(part)) for part in parts)
    except (TypeError, ValueError):
        sizes = ()
    if not 3 <= len(sizes) <= 6 or not all(1 <= size <= LONGEST for size in sizes) or math.prod(sizes) > MOST_VALUES:
        allowed = f"3 to 6 whole numbers from 1 to {LONGEST}, 2^40 values in all, such as 1,1,96,96,96"
        raise ValueError(bad_value("plan", "shape", shape, allowed))
    return sizes


def _of_class(path: str, sizes: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # the latter two for names such as "." and ".Net"
        hint = f"Or a timm backbone, such as {', '.join(difflib.get_close_matches(name, timm.list_models(), 1, 0.0))}."
        raise ValueError(bad_value("plan", "network", path, "the path of a class", hint)) from error
    kind = getattr(module, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, nn.Module)
        ]
        near = ", ".join(difflib.get_close_matches(name, classes, 3, 0.3))
        raise ValueError(bad_value("plan", "network", path, "a class of networks", f"Near: {near}." if near else ""))
    known = inspect.signature(kind).parameters
    given = {"spatial_dims": len(sizes) - 2, "in_channels": sizes[1], "out_channels": 2, "num_classes": 2}
    given = {key: value for key, value in given.items() if key in known} | PRESETS.get(name, {}) | options
    try:
        return kind(**given)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        way_out = f"It says: {reason}. Give others: --options '{{name: value}}'."
        raise ValueError(bad_value(path, "options", given, "what it takes", way_out)) from error


def config_workload(
    config: str | Sequence[str], overrides: Mapping[str, Any] | None = None, **settings: Any
) -> Subject:
    """What a training workflow, such as configs/finetune.yaml, trains: its own network, frozen as it freezes it.

    Nothing has to be there yet: without a datalist the classes are the nominal ones, without a model to start from
    the network is that of `start_from: scratch`. No weights are read.

    Args:
        config: the YAML file, or several, each laid over the ones before.
        overrides: ids with other values, as on the workflow's command line.
        settings: of Workload.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an id is missing, or an override is none of its ids or values.
    """
    from monai.bundle import ConfigParser

    files = [config] if isinstance(config, str) else [str(file) for file in config]
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(bad_value("plan", "config", file, "a file"))
    given = [word for name, value in (overrides or {}).items() for word in (f"--{name}", str(value))]
    reject_unknown_ids(["--config_file", str(files), *given])
    parser = ConfigParser()
    with reading(files[0], "content", "YAML of a MONAI workflow", (YAMLError,)):
        parser.read_config(files)
    for name in ("network_def", "batch_size", "max_frames", "image_size"):
        if name not in parser.get():
            way_out = "Name a network and its shape instead."
            raise ValueError(bad_value(files[0], "id", name, "a workflow that has it", way_out))
    folder = Path(files[0]).resolve().parent
    if folder.name == "configs":
        parser["bundle_root"] = str(folder.parent)
    parser.update(dict(overrides or {}))
    assumed = _fill_in(parser)
    network = parser.get_parsed_content("network_def")
    batch, frames, pixels = (_whole(parser, name) for name in ("batch_size", "max_frames", "image_size"))
    steps = _whole(parser, "accumulation_steps") if "accumulation_steps" in parser.get() else 1
    ours = isinstance(network, SequenceClassifier)
    image = network.encoder.input_shape(pixels) if ours else (3, pixels, pixels)
    workload = Workload(lambda: network, (frames, *image), batch * steps, **settings)
    return Subject(", ".join(Path(file).name for file in files), workload, assumed)


def _whole(parser: Any, name: str) -> int:
    value = parser.get_parsed_content(name)
    if type(value) is not int or not 1 <= value <= LONGEST:
        raise ValueError(bad_value("plan", name, value, f"a whole number from 1 to {LONGEST}"))
    return value


def _fill_in(parser: Any) -> str:
    """Give a workflow what it would read from files that are not there; what was given, as one sentence."""
    ids, taken = parser.get(), []
    if "start_from" in ids and not Path(start := parser.get_parsed_content("start_from")).is_file():
        if start != SCRATCH:
            taken.append(f"no model at start_from, so the network of {SCRATCH} is taken")
        parser["start_from"] = SCRATCH
    if "datalist" in ids and "task" in ids and not Path(parser.get_parsed_content("datalist")).is_file():
        parser["task"] = Task(NOMINAL["task_type"], tuple(NOMINAL["classes"]))
        parser.update({f"recipe::{name}": "" for name in OF_DATALIST if name in ids.get("recipe", ())})
        taken.append(f"no datalist, so {len(NOMINAL['classes'])} classes are taken")
    sentence = "; ".join(taken)
    return f"{sentence[0].upper()}{sentence[1:]}." if taken else ""

"""The name of a network, or a config -> what is to be planned for: network, shape of a sample, batch."""

import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any

import timm
from torch import nn

from scripts.errors import bad_value
from scripts.memory.search import Workload
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head

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


def named_workload(network: str, shape: Any, options: dict[str, Any] | None = None, **settings: Any) -> Workload:
    """The workload of a network by name.

    Args:
        network: a timm backbone, which gets a GRU head over its frames, or the dotted path of a class, such as
            monai.networks.nets.UNet; spatial_dims, in_channels and out_channels follow from the shape.
        shape: of a batch, (B, T, 3, H, W) or (B, C, D, H, W), as numbers or text with commas.
        options: further arguments of the network.
        settings: of Workload.

    Raises:
        ValueError: an unknown network, options it does not take, or a shape that is none.
    """
    sizes = _sizes(shape)
    if "." not in network:
        if len(sizes) != 5 or sizes[2] != 3:
            raise ValueError(bad_value("plan", "shape", shape, "B,T,3,H,W for a timm backbone"))
        encoder = FrameEncoder(network, **(options or {}))
        made: nn.Module = SequenceClassifier(encoder, make_head("gru", encoder.num_features, 5), sizes[0] * sizes[1])
    else:
        made = _of_class(network, sizes, options or {})
    return Workload(lambda: made, sizes[1:], sizes[0], **settings)


def _sizes(shape: Any) -> tuple[int, ...]:
    parts = shape.split(",") if isinstance(shape, str) else shape
    try:
        sizes = tuple(int(str(part)) for part in parts)
    except (TypeError, ValueError):
        sizes = ()
    if not 3 <= len(sizes) <= 6 or min(sizes) < 1:
        raise ValueError(bad_value("plan", "shape", shape, "3 to 6 whole numbers above 0, such as 1,1,96,96,96"))
    return sizes


def _of_class(path: str, sizes: tuple[int, ...], options: dict[str, Any]) -> nn.Module:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        hint = f"Or a timm backbone, such as {', '.join(difflib.get_close_matches(name, timm.list_models(), 1, 0.0))}."
        raise ValueError(bad_value("plan", "network", path, "the path of a class", hint)) from error
    kind = getattr(module, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        near = ", ".join(difflib.get_close_matches(name, classes, 3, 0.3))
        raise ValueError(bad_value("plan", "network", path, "a class of networks", f"Near: {near}." if near else ""))
    known = inspect.signature(kind).parameters
    given = {"spatial_dims": len(sizes) - 2, "in_channels": sizes[1], "out_channels": 2, "num_classes": 2}
    given = {key: value for key, value in given.items() if key in known} | PRESETS.get(name, {}) | options
    try:
        return kind(**given)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(bad_value(path, "options", given, "what it takes", f"It says: {reason}.")) from error


def config_workload(config: str, **overrides: Any) -> Workload:
    """The workload of a training workflow, such as configs/finetune.yaml.

    It is read by its ids: network_def, batch_size, accumulation_steps, max_frames, image_size and, if they are there,
    amp and channels of a frame.

    Args:
        config: the YAML file.
        overrides: ids with other values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an id is missing.
    """
    from monai.bundle import ConfigParser

    if not Path(config).is_file():
        raise FileNotFoundError(bad_value("plan", "config", config, "a file"))
    parser = ConfigParser()
    parser.read_config(config)
    parser.update(overrides)
    for name in ("network_def", "batch_size", "max_frames", "image_size"):
        if name not in parser.get():
            way_out = "Name a network and its shape instead."
            raise ValueError(bad_value(config, "id", name, "a workflow that has it", way_out))
    network = parser.get_parsed_content("network_def")
    batch, frames, pixels = (int(parser.get_parsed_content(n)) for n in ("batch_size", "max_frames", "image_size"))
    steps = int(parser.get_parsed_content("accumulation_steps")) if "accumulation_steps" in parser.get() else 1
    return Workload(lambda: network, (frames, 3, pixels, pixels), batch * steps)

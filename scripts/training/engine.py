"""What MONAI's engines are given: batches, the metric of validation, the scale of features, devices, processes."""

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from ignite.metrics import EpochMetric
from monai.utils import CommonKeys
from torch import Tensor, nn

from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset, feature_scale
from scripts.keys import FEATURES, FRAME_TIMES, IMAGE, LABEL, LENGTHS
from scripts.training.losses import likelihood


def prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor | None, tuple, dict[str, Tensor]]:
    """A collated batch as MONAI's engines want it: network input, label, and the network's other arguments."""
    inputs = batch[FEATURES] if FEATURES in batch else batch[IMAGE]
    label = batch.get(LABEL)
    moved = {key: batch[key].to(device, non_blocking=non_blocking) for key in (LENGTHS, FRAME_TIMES)}
    target = None if label is None else label.to(device, non_blocking=non_blocking)
    return inputs.to(device, non_blocking=non_blocking), target, (), moved


def likelihood_metric() -> EpochMetric:
    """`likelihood` over an epoch, gathered from all processes: the number that chooses the best epoch."""
    return EpochMetric(
        likelihood,
        output_transform=lambda output: (output[CommonKeys.PRED].float(), output[CommonKeys.LABEL]),
        check_compute_fn=False,
    )


def is_better(current: float, best: float) -> bool:
    """True if a metric improved; a NaN never wins, and is beaten by any number."""
    return math.isfinite(current) and not (math.isfinite(best) and current <= best)


def fit_scale(head: nn.Module, dataset: FeatureDataset) -> None:
    """Give the head the statistics of the training features it standardises with."""
    head.fit_scale(*feature_scale(dataset))  # type: ignore[operator]


def local_device() -> torch.device:
    """This process's device: its own GPU under torchrun, else the first one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def start_processes() -> int:
    """Join the processes that torchrun started, NCCL on GPUs, gloo on CPUs; their number.

    Raises:
        ValueError: not started by torchrun.
    """
    if "RANK" not in os.environ:
        way_out = "See the command in the file's header."
        raise ValueError(bad_value("multi-GPU run", "RANK", "unset", "a launch by torchrun", way_out))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_world_size()


def check_processes(rank: int, world_size: int) -> None:
    """Refuse numbers given by hand: a process alone would train on its part of the list, or write nothing.

    Raises:
        ValueError: there are not so many processes, or none of that rank.
    """
    started = dist.get_world_size() if dist.is_initialized() else 1
    for name, value, fits in (("world_size", world_size, world_size == started), ("rank", rank, 0 <= rank < started)):
        if not fits:
            way_out = "Several are started by torchrun, with configs/multi_gpu_train.yaml."
            allowed = f"that of the {started} that run" if name == "rank" else f"{started}, as many as run"
            raise ValueError(bad_value("configuration", name, value, allowed, way_out))


def stop_processes() -> None:
    """Leave the process group, all together: gloo aborts a process whose peer goes first (torch 2.15)."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

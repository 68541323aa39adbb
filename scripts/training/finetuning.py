"""Exams -> frames drawn for an epoch; encoder and head to start from, which part learns and how fast -> model.pt."""

import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch.utils.data import Dataset

from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import feature_scale
from scripts.keys import ERROR, FEATURES, FRAME_TIMES, IMAGE, LABEL, SOURCE
from scripts.memory.blocks import couples_batch
from scripts.networks.card import NOMINAL, load_model, read_card, require_model, save_model
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import digest, load_into, read_state
from scripts.sequences.dataset import SequenceDataset
from scripts.store.store import StoredSequence
from scripts.training.checkpoints import BEST
from scripts.writing import write_file

logger = logging.getLogger("angiography")

SCRATCH = "scratch"
HEAD_FILE = "head.pt"  # of the best epoch, in the checkpoint folder
ALL = -1
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the new name of the variable, the one known for longer


def let_segments_grow() -> None:
    """Have CUDA's allocator enlarge its segments: sequences of many lengths leave fewer gaps. Before CUDA starts."""
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[1]] = "expandable_segments:True"


# --- data ---


class FrameDataset(SequenceDataset):
    """Exams as encoder input, read at each access: image (T, 3, H, W), frame_times_ms (T,), label, source.

    Args:
        data: datalist items.
        transform: `preprocessing` of cache_features.yaml.
        augmentation: random transforms of brightness (T, H, W), before the last of those; None changes nothing.
        seed: of the augmentation. What is drawn follows from seed, epoch and exam: neither the order of reading matters
            nor how many processes read. An exam that balanced sampling draws twice in an epoch is changed alike.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Compose, augmentation: Compose | None = None, seed: int = 0
    ) -> None:
        *first, self.last = transform.transforms
        super().__init__(data, Compose(first))
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Let what is drawn from now on be that of `epoch`."""
        self.epoch = epoch

    @property
    def lengths(self) -> np.ndarray:
        """Ones, (N,): how many frames an exam has is known when it is read."""
        return np.ones(len(self.data), dtype=np.int64)

    def _transform(self, index: int) -> dict[str, Any]:
        read = super()._transform(index)
        if ERROR in read:
            raise ValueError(f"{read[ERROR]} Take it out of the datalist; python -m scripts check finds all such.")
        if self.augmentation is not None:
            drawn = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            read = self.augmentation.set_random_state(seed=int(drawn[0]))(read)
        made = self.last(read)
        return {key: made[key] for key in (IMAGE, FRAME_TIMES, LABEL, SOURCE)}


class EncodedDataset(Dataset):
    """The same exams as the head gets them, features (T, D) float32 in place of frames; encoded at each access.

    Args:
        dataset: frames, without augmentation.
        network: its encoder encodes them, on its device, without dropout or drop path.
    """

    def __init__(self, dataset: FrameDataset, network: SequenceClassifier) -> None:
        self.dataset, self.network, self.data = dataset, network, dataset.data

    def __len__(self) -> int:
        return len(self.data)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        device = next(self.network.parameters()).device
        features = self.network.eval().encode(item.pop(IMAGE)[None].to(device))
        return item | {FEATURES: features[0].float().cpu()}

    def plain(self, index: int) -> StoredSequence:
        """As a FeatureDataset gives it."""
        item = self[index]
        return StoredSequence(item[FEATURES], item[FRAME_TIMES], torch.arange(len(item[FEATURES])))


# --- the network that training starts from ---


def starting_card(start_from: str | Path) -> dict[str, Any]:
    """The card of the model to start from; of `scratch` the nominal one.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its card is absent or damaged.
    """
    return dict(NOMINAL) if start_from == SCRATCH else read_card(require_start(start_from))


def require_start(start_from: str | Path) -> Path:
    """The path, if there is a model.

    Raises:
        FileNotFoundError: there is none.
    """
    if Path(start_from).is_file():
        return Path(start_from)
    way_out = "Train a head on cached features first, configs/train.yaml, or pass --start_from scratch."
    raise FileNotFoundError(bad_value("configuration", "start_from", start_from, "an existing model.pt", way_out))


def load_start(
    network: SequenceClassifier, start_from: str | Path, encoder_weights: str, models_dir: str | Path, task: Task
) -> str:
    """Fill the network with what training starts from; the digest of all of it.

    Args:
        network: encoder and head.
        start_from: a model.pt whose card stands beside it, or `scratch`.
        encoder_weights: those of the encoder if it is `scratch`; the head then stays as it was made.
        models_dir: where encoder weights are.
        task: of the datalist.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: weights of another architecture, or a model of another task.
    """
    if start_from == SCRATCH:
        load_into(network.encoder, encoder_weights, models_dir)
    else:
        card = starting_card(start_from)
        if (card["task_type"], tuple(card["classes"])) != (task.type, tuple(task.classes)):
            found = f"{card['task_type']}: {', '.join(card['classes'])}"
            allowed = f"{task.type}: {', '.join(task.classes)}, as the datalist has them"
            raise ValueError(bad_value(start_from, "task", found, allowed, "Pass --start_from scratch."))
        load_model(network, require_model(start_from))
        network.head.set_temperature(1.0)  # type: ignore[operator]
    return digest(network.state_dict())


def fit_scale(network: SequenceClassifier, dataset: FrameDataset, start_from: str | Path) -> None:
    """Give a head that starts from scratch the statistics of the training features; one that was trained has them."""
    if start_from == SCRATCH:
        plain = FrameDataset(dataset.data, Compose([*dataset.transform.transforms, dataset.last]))
        network.head.fit_scale(*feature_scale(EncodedDataset(plain, network)))  # type: ignore[operator, arg-type]


# --- what of it learns ---


def unfreeze(network: SequenceClassifier, trainable_blocks: int, drop_path: float = 0.0) -> SequenceClassifier:
    """The same network, of whose encoder only the last blocks learn, and what comes after them; the head learns whole.

    Args:
        network: encoder and head.
        trainable_blocks: last blocks that learn; 0: nothing of the encoder, -1: all of it.
        drop_path: probability with which training leaves out each of the two branches of the last block (Huang et al.
            2016, arXiv:1603.09382); it falls in a straight line to 0 at the first. Blocks that do not learn keep all.

    Raises:
        ValueError: a number outside its range, or an encoder that cannot be trained so.
    """
    encoder: FrameEncoder = network.encoder
    item = f"encoder {encoder.name}"
    if couples_batch(encoder):
        allowed = "an encoder without: small batches of frames alike would change its statistics"
        raise ValueError(bad_value(item, "normalisation", "BatchNorm", allowed, "Train a head on cached features."))
    matcher = encoder.backbone.group_matcher(coarse=False)  # type: ignore[operator]
    layers = group_parameters(encoder.backbone, matcher, reverse=True)  # of each parameter, the place of its layer
    blocks = sorted(set(layers.values()))[1:]  # after what embeds patches; timm counts the last norm to the last block
    whole = isinstance(trainable_blocks, int) and not isinstance(trainable_blocks, bool)
    if not whole or not ALL <= trainable_blocks <= len(blocks):
        allowed = f"-1, which is all of it, or 0 to {len(blocks)}"
        raise ValueError(bad_value(item, "trainable_blocks", trainable_blocks, allowed))
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(bad_value("configuration", "drop_path", drop_path, "0.0 up to below 1.0"))
    firsts = [*blocks, max(blocks) + 1]  # of what learns, by how many blocks do not
    first = ALL if trainable_blocks == ALL else firsts[len(blocks) - trainable_blocks]
    for name, parameter in encoder.backbone.named_parameters():
        parameter.requires_grad_(layers[name] >= first)
    if drop_path:
        members = getattr(encoder.backbone, "blocks", [])
        if not len(members) or not all(hasattr(block, "drop_path1") for block in members):
            raise ValueError(bad_value(item, "drop_path", drop_path, "0.0: it has no list of residual blocks"))
        for place, block in enumerate(members):
            if any(parameter.requires_grad for parameter in block.parameters()):
                rate = drop_path * place / max(len(members) - 1, 1)
                block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
    return network


def parameter_groups(
    network: SequenceClassifier,
    learning_rate: float,
    encoder_learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """What learns, in groups for an optimizer: the head, and each layer of the encoder slower than the one after it.

    Args:
        network: after `unfreeze`.
        learning_rate: of the head.
        encoder_learning_rate: of the encoder's last layer.
        layer_decay: each layer's rate is that of the next times this (Bao et al. 2022, arXiv:2106.08254); 1 for all
            alike. Norms, biases and tokens of the encoder have no weight decay, as timm has it.

    Raises:
        ValueError: a number outside its range.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(bad_value("configuration", "layer_decay", layer_decay, "above 0.0 up to 1.0"))
    if not 0.0 < encoder_learning_rate < float("inf"):
        allowed = "a number above 0.0; --trainable_blocks 0 trains the head alone"
        raise ValueError(bad_value("configuration", "encoder_learning_rate", encoder_learning_rate, allowed))
    backbone = network.encoder.backbone
    tokens = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()  # type: ignore[operator]
    found = param_groups_layer_decay(backbone, weight_decay, tokens, layer_decay=layer_decay)
    groups = [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "lr": encoder_learning_rate * group["lr_scale"],
        }
        for group in found
    ]
    head = {"params": list(network.head.parameters()), "weight_decay": weight_decay, "lr": learning_rate}
    return [head, *groups]


# --- what is left in the end ---


def take_best(network: SequenceClassifier, folder: str | Path) -> Path:
    """Load the best epoch and write its head alone beside it, to be calibrated; where that is."""
    network.load_state_dict(read_state(Path(folder) / BEST))
    stream = io.BytesIO()
    torch.save(network.head.state_dict(), stream)
    write_file(Path(folder) / HEAD_FILE, stream.getvalue())
    return Path(folder) / HEAD_FILE


def save_finetuned(
    model_path: str | Path, network: SequenceClassifier, folder: str | Path, card: Mapping[str, Any]
) -> Path:
    """Write model.pt and its card, after `take_best`; the card names the encoder by what became of it."""
    final = dict(card) | {"encoder_digest": digest(network.encoder.backbone.state_dict())}
    return save_model(model_path, network.encoder, network.head, Path(folder) / HEAD_FILE, final)

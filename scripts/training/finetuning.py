"""A model to start from -> encoder and head, which part of them learns and how fast -> model.pt."""

import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from timm.layers import DropPath
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch.optim import AdamW

from scripts.datalists.items import Task
from scripts.errors import bad_value
from scripts.features.batching import feature_scale
from scripts.memory.blocks import couples_batch
from scripts.networks.card import NOMINAL, in_words, load_model, read_card, require_model, save_model
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import Encoder, make_encoder
from scripts.networks.heads import make_head
from scripts.networks.weights import digest, load_into, read_state
from scripts.training.checkpoints import BEST, STATE, read_run
from scripts.training.frames import EncodedDataset, FrameDataset
from scripts.training.lora import add_adapters, take_weights, without_adapters
from scripts.training.optimizer import make_optimizer
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


def recipe_of_run(folder: str | Path, resume: bool) -> dict[str, Any]:
    """The recipe of the run that will be gone on with; empty if one begins.

    Raises:
        ValueError: its state cannot be read.
    """
    path = Path(folder) / STATE
    return json.loads(read_run(path)["recipe"]) if resume and path.is_file() else {}


def make_network(recipe: Mapping[str, Any], task: Task) -> SequenceClassifier:
    """Encoder and head as a recipe has them, nothing loaded yet; of the encoder learns what `unfreeze` lets learn.

    Args:
        recipe: what a card has: NOMINAL, and dropout, chunk_frames, trainable_blocks, drop_path, lora_rank.
        task: of the datalist; its classes are the logits.
    """
    encoder = make_encoder(recipe["encoder_name"], recipe["pooling"], recipe["layers"])
    options = {name: recipe[name] for name in ("hidden_size", "num_layers", "bidirectional", "readout", "use_times")}
    options["dropout"] = recipe["dropout"]
    head = make_head(recipe["head_name"], encoder.num_features, len(task.classes), **options)
    network = SequenceClassifier(encoder, head, recipe["chunk_frames"])
    return add_adapters(unfreeze(network, recipe["trainable_blocks"], recipe["drop_path"]), recipe["lora_rank"])


def load_start(
    network: SequenceClassifier,
    start_from: str | Path,
    encoder_weights: str,
    models_dir: str | Path,
    task: Task,
    began: Mapping[str, Any] | None = None,
) -> str:
    """Fill the network with what training starts from; the digest of all of it.

    Args:
        network: encoder and head.
        start_from: a model.pt whose card stands beside it, or `scratch`.
        encoder_weights: those of the encoder if it is `scratch`; the head then stays as it was made.
        models_dir: where encoder weights are.
        task: of the datalist.
        began: of `recipe_of_run`. What that run started from may be gone by now: it ends in the place of it.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: weights of another architecture, or a model of another task.
    """
    plain = without_adapters(network)
    if start_from == SCRATCH:
        load_into(plain.encoder, encoder_weights, models_dir)
        logger.info(f"starts from {SCRATCH}: an encoder with the weights {encoder_weights}, a new head")
    else:
        card = starting_card(start_from)
        if (card["task_type"], tuple(card["classes"])) != (task.type, tuple(task.classes)):
            found = f"{card['task_type']}: {', '.join(card['classes'])}"
            allowed = f"{task.type}: {', '.join(task.classes)}, as the datalist has them"
            raise ValueError(bad_value(start_from, "task", found, allowed, "Pass --start_from scratch."))
        load_model(plain, require_model(start_from))
        logger.info(f"starts from {start_from}, {in_words(start_from)}")
        plain.head.set_temperature(1.0)  # type: ignore[operator]
        if began and card.get("start_digest") == began.get("start_digest"):  # its own result, not another start
            return card["start_digest"]
    if plain is not network:
        take_weights(network, plain)
    return digest(plain.state_dict())


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
    encoder: Encoder = network.encoder
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


def finetuning_optimizer(network: torch.nn.Module, bare: SequenceClassifier, recipe: Mapping[str, Any]) -> AdamW:
    """The optimizer of `parameter_groups`, with the rates, decays and clipping of a recipe.

    Args:
        network: as it is trained, maybe within DistributedDataParallel.
        bare: without.
        recipe: with learning_rate, encoder_learning_rate, layer_decay, weight_decay, max_gradient_norm.
    """
    rate, decay = recipe["learning_rate"], recipe["weight_decay"]
    groups = parameter_groups(bare, rate, recipe["encoder_learning_rate"], recipe["layer_decay"], decay)
    return make_optimizer(network, rate, decay, recipe["max_gradient_norm"], groups)


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
    plain = without_adapters(network)
    final = dict(card) | {"encoder_digest": digest(plain.encoder.backbone.state_dict())}
    return save_model(model_path, plain.encoder, plain.head, Path(folder) / HEAD_FILE, final)

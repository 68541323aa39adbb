"""The model card file: what a `model.pt` is and what its input must look like, as JSON beside it."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.errors import bad_value, printable
from scripts.keys import TASK_TYPES
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import Encoder
from scripts.networks.weights import IN_MODEL, digest, read_state
from scripts.writing import write_file

logger = logging.getLogger("angiography")

HEAD = "head."  # before the names of the head's tensors in model.pt

# What inference must know to rebuild the network and its input; the nominal values are those of metadata.json.
NOMINAL: dict[str, Any] = {
    "encoder_name": "vit_small_patch14_dinov2",
    "pooling": "avg",
    "layers": 1,
    "image_size": 224,
    "frame_choice": "uniform",
    "max_frames": 16,
    "every_ms": 1000.0,
    "phase_bounds_s": [103.0, 518.0],
    "subtraction": "header",
    "border": "keep",
    "panel": "whole",
    "window": "percentile",
    "lower_percentile": 0.5,
    "upper_percentile": 99.5,
    "pixel_mean": 0.5,
    "pixel_std": 0.5,
    "head_name": "gru",
    "hidden_size": 128,
    "num_layers": None,
    "bidirectional": None,
    "readout": None,
    "use_times": True,
    "task_type": "multiclass",
    "classes": ["normal", "leakage", "pooling", "staining", "window_defect"],
}


def card_path(model_path: str | Path) -> Path:
    """Where the card of a model file is: `model.pt` -> `model.json`."""
    return Path(model_path).with_suffix(".json")


def read_card(model_path: str | Path) -> dict[str, Any]:
    """The card beside a model file; `NOMINAL` where there is no model yet, as in a fresh bundle.

    Raises:
        ValueError: a model without a card, or a damaged card.
    """
    path = card_path(model_path)
    if not path.is_file():
        if Path(model_path).is_file():
            raise ValueError(
                bad_value(model_path, "card", "absent", f"{path.name} beside it", "configs/train.yaml writes both.")
            )
        return dict(NOMINAL)
    try:
        card = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(bad_value(path, "content", f"not JSON ({error})", "a card written by train.yaml")) from error
    lacking = sorted(NOMINAL.keys() - card.keys()) if isinstance(card, dict) else sorted(NOMINAL)
    if lacking:
        raise ValueError(bad_value(path, "content", f"without {', '.join(lacking)}", f"all of {sorted(NOMINAL)}"))
    classes = card["classes"]
    named = isinstance(classes, list) and all(isinstance(c, str) for c in classes) and len(set(classes)) == len(classes)
    if not named or card["task_type"] not in TASK_TYPES:
        found = f"task_type {card['task_type']}, classes {classes}"
        raise ValueError(bad_value(path, "task", found, f"one of {', '.join(TASK_TYPES)} and different class names"))
    return card


def in_words(model_path: str | Path) -> str:
    """What a model file decides between, as its card has it, for a log."""
    try:
        card = read_card(model_path)
    except ValueError:
        return "a model without a card that can be read"
    return printable(f"a model of {card['task_type']}: {', '.join(card['classes'])}")


def save_model(
    model_path: str | Path,
    encoder: Encoder,
    head: nn.Module,
    head_path: str | Path,
    card: dict[str, Any],
) -> Path:
    """Write encoder and trained head as one pure state dict, and its card.

    Args:
        model_path: such as models/model.pt.
        encoder: with the weights the features were made with.
        head: of the trained architecture; takes the weights at `head_path`.
        head_path: best checkpoint of training.
        card: what `NOMINAL` names, and the record of the run.
    """
    if card.get("frames_shown", "all") != "all":
        logger.info(f"a control (frames_shown {card['frames_shown']}): {model_path} is left as it is")
        return Path(model_path)
    head.load_state_dict(read_state(head_path))
    card = {**card, "temperature": float(head.temperature)}  # type: ignore[arg-type]
    state = SequenceClassifier(encoder, head).state_dict()
    path, stream = Path(model_path), io.BytesIO()
    if path.is_file():
        logger.info(f"model: {path} replaces {in_words(path)}")
    torch.save({name: tensor.cpu() for name, tensor in state.items()}, stream)
    write_file(path, stream.getvalue())
    write_file(card_path(path), json.dumps(card, indent=1, sort_keys=True) + "\n")
    logger.info(f"model: {path}, its card: {card_path(path).name}")
    return path


def require_model(model_path: str | Path) -> Path:
    """The path, if there is a model.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(model_path)
    if not path.is_file():
        raise FileNotFoundError(
            bad_value("configuration", "model_path", path, "an existing model.pt", "Train one: configs/train.yaml.")
        )
    return path


def load_model(network: nn.Module, model_path: str | Path) -> None:
    """Load `model.pt` into the network of its card.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: weights of another architecture, or an encoder that is not the one its card names.
    """
    path = require_model(model_path)
    state = read_state(path)
    load_fitting(network, state, path)
    encoder = {n.removeprefix(IN_MODEL): t for n, t in state.items() if n.startswith(IN_MODEL)}
    stated = read_card(path).get("encoder_digest")
    if stated is not None and digest(encoder) != stated:
        raise ValueError(
            bad_value(path, "encoder digest", digest(encoder)[:16], f"{stated[:16]}, as in its card", "Train again.")
        )


def load_fitting(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    wrong = [n for n in expected if n not in state or state[n].shape != expected[n].shape]
    wrong += [n for n in state if n not in expected]
    if wrong:
        raise ValueError(
            bad_value(
                path,
                "architecture",
                f"another: {len(wrong)} tensors differ, first {wrong[0]}",
                "those of the network in its card",
                "Leave encoder_name, layers, head_name, hidden_size and classes as the card has them.",
            )
        )
    network.load_state_dict(state)

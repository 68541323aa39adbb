"""Engines that run the frozen encoder: frames (N, 3, H, W) -> features, by PyTorch, compiled, or by OpenVINO.

Which engine made a feature is part of a store's fingerprint, since engines round differently. All are held to fp32
PyTorch on real weights by a test: cosine of at least 0.999 for every frame.
"""

import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scripts.errors import bad_value

logger = logging.getLogger("angiography")

TORCH, TORCH_COMPILE, OPENVINO = "torch", "torch_compile", "openvino"
ENGINES = (TORCH, TORCH_COMPILE, OPENVINO)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
# frames a forward pass that are tried; on a CPU activations fall out of its caches early, a GPU must be filled
TRIED = {"cpu": (1, 2, 4, 8, 16), "cuda": (16, 32, 64, 128, 256, 512)}
FIXED = {"cpu": 8, "cuda": 64}  # of a compiled encoder, which compiles anew for every size
TRIES = 3  # batches of each size; the fastest counts, the first one also allocates
WORTH = 1.02  # a larger batch must be this much faster: it costs memory


class Engine:
    """The encoder as one function.

    Args:
        encoder: (N, 3, H, W) -> (N, ...), on `device`.
        name: one of `ENGINES`.
        precision: of the arithmetic, a key of `PRECISIONS`.
        device: where it runs.

    Raises:
        ValueError: an unknown name or precision, or an engine that cannot work on this device.
        ModuleNotFoundError: OpenVINO is not installed.
    """

    def __init__(self, encoder: nn.Module, name: str, precision: str, device: torch.device | str) -> None:
        for knob, value, allowed in (("engine", name, ENGINES), ("precision", precision, PRECISIONS)):
            if value not in allowed:
                raise ValueError(bad_value("configuration", knob, value, f"one of {', '.join(allowed)}"))
        self.device = torch.device(device)
        self.dtype = PRECISIONS[precision]
        self.equal_batches = name == TORCH_COMPILE
        encoder.eval()
        if name == OPENVINO:
            self._run: Callable[[Tensor], Tensor] = _OpenVINO(encoder, precision, self.device)
        elif name == TORCH_COMPILE:
            self._run = torch.compile(encoder)
        else:
            self._run = encoder

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        """Features (N, ...) on the device, which may still be computing them.

        Args:
            frames: (N, 3, H, W) float32 on the CPU.
        """
        if self.device.type == "cuda":
            frames = frames.pin_memory().to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._run(frames)


class _OpenVINO:
    """The encoder converted for Intel's runtime, which runs on any x86 or ARM CPU, at the first frames it sees."""

    def __init__(self, encoder: nn.Module, precision: str, device: torch.device) -> None:
        if device.type != "cpu" or precision == "float16":
            found = f"openvino with {precision} on {device.type}"
            allowed = "the CPU and float32 or bfloat16; on a GPU the engine torch"
            raise ValueError(bad_value("configuration", "engine", found, allowed))
        if importlib.util.find_spec("openvino") is None:
            raise ModuleNotFoundError(
                bad_value("configuration", "engine", OPENVINO, "the package openvino", "Run: pip install openvino")
            )
        self.encoder, self.precision = encoder, precision
        self.request: Any = None

    def __call__(self, frames: Tensor) -> Tensor:
        if self.request is None:
            self.request = self._compiled(frames)
        return torch.from_numpy(self.request.infer({0: frames.numpy()}, share_inputs=True)[0].copy())

    def _compiled(self, frames: Tensor) -> Any:
        # Importing openvino 2026.4 reports the import to its maker unless this package cannot be found.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        with warnings.catch_warnings(), torch.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")  # its tracer warns of every branch on a shape, which here is fixed
            converted = openvino.convert_model(
                self.encoder, example_input=torch.zeros_like(frames[:1]), input=[-1, *frames.shape[1:]]
            )
        hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.precision]}
        if torch.get_num_threads() > 0:
            hints["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
        return openvino.Core().compile_model(converted, "CPU", hints).create_infer_request()


class BatchSize:
    """How many frames a forward pass takes: a given number, or the one that the first real batches show to be best.

    Each size of `TRIED` gets a few batches of the run's own frames, so that trying costs next to nothing. The search
    ends after two sizes that bring no gain, or at one that the GPU's memory cannot hold.

    Args:
        wanted: `auto`, or the number.
        engine: runs the batches; its device decides which sizes are tried.

    Raises:
        ValueError: neither `auto` nor a positive whole number.
    """

    def __init__(self, wanted: str | int, engine: Engine) -> None:
        whole = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0
        if not whole and wanted != AUTO:
            raise ValueError(bad_value("configuration", "batch_frames", wanted, f"{AUTO} or a number of frames"))
        kind = "cuda" if engine.device.type == "cuda" else "cpu"
        self._engine = engine
        self._rates: dict[int, list[float]] = {}  # frames/s of each size
        self._settled = whole or engine.equal_batches
        self._to_try = list(TRIED[kind])
        self.size = int(wanted) if whole else FIXED[kind] if self._settled else self._to_try.pop(0)

    def run(self, frames: Tensor) -> Tensor:
        """The engine's features (N, ...) of at most `size` frames, timed while sizes are tried."""
        if self._settled or len(frames) < self.size:
            return self._engine(frames)
        start = time.perf_counter()
        try:
            features = self._engine(frames).cpu()  # waits for the device
        except torch.OutOfMemoryError:
            if not self._rates:
                raise
            self._settle()
            return torch.cat([self._engine(part) for part in frames.split(self.size)])
        rates = self._rates.setdefault(self.size, [])
        rates.append(len(frames) / (time.perf_counter() - start))
        if len(rates) == TRIES:
            best = [max(found) for found in self._rates.values()]
            no_gain = len(best) > 2 and max(best[-2:]) < WORTH * max(best[:-2])
            if no_gain or not self._to_try:
                self._settle()
            else:
                self.size = self._to_try.pop(0)
        return features

    def _settle(self) -> None:
        best = {size: max(found) for size, found in self._rates.items()}
        self.size = next(size for size, rate in best.items() if rate * WORTH >= max(best.values()))
        self._settled = True
        logger.info(f"{self.size} frames a batch: {best[self.size]:.1f} frames/s")

"""Feature extraction: the whole of cache_features against the bare encoder, the encoder against matrix products.

    python -m tests.benchmarks.extraction [--quick] [--check]

Needs the real weights (`python -m scripts weights dinov2_small`). The exams are synthetic X-ray runs, 512 x 512 pixels.
The engine openvino is measured where it is installed.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from monai.transforms import Compose
from torch.utils.flop_counter import FlopCounterMode

from scripts.errors import bad_value
from scripts.features.engines import OPENVINO, TORCH, Engine
from scripts.features.extract import cache_features
from scripts.features.fingerprint import make_fingerprint
from scripts.keys import IMAGE, SOURCE
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import load_into
from scripts.sequences.transforms import (
    LoadSequenced,
    ResizeFramesd,
    ShowRegiond,
    ToEncoderInputd,
    WindowSequenced,
)
from tests.benchmarks.reading import ENCODINGS, phantom_frames, write_run
from tests.benchmarks.report import ROOT, Figure, finish, peak_bytes, print_table, timed_pairs

ENCODER, WEIGHTS = "vit_small_patch14_dinov2", "dinov2_small"
IMAGE_SIZE, NUM_FRAMES, BATCH_FRAMES = 224, 16, 4
BATCHES = (4, 8)
MORE_TIME, OF_GEMM_FP32, OF_GEMM_BEST, SAME_MEMORY = 1.05, 0.90, 0.80, 1.10
GEMM_SIZES = ((2048, 2048, 2048), (4112, 384, 1152), (4112, 384, 1536), (4112, 1536, 384))  # the last three: its own
# What one process holds while it caches exams of 4 frames with a tiny encoder; only their number differs.
CACHE = """
from pathlib import Path
import tempfile
import numpy as np
from scripts.features.extract import cache_features
from scripts.features.fingerprint import make_fingerprint
from scripts.networks.encoder import FrameEncoder
from scripts.keys import IMAGE, SOURCE
from tests.benchmarks.extraction import preprocessing_of
from tests.conftest import save_dicom
def cache(number):
    folder = Path(tempfile.mkdtemp())
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    paths = [save_dicom(folder / f"{i}.dcm", frames) for i in range(number)]
    items = [{IMAGE: path, SOURCE: path.name} for path in paths]
    encoder, preprocessing = FrameEncoder("test_vit"), preprocessing_of(32)
    fingerprint = make_fingerprint(encoder, "0", preprocessing, "float32", "torch")
    cache_features(items, preprocessing, encoder, folder / "features", fingerprint, "cpu", progress=False)
cache(8)
"""


def preprocessing_of(image_size: int) -> Compose:
    """That of cache_features.yaml."""
    steps = [LoadSequenced(max_frames=NUM_FRAMES), ShowRegiond(), WindowSequenced()]
    return Compose([*steps, ResizeFramesd(image_size=image_size), ToEncoderInputd()])


def real_encoder() -> tuple[FrameEncoder, str]:
    """The encoder with its real weights, and their digest."""
    encoder = FrameEncoder(ENCODER).eval()
    try:
        return encoder, load_into(encoder, WEIGHTS, ROOT / "models")
    except FileNotFoundError:
        way_out = f"Run: python -m scripts weights {WEIGHTS}"
        raise SystemExit(bad_value("benchmark", "weights", "absent", WEIGHTS, way_out)) from None


def installed_engines() -> list[tuple[str, str]]:
    """Engine and precision of each way to run the encoder here."""
    names = [TORCH] + ([OPENVINO] if importlib.util.find_spec("openvino") else [])
    return [(name, precision) for precision in ("float32", "bfloat16") for name in names]


def against_bare_encoder(folder: Path, quick: bool) -> list[Figure]:
    """cache_features from files to store, against the same frames, in memory, through the encoder alone."""
    encoder, digest = real_encoder()
    preprocessing = preprocessing_of(IMAGE_SIZE)
    fingerprint = make_fingerprint(encoder, digest, preprocessing, "float32", TORCH)
    engine = Engine(encoder, TORCH, "float32", "cpu")
    figures, rows = [], []
    for name in ("raw", "jpeg"):
        pixels = phantom_frames()
        paths = [write_run(folder / name / f"{i}.dcm", pixels, ENCODINGS[name]) for i in range(2 if quick else 8)]
        items = [{IMAGE: path, SOURCE: path.name} for path in paths]
        frames = torch.cat([preprocessing(dict(item))[IMAGE] for item in items])  # (N, 3, H, W)
        whole = caching(items, preprocessing, encoder, fingerprint, folder)
        pair = timed_pairs(
            lambda f=frames: [engine(batch) for batch in f.split(BATCH_FRAMES)], whole, 2 if quick else 7
        )
        rates = (f"{len(frames) / taken:.1f}" for taken in (pair.first_s, pair.second_s))
        rows.append((name, *rates, f"{pair.ratio:.3f}"))
        figures.append(Figure(f"{name}: time of cache_features over the bare encoder", pair.ratio, at_most=MORE_TIME))
    columns = ("exams", "encoder frames/s", "cache_features frames/s", "time ratio")
    title = (
        f"Files to store against the encoder alone: torch float32, {NUM_FRAMES} of 96 frames an exam, {IMAGE_SIZE} px"
    )
    print_table(title, columns, rows)
    return figures


def caching(items: list, preprocessing: Compose, encoder: FrameEncoder, fingerprint: dict, folder: Path) -> Callable:
    """A call that caches the exams in a new store."""
    options = {"batch_frames": BATCH_FRAMES, "progress": False}

    def cache() -> None:
        store = Path(tempfile.mkdtemp(dir=folder))
        cache_features(items, preprocessing, encoder, store, fingerprint, "cpu", **options)

    return cache


def against_gemm(quick: bool) -> list[Figure]:
    """The encoder's arithmetic a second, against the fastest matrix product of this machine in the same precision."""
    encoder, _ = real_encoder()
    frames = torch.randn(max(BATCHES), 3, IMAGE_SIZE, IMAGE_SIZE)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(frames[:1])
    frame_flops = counter.get_total_flops()
    best: dict[str, float] = {}
    figures, rows = [], []
    for name, precision in installed_engines():
        engine = Engine(encoder, name, precision, "cpu")
        shares = {n: share_of_gemm(engine, frames[:n], n * frame_flops, quick) for n in BATCHES}
        batch, (share, rate, limit) = max(shares.items(), key=lambda found: found[1])
        rows.append((f"{name} {precision}", batch, f"{rate / 1e9:.0f}", f"{limit / 1e9:.0f}", f"{share:.2f}"))
        figures.append(Figure(f"{name} {precision}: share of the GEMM limit", share))
        best[precision] = max(best.get(precision, 0.0), share)
    figures.append(Figure("best float32 engine: share of the GEMM limit", best["float32"], OF_GEMM_FP32))
    figures.append(Figure("best bfloat16 engine: share of the GEMM limit", best["bfloat16"], OF_GEMM_BEST))
    title = f"Encoder forward, {frame_flops / 1e9:.2f} GFLOP a frame, {torch.get_num_threads()} threads"
    print_table(title, ("engine", "batch", "GFLOP/s", "GEMM GFLOP/s", "share"), rows)
    return figures


def share_of_gemm(engine: Engine, batch: torch.Tensor, flops: int, quick: bool) -> tuple[float, float, float]:
    """The encoder's rate over that of the fastest product, and both rates in FLOP/s."""
    found = []
    for size in GEMM_SIZES:
        product, product_flops = matrix_product(size, engine.dtype)
        pair = timed_pairs(lambda: engine(batch), product, 3 if quick else 7)
        found.append((pair.ratio * flops / product_flops, flops / pair.first_s, product_flops / pair.second_s))
    return min(found)  # the limit is the fastest of them


def matrix_product(size: tuple[int, int, int], dtype: torch.dtype) -> tuple[Callable, int]:
    """A product of two matrices repeated for about 0.1 s of work, and its floating-point operations."""
    m, k, n = size
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    repeats = max(round(2e10 / (2 * m * k * n)), 1)

    def product() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=out)

    return product, repeats * 2 * m * k * n


def memory_of_many(quick: bool) -> list[Figure]:
    """Peak memory of caching ten times as many exams."""
    few, many = (20, 200) if quick else (100, 1000)
    peaks = {number: peak_bytes(CACHE, f"cache({number})", over_start=False) for number in (few, many)}
    rows = [(f"{number} exams", f"{peak / 1e6:.1f}") for number, peak in peaks.items()]
    print_table("Peak resident memory of the whole process", ("", "MB"), rows)
    return [Figure(f"{many} exams over {few}: peak memory", peaks[many] / peaks[few], at_most=SAME_MEMORY)]


def main() -> int:
    """Run all parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = against_gemm(options.quick)
        figures += against_bare_encoder(Path(folder), options.quick)
        figures += memory_of_many(options.quick)
    settings = {"quick": options.quick, "encoder": ENCODER, "image_size": IMAGE_SIZE, "batch_frames": BATCH_FRAMES}
    return finish("extraction", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""What caching gains: a training step on stored features against one that runs and trains the encoder.

    python -m tests.benchmarks.caching_gain [--quick] [--check]

B = 64 sequences of T = 20 frames, 224 x 224 pixels. No CPU trains 1,280 frames at once, so the end-to-end step is
EXTRAPOLATED from a few frames, forwards and backwards; so are its activations. Features are random numbers.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from scripts.features.batching import FeatureDataset, collate_sequences
from scripts.features.sampling import LengthBatches
from scripts.keys import ENTRY, LABEL, SOURCE
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head
from scripts.training.engine import prepare_batch
from tests.benchmarks.report import Figure, finish, print_table, timed_pairs
from tests.benchmarks.store import NUM_FRAMES, WIDTH, write_store

ENCODER, IMAGE_SIZE, BATCH_SIZE, NUM_CLASSES = "vit_small_patch14_reg4_dinov2", 224, 64, 5
FASTER, EPOCHS = 5_000, 1
FRAMES_TIMED = 4


def cached_step(folder: Path) -> tuple[Callable[[], None], nn.Module, dict]:
    """One optimizer step on a batch read from a store, the head, and a batch."""
    store, _ = write_store(folder, 4 * BATCH_SIZE)
    items = [{ENTRY: key, SOURCE: key[:16], LABEL: n % NUM_CLASSES} for n, key in enumerate(store.keys())]
    dataset = FeatureDataset(items, store)
    sampler = LengthBatches(dataset.lengths, BATCH_SIZE, seed=0)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_sequences)
    head = make_head("gru", num_features=WIDTH, num_classes=NUM_CLASSES)
    optimizer = torch.optim.AdamW(head.parameters())
    batches = iter([])

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        features, label, _, others = prepare_batch(batch, torch.device("cpu"))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features, **others), label).backward()
        optimizer.step()

    return step, head, next(iter(loader))


def encoder_steps() -> tuple[Callable[[], None], Callable[[], None], nn.Module, Tensor]:
    """Training and inference of the encoder on a few frames, the encoder, the frames."""
    encoder = FrameEncoder(ENCODER)
    optimizer = torch.optim.AdamW(encoder.parameters())
    frames = torch.randn(FRAMES_TIMED, 3, IMAGE_SIZE, IMAGE_SIZE)

    def train() -> None:
        optimizer.zero_grad()
        encoder.train()(frames).square().mean().backward()

    @torch.inference_mode()
    def infer() -> None:
        encoder.eval()(frames)

    return train, infer, encoder, frames


def activation_bytes(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return sum(kept.values())


def main() -> int:
    """Measure, extrapolate, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, under a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    options = parser.parse_args()
    total = BATCH_SIZE * NUM_FRAMES
    repeats = 3 if options.quick else 9
    with tempfile.TemporaryDirectory() as folder:
        step, head, batch = cached_step(Path(folder))
        features, _, _, others = prepare_batch(batch, torch.device("cpu"))
        train, infer, encoder, frames = encoder_steps()
        steps = 20  # one step is too short to time
        cached = timed_pairs(lambda: [step() for _ in range(steps)], train, repeats)
        inference = timed_pairs(infer, train, repeats)
        cached_s, train_s, infer_s = (
            cached.first_s / steps,
            cached.second_s * total / FRAMES_TIMED,
            inference.first_s * total / FRAMES_TIMED,
        )
        head_bytes = activation_bytes(head.train(), lambda: head(features, **others))
        encoder_bytes = activation_bytes(encoder.train(), lambda: encoder(frames)) * total // FRAMES_TIMED
    gain = cached.ratio * steps * total / FRAMES_TIMED
    pays_after = math.ceil(infer_s / (train_s - cached_s))
    rows = [
        ("step on cached features, read from the store", f"{cached_s * 1e3:.1f} ms", "measured"),
        ("step that trains the encoder", f"{train_s:.0f} s", f"from {FRAMES_TIMED} frames"),
        ("extraction of the same frames, once", f"{infer_s:.0f} s", f"from {FRAMES_TIMED} frames"),
        ("activations of the cached step", f"{head_bytes / 1e6:.1f} MB", "measured"),
        ("activations of the other, encoder alone", f"{encoder_bytes / 1e9:.1f} GB", f"from {FRAMES_TIMED} frames"),
        ("caching pays after", f"{pays_after} epoch", ""),
    ]
    title = f"B = {BATCH_SIZE}, T = {NUM_FRAMES}, {IMAGE_SIZE} px, float32, {torch.get_num_threads()} threads"
    print_table(title, ("", "", "how"), rows)
    figures = [
        Figure("training step: end to end (extrapolated) over cached", gain, FASTER),
        Figure("epochs until caching pays", pays_after, at_most=EPOCHS),
        Figure("activations: end to end (extrapolated) over cached", encoder_bytes / head_bytes),
        Figure("activations of the encoder, MB a frame", encoder_bytes / total / 1e6),
    ]
    settings = {"quick": options.quick, "encoder": ENCODER, "image_size": IMAGE_SIZE, "timed_frames": FRAMES_TIMED}
    return finish("caching_gain", figures, settings, options.check)


if __name__ == "__main__":
    sys.exit(main())

"""Images of sequences of any length -> full encoder batches -> each sequence's features; no frame is padding."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from scripts.features.engines import AUTO, BatchSize, Engine


def encode_packed(
    images: Iterable[Tensor | None], engine: Engine, batch_frames: str | int = AUTO
) -> Iterator[Tensor | None]:
    """Features (T, ...) float16 of each image (T, 3, H, W), in order; None stays None.

    A batch takes the frames of as many sequences as it needs, and a long sequence as many batches. Half precision takes
    half the disk and keeps three significant digits.

    Args:
        images: float32 on the CPU, all of one size.
        engine: runs the encoder.
        batch_frames: frames a batch; `auto` tries a few sizes on the first ones.
    """
    packer = _Packer(engine, batch_frames)
    for image in images:
        packer.add(image)
        yield from packer.complete()
    packer.flush()
    yield from packer.complete()


class _Sequence:
    """A sequence on its way: its features so far, and how many frames are still without."""

    def __init__(self, num_frames: int) -> None:
        self.parts: list[Tensor] = []
        self.missing = num_frames


class _Packer:
    """The batch that is being put together, the one that is being computed, the sequences in both."""

    def __init__(self, engine: Engine, batch_frames: str | int) -> None:
        self.equal_batches = engine.equal_batches
        self.batch = BatchSize(batch_frames, engine)
        self.sequences: deque[_Sequence | None] = deque()
        self.pieces: list[tuple[_Sequence, Tensor]] = []  # (owner, frames) of the next batch
        self.running: tuple[list[tuple[_Sequence, int]], Tensor] | None = None

    def add(self, image: Tensor | None) -> None:
        if image is None:
            self.sequences.append(None)
            return
        owner, left = _Sequence(len(image)), image
        self.sequences.append(owner)
        while len(left):
            room = self.batch.size - sum(len(frames) for _, frames in self.pieces)
            self.pieces.append((owner, left[:room]))
            left = left[room:]
            if len(self.pieces[-1][1]) == room:
                self._start()

    def complete(self) -> Iterator[Tensor | None]:
        while self.sequences and (self.sequences[0] is None or not self.sequences[0].missing):
            first = self.sequences.popleft()
            yield None if first is None else torch.cat(first.parts)

    def flush(self) -> None:
        if self.pieces:
            self._start()
        self._collect()

    def _start(self) -> None:
        """Hand the batch to the engine; the one before is collected meanwhile, which lets a GPU work on."""
        frames = torch.cat([frames for _, frames in self.pieces])  # (N, 3, H, W)
        count = len(frames)
        if self.equal_batches and count < self.batch.size:
            frames = torch.cat([frames, frames.new_zeros(self.batch.size - count, *frames.shape[1:])])
        features = self.batch.run(frames)[:count]
        self._collect()
        self.running = [(owner, len(frames)) for owner, frames in self.pieces], features
        self.pieces = []

    def _collect(self) -> None:
        if self.running is None:
            return
        owners, features = self.running
        for owner, part in zip(
            (owner for owner, _ in owners),
            features.to("cpu", torch.float16).split([count for _, count in owners]),
            strict=True,
        ):
            owner.parts.append(part)
            owner.missing -= len(part)
        self.running = None

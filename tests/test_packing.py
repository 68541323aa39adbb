"""Packing: full batches of whatever sequences there are, each sequence's features its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scripts.features.engines import Engine
from scripts.features.packing import encode_packed


class Mean(nn.Module):
    """Mean of each channel, (N, 3); keeps the number of frames of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(frames))
        return frames.mean(dim=(2, 3))


def packed(lengths: list[int | None], batch_frames: int, engine: str = "torch") -> tuple[list, list, list[int]]:
    """Features of random images of these lengths, what they should be, and the sizes of the encoder's calls."""
    encoder, generator = Mean(), torch.Generator().manual_seed(0)
    images = [None if n is None else torch.rand(n, 3, 4, 4, generator=generator) for n in lengths]
    run = Engine(encoder, "torch", "float32", "cpu")
    run.equal_batches = engine == "torch_compile"
    found = list(encode_packed(iter(images), run, batch_frames))
    return found, [None if i is None else i.mean(dim=(2, 3)).half() for i in images], encoder.sizes


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.none() | st.integers(1, 40), max_size=12),
    batch_frames=st.integers(1, 17),
    engine=st.sampled_from(["torch", "torch_compile"]),
)
def test_every_sequence_gets_its_own_features_in_order_from_full_batches(lengths, batch_frames, engine):
    found, expected, sizes = packed(lengths, batch_frames, engine)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == torch.float16 and torch.equal(ours, theirs)
    frames = sum(length or 0 for length in lengths)
    full = sizes if engine == "torch_compile" else sizes[:-1]
    assert all(size == batch_frames for size in full)
    assert len(sizes) == -(-frames // batch_frames)


def test_features_of_a_sequence_come_as_soon_as_it_is_encoded_not_at_the_end():
    given_out = []

    def images():
        for n in range(10):
            given_out.append(n)
            yield torch.rand(4, 3, 2, 2)

    first = next(encode_packed(images(), Engine(Mean(), "torch", "float32", "cpu"), 4))
    assert first is not None and len(given_out) <= 3


def test_features_are_in_memory_of_their_own():
    (first, second), _, _ = packed([2, 3], 16)
    assert first.untyped_storage().nbytes() == first.nbytes and second.untyped_storage().nbytes() == second.nbytes


def test_patch_tokens_keep_their_shape():
    class Tokens(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return frames.flatten(2).transpose(1, 2)  # (N, 16, 3)

    image = torch.rand(5, 3, 4, 4)
    (found,) = encode_packed([image], Engine(Tokens(), "torch", "float32", "cpu"), 2)
    assert torch.equal(found, image.flatten(2).transpose(1, 2).half())


def test_error_of_the_encoder_reaches_the_caller():
    class Broken(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(encode_packed([torch.rand(2, 3, 4, 4)], Engine(Broken(), "torch", "float32", "cpu"), 2))

"""Encoder and head in one: chunks change neither logits nor the memory's bound."""

import pytest
import torch

from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head
from scripts.networks.weights import load_into

B, T, SIDE = 2, 7, 32


def classifier_of(chunk_frames: int, pooling: str = "avg", layers: int = 1) -> SequenceClassifier:
    encoder = FrameEncoder("test_vit", pooling, layers)
    load_into(encoder, "random:0", "models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = make_head("gru", encoder.num_features, 3, hidden_size=8)
    return SequenceClassifier(encoder, head, chunk_frames).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(B, T, 3, SIDE, SIDE, generator=generator)
    return image, torch.tensor([T, 4]), torch.arange(T).float()[None].repeat(B, 1) * 100


@pytest.mark.parametrize("chunk_frames", [1, 3, 4, 5, 13])
@torch.inference_mode()
def test_chunks_change_no_logit_and_the_encoder_never_sees_more_frames_at_once(batch, chunk_frames):
    seen: list[int] = []
    network = classifier_of(chunk_frames)
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    logits = network(*batch)
    torch.testing.assert_close(logits, classifier_of(B * T)(*batch))  # same result ...
    assert max(seen) == chunk_frames  # ... in pieces
    assert sum(seen) == B * T
    assert logits.shape == (B, 3)


@torch.inference_mode()
def test_logits_are_the_heads_on_each_sequences_own_features(batch):
    image, lengths, times = batch
    network = classifier_of(4)
    features = torch.stack([network.encoder(sequence) for sequence in image])  # (B, T, D)
    torch.testing.assert_close(network.encode(image), features)
    torch.testing.assert_close(network(*batch), network.head(features, lengths, times))


@torch.inference_mode()
def test_explain_gives_the_logits_of_forward_weights_that_sum_to_one_and_the_decision_after_each_frame(batch):
    image, lengths, times = batch
    network = classifier_of(4)
    logits, weights, prefixes = network.explain(*batch)
    torch.testing.assert_close(logits, network(*batch), rtol=0, atol=0)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(B))
    assert bool((weights[1, 4:] == 0).all())
    for end in range(1, T + 1):
        cut = network(image[:, :end], lengths.clamp(max=end), times[:, :end])
        torch.testing.assert_close(prefixes[:, end - 1], cut)


@torch.inference_mode()
def test_image_alone_means_full_lengths_and_unknown_times(batch):
    network = classifier_of(8)
    unknown = torch.full((B, T), torch.nan)
    wanted = network(batch[0], torch.full((B,), T), unknown)
    torch.testing.assert_close(network(batch[0]), wanted, rtol=0, atol=0)


@torch.inference_mode()
def test_sequence_of_one_frame_is_classified():
    logits = classifier_of(8)(torch.rand(1, 1, 3, SIDE, SIDE))
    assert logits.shape == (1, 3)
    assert bool(torch.isfinite(logits).all())


@torch.inference_mode()
def test_scripted_classifier_equals_the_eager_one(batch):
    network = classifier_of(4)
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(*batch), network(*batch))
    torch.testing.assert_close(scripted(batch[0]), network(batch[0]))
    torch.testing.assert_close(scripted.explain(*batch), network.explain(*batch))


@torch.inference_mode()
def test_patch_tokens_are_averaged_before_the_head_chunk_by_chunk(batch):
    tokens, averaged = classifier_of(3, "none"), classifier_of(3)
    assert tokens.encoder(batch[0][0]).ndim == 3
    torch.testing.assert_close(tokens.encode(batch[0]), averaged.encode(batch[0]))
    torch.testing.assert_close(tokens(*batch), averaged(*batch))


@pytest.mark.parametrize("pooling", ["token", "none"])
@torch.inference_mode()
def test_scripted_classifier_of_another_pooling_equals_the_eager_one(batch, pooling):
    network = classifier_of(4, pooling)
    torch.testing.assert_close(torch.jit.script(network)(*batch), network(*batch))


@torch.inference_mode()
def test_classifier_of_several_layers_classifies_and_is_refused_when_scripted(batch):
    network = classifier_of(4, layers=2)
    assert network.encode(batch[0]).shape == (B, T, 128)
    assert network(*batch).shape == (B, 3)
    with pytest.raises(ValueError, match="encoder test_vit: layers is 2, needs 1 in TorchScript"):
        torch.jit.script(network)


def test_names_in_the_state_dict_are_those_of_one_pooling_and_layer():
    names = [classifier_of(4, pooling, layers).state_dict().keys() for pooling, layers in (("avg", 1), ("none", 2))]
    assert names[0] == names[1]

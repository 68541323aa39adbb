import pytest
import torch
from monai.networks import nets
from torch import nn

from scripts.memory import checkpointing
from scripts.memory.measure import simulate_inference_step, simulate_training_step
from scripts.memory.tracking import track, track_inference_step, track_training_step
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head


def classifier() -> nn.Module:
    encoder = FrameEncoder("test_vit")
    return SequenceClassifier(encoder, make_head("gru", encoder.num_features, 3), chunk_frames=64)


VOLUME = (1, 1, 32, 32, 32)
CASES = {  # a network, the shape of its input, how it is trained
    "ViT": (classifier, (2, 3, 3, 64, 64), {}),
    "ViT under AMP": (classifier, (2, 3, 3, 64, 64), {"amp": True}),
    "ViT in two micro-batches": (classifier, (2, 3, 3, 64, 64), {"accumulation": 2}),
    "ViT recomputed": (classifier, (2, 3, 3, 160, 160), {"strategy": {"kind": "blocks"}}),
    "ViT in chunks": (classifier, (2, 3, 3, 96, 96), {"strategy": {"kind": "chunks", "frames": 2}}),
    "ViT with SGD": (classifier, (1, 2, 3, 160, 160), {"optimizer": "sgd_momentum"}),
    "GRU": (lambda: make_head("gru", 384, 3), (8, 20, 384), {}),
    "transformer": (lambda: make_head("transformer", 384, 3), (8, 20, 384), {}),
    "U-Net": (lambda: nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1), VOLUME, {}),
    "Attention U-Net": (lambda: nets.AttentionUnet(3, 1, 2, (8, 16), (2,)), VOLUME, {"amp": True}),
    "DynUNet": (lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[8, 8, 8]), VOLUME, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_simulated_for_a_cpu_is_what_a_run_on_it_holds(case):
    make_network, shape, options = CASES[case]
    said = simulate_training_step(make_network, lambda: (torch.empty(shape),), device_type="cpu", **options)
    network, options = make_network(), dict(options)
    checkpointing.apply(network, options.pop("strategy", "none"))
    found = track_training_step(network, (torch.rand(shape),), **options)
    assert said.peak_bytes == pytest.approx(found.peak_bytes, rel=0.001)
    assert said.held_bytes == pytest.approx(found.held_bytes, rel=0.001)
    assert said.flops == found.flops
    for cause, size in found.by_cause.items():
        assert said.by_cause[cause] == pytest.approx(size, abs=0.001 * found.peak_bytes)
    assert set(said.by_module) == set(found.by_module)


def test_inference_is_simulated_as_it_runs():
    said = simulate_inference_step(classifier, lambda: (torch.empty(2, 3, 3, 64, 64),), device_type="cpu")
    found = track_inference_step(classifier(), (torch.rand(2, 3, 3, 64, 64),))
    assert (said.peak_bytes, said.flops, said.by_cause) == (found.peak_bytes, found.flops, found.by_cause)
    assert found.held_bytes == 0


def test_a_step_in_inference_mode_is_seen_through_its_composite_operators():
    network, frames = classifier().eval(), torch.rand(2, 3, 3, 64, 64)
    with torch.inference_mode():
        found = track(lambda: network(frames), network, [frames])
    assert found.flops == track_inference_step(network, (frames,)).flops > 0


def test_tracking_leaves_weights_and_hooks_as_they_were():
    network = classifier()
    before = {name: value.clone() for name, value in network.named_parameters()}
    track_training_step(network, (torch.rand(1, 2, 3, 32, 32),))
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    assert all(value.grad is None and not value._post_accumulate_grad_hooks for value in network.parameters())
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks


def test_a_loop_of_ones_own_is_told_by_cause():
    network = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    batch = torch.rand(128, 64)

    def step() -> None:
        network(batch).square().sum().backward()
        optimizer.step()

    found = track(step, network, [batch], optimizer)
    weights = 4 * (64 * 64 + 64)
    assert found.by_cause["weights"] == weights == 4 * sum(p.numel() for p in network.parameters())
    assert found.by_cause["input"] == 4 * 128 * 64
    assert found.by_cause["optimizer"] == 0
    assert found.allocated_bytes is None
    kept = track(lambda: network(batch), network, [batch], optimizer)
    assert kept.by_cause["gradients"] == weights  # of the step before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_what_is_simulated_for_a_card_is_near_what_its_allocator_counts(case):
    make_network, shape, options = CASES[case]
    said = simulate_training_step(make_network, lambda: (torch.empty(shape),), **options)
    network, options = make_network().cuda(), dict(options)
    checkpointing.apply(network, options.pop("strategy", "none"))
    found = track_training_step(network, (torch.rand(shape, device="cuda"),), **options)
    assert said.peak_bytes == pytest.approx(found.allocated_bytes, rel=0.1, abs=40e6)

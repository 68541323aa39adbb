"""Checkpointed networks: equal gradients, fewer bytes held, nothing else changed."""

import copy
import weakref

import pytest
import timm
import torch
from monai.networks import nets
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from scripts.memory.checkpointing import apply, strategies_for
from scripts.networks.classifier import SequenceClassifier


def vit(**options):
    return timm.create_model("vit_tiny_patch16_224", depth=4, img_size=32, num_classes=0, **options)


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2)
    )


def classifier():
    return SequenceClassifier(vit(), Last(), chunk_frames=3)


class Last(nn.Module):
    """The simplest head: logits (B, K) of the last frame's features (B, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, features, lengths=None, frame_times_ms=None):
        return self.linear(features[:, -1])


VOLUME = (2, 1, 16, 16, 16)
NETWORKS = {
    "vit": (vit, (3, 3, 32, 32)),
    "swin": (swin, (3, 3, 32, 32)),
    "classifier": (classifier, (2, 4, 3, 32, 32)),
    "unet": (lambda: nets.UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, dropout=0.2), VOLUME),
    "vnet": (lambda: nets.VNet(dropout_prob_down=0.2, dropout_prob_up=(0.2, 0.2)), VOLUME),
    "dynunet": (lambda: nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16]), VOLUME),
    "attentionunet": (lambda: nets.AttentionUnet(3, 1, 2, (4, 8, 16), (2, 2)), VOLUME),
    "swinunetr": (lambda: nets.SwinUNETR(1, 2, feature_size=12), (1, 1, 32, 32, 64)),
}


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive that operators made inside, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata)
        return out

    def freed(self, key) -> None:
        self.now -= self.sizes.pop(key)


def step(network, shape, seed=7):
    """Output, gradients, buffers of one training step, and the bytes it held between forward and backward."""
    torch.manual_seed(seed)
    image = torch.randn(shape)
    network.zero_grad()
    with LiveBytes() as live:
        logits = network.train()(image)
        held = live.now
        (logits.float() ** 2).mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    return logits.detach(), gradients, {name: b.clone() for name, b in network.named_buffers()}, held


@pytest.mark.parametrize("name", NETWORKS)
def test_every_strategy_keeps_gradients_and_statistics_and_holds_less(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    state = copy.deepcopy(network.state_dict())
    logits, gradients, buffers, held = step(network, shape)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    strategies = [strategy for strategy in strategies_for(network) if strategy["kind"] != "none"]
    assert len(strategies) >= 4
    for strategy in strategies:
        network.load_state_dict(state)
        logits_now, gradients_now, buffers_now, held_now = step(apply(network, strategy), shape)
        torch.testing.assert_close(logits_now, logits)
        assert gradients_now.keys() == gradients.keys() == dict(network.named_parameters()).keys()
        for key, gradient in gradients.items():
            scale = max(float(gradient.abs().max()), 0.01 * largest)  # a bias before batch norm: rounding alone
            torch.testing.assert_close(
                gradients_now[key], gradient, rtol=1e-5, atol=1e-5 * scale, msg=f"{strategy}: {key}"
            )
        torch.testing.assert_close(buffers_now, buffers, rtol=0, atol=0)
        assert held_now < held, strategy

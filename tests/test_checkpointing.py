"""Checkpointed networks: equal gradients, fewer bytes held, nothing else changed."""

import copy
import weakref

import pytest
import timm
import torch
from monai.networks import nets
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from scripts.memory import recomputation
from scripts.memory.blocks import blocks_of
from scripts.memory.checkpointing import apply, remove, strategies_for
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

SLOW = ("vnet", "swinunetr")  # networks that cannot be made small


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive that operators made inside, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        taken = {a.untyped_storage()._cdata for a in tree_iter((args, kwargs)) if isinstance(a, torch.Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes.keys() | taken:
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
def test_every_strategy_keeps_gradients_and_statistics_and_holds_less(name, monkeypatch):
    monkeypatch.setattr(recomputation, "_LARGE", 1)  # give tensors of this size back too
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    state = copy.deepcopy(network.state_dict())
    logits, gradients, buffers, held = step(network, shape)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    strategies = [strategy for strategy in strategies_for(network) if strategy["kind"] != "none"]
    assert len(strategies) >= 4
    if name in SLOW:
        strategies = [{"kind": "selective", "flops_per_value": 200}, {"kind": "blocks"}]
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


def test_blocks_are_found_by_structure_at_every_depth():
    found = {name: [part.rpartition(".")[0] for part in blocks_of(make())] for name, (make, _) in NETWORKS.items()}
    assert found["vit"] == ["blocks"] * 4
    assert found["classifier"] == ["encoder.blocks"] * 4
    assert found["swin"].count("layers.0.blocks") == found["swin"].count("layers.1.blocks") == 2
    assert blocks_of(nets.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16])) == [
        *("input_block", "downsamples.0", "bottleneck", "upsamples.0", "upsamples.1"),
    ]
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


@pytest.mark.parametrize("strategy", [{"kind": "blocks"}, {"kind": "selective"}, {"kind": "segments", "number": 2}])
def test_an_applied_strategy_leaves_names_copies_and_scripted_networks_as_they_were(strategy):
    torch.manual_seed(0)
    network, image = vit(), torch.randn(2, 3, 32, 32)
    names, plain = list(network.state_dict()), network.eval()(image)
    assert apply(network, strategy) is network
    assert list(network.state_dict()) == names
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.testing.assert_close(copied(image), plain, rtol=0, atol=0)  # the copy runs its own blocks
    assert step(copied, (2, 3, 32, 32))[3] < step(remove(copied), (2, 3, 32, 32))[3]
    assert not any("_call_impl" in vars(module) for module in copied.modules())


def test_a_checkpointed_network_scripts_as_if_plain():
    network = apply(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), {"kind": "segments", "number": 3})
    scripted = torch.jit.script(network)
    features = torch.randn(2, 4)
    torch.testing.assert_close(scripted(features), remove(network)(features))


@pytest.mark.parametrize("kind", ["blocks", "segments", "selective"])
def test_an_attention_mask_does_not_switch_checkpointing_off(kind):
    network = Calling(vit()).train()
    image, mask = torch.randn(3, 3, 32, 32), torch.ones(5, 5, dtype=torch.bool)
    held, gradients = [], []
    for strategy in ("none", kind):
        network.zero_grad()
        with LiveBytes() as live:
            logits = apply(network, strategy)(image, mask)
            held.append(live.now)
        (logits**2).sum().backward()
        gradients.append(network.body.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)
    assert held[1] < 0.75 * held[0]


class Calling(nn.Module):
    """A network that gives its encoder a mask."""

    def __init__(self, encoder) -> None:
        super().__init__()
        self.body = encoder

    def forward(self, image, mask):
        return self.body.forward_features(image, attn_mask=mask)


@pytest.mark.parametrize("strategy", [{"kind": "blocks"}, {"kind": "selective", "flops_per_value": 1000}])
def test_dropout_keeps_its_mask_and_bfloat16_its_gradients(strategy):
    def gradients(strategy):
        torch.manual_seed(0)
        network = apply(vit(proj_drop_rate=0.3, drop_path_rate=0.3), strategy).train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (network(torch.randn(3, 3, 32, 32)).float() ** 2).mean()
        loss.backward()
        loss_again = (network(torch.randn(3, 3, 32, 32)) ** 2).mean()  # a second micro-batch adds to the gradients
        loss_again.backward()
        return {name: parameter.grad for name, parameter in network.named_parameters()}

    torch.testing.assert_close(gradients(strategy), gradients("none"), rtol=1e-5, atol=1e-6)


def test_a_forward_pass_without_gradients_runs_the_network_itself():
    network = apply(vit(), "selective").eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), LiveBytes() as live:
        features = network(image)
        assert live.now <= 2 * features.untyped_storage().nbytes()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    assert not network(image).requires_grad


def test_a_value_overwritten_after_it_was_used_is_computed_in_time():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            y = self.linear(x)
            z = torch.tanh(torch.cat((y, x), dim=1)) ** 2  # starts from y
            y.mul_(0)
            return z.sum() + y.sum()

    def gradient(strategy):
        torch.manual_seed(0)
        network = apply(Overwriting(), strategy)
        network(torch.randn(4, 8)).backward()
        return network.linear.weight.grad

    torch.testing.assert_close(gradient("selective"), gradient("none"))


@pytest.mark.parametrize(
    "strategy, message",
    [
        ({"kind": "block"}, "kind is block, needs one of .* Did you mean blocks?"),
        ({"kind": "blocks", "evry": 2}, "option is evry, needs one of every. Did you mean every?"),
        ({"kind": "blocks", "every": 0}, "every is 0, needs a whole number from 1"),
        ({"kind": "modules", "names": ["block.1"]}, "names is block.1, needs modules such as blocks.1"),
        ({"kind": "segments", "number": 9}, "number is 9, needs at most 4"),
        ({"kind": "selective", "flops_per_value": float("nan")}, "flops_per_value is nan, needs a number from 0"),
    ],
)
def test_a_strategy_that_is_none_says_in_one_line_what_is(strategy, message):
    with pytest.raises(ValueError, match=message) as error:
        apply(vit(), strategy)
    assert "\n" not in str(error.value)


def test_chunks_of_an_encoder_that_normalises_over_the_batch_are_refused():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    with pytest.raises(ValueError, match="an encoder without BatchNorm"):
        apply(encoder, {"kind": "chunks", "frames": 2})


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["blocks", "selective", "chunks"])
def test_distributed_data_parallel_trains_a_checkpointed_classifier(kind, one_process):
    torch.manual_seed(0)
    network = classifier()
    _, plain, _, held = step(network, (2, 4, 3, 32, 32))
    _, gradients, _, held_now = step(nn.parallel.DistributedDataParallel(apply(network, kind)), (2, 4, 3, 32, 32))
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[f"module.{name}"], gradient, rtol=1e-5, atol=1e-6)
    assert held_now < held

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts.memory import cuda
from scripts.memory.measure import simulate_inference_step, simulate_training_step, training_steps
from scripts.memory.storages import CAUSES
from scripts.networks.encoder import FrameEncoder

WIDTH, ROWS = 256, 1024
MATRIX = 4 * WIDTH * WIDTH  # bytes of a float32 weight
VALUES = 4 * ROWS * WIDTH  # bytes of a float32 activation


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.GELU(), nn.Linear(WIDTH, WIDTH, bias=False))


def rows() -> tuple[torch.Tensor]:
    return (torch.empty(ROWS, WIDTH),)


def simulated(make_network=two_layers, make_inputs=rows, **options):
    return simulate_training_step(make_network, make_inputs, **{"device_type": "cpu", **options})


def held(image_count: int, **options) -> int:
    encoder = FrameEncoder("vit_small_patch14_reg4_dinov2")
    frames = (image_count, 3, 224, 224)
    return simulate_training_step(lambda: encoder, lambda: (torch.empty(frames),), **options).held_bytes


def test_activations_of_a_vit_image_are_what_the_design_says_and_not_40_mb():
    with_fp32, with_amp = (held(2, amp=amp) - held(1, amp=amp) for amp in (False, True))
    assert with_fp32 / 1e6 == pytest.approx(87.1, abs=0.05)
    assert with_amp / 1e6 == pytest.approx(48.9, abs=0.05)


def test_every_byte_of_two_layers_is_where_it_should_be():
    found = simulated()
    assert list(found.by_cause) == list(CAUSES)
    assert sum(found.by_cause.values()) == sum(found.by_module.values()) == found.peak_bytes
    assert found.peak_bytes == max(alive for alive, _ in found.timeline)
    # GELU's input and its output, which the second layer keeps; its output, which the loss keeps; the squares' mean
    assert 3 * VALUES <= found.held_bytes < 3 * VALUES + 64
    assert found.by_cause["weights"] == 2 * MATRIX
    assert found.by_cause["input"] == VALUES
    assert 4 * MATRIX <= found.by_cause["optimizer"] <= 4 * MATRIX + 64  # two moments; the steps are a number each
    assert found.flops == 2 * ROWS * WIDTH * WIDTH * (2 + 3)  # the first layer needs no gradient of its input
    assert list(dict.fromkeys(phase for _, phase in found.timeline)) == ["forward", "backward", "optimizer"]


def test_modules_own_what_their_forward_and_backward_allocate():
    found = simulated(accumulation=2)
    assert set(found.by_module) <= {"0", "1", "2", "(outside)"}
    assert found.by_module["1"] >= VALUES
    inference = simulate_inference_step(two_layers, rows, device_type="cpu")
    assert inference.by_cause["activations"] == inference.by_cause["gradients"] == inference.held_bytes == 0
    assert inference.peak_bytes == 2 * MATRIX + 3 * VALUES  # input, an input and an output of one operator
    assert inference.flops == 2 * ROWS * WIDTH * WIDTH * 2


def test_views_and_results_in_place_cost_nothing():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(WIDTH))

        def forward(self, x):
            return (x.view(-1, WIDTH).t().unsqueeze(0).squeeze(0).t() * self.weight).relu_().mul_(2.0)[:1]

    found = simulate_inference_step(Views, rows, device_type="cpu")
    assert found.peak_bytes == 4 * WIDTH + 2 * VALUES


def test_gradients_stay_while_all_but_the_first_micro_batch_run_and_flops_grow():
    one, two, five = (simulated(accumulation=number) for number in (1, 2, 5))
    assert two.peak_bytes == five.peak_bytes >= one.peak_bytes + MATRIX
    assert two.by_cause["gradients"] >= 2 * MATRIX > one.by_cause["gradients"]
    assert five.flops == 5 * one.flops


def test_a_strategy_lowers_the_peak_and_raises_flops_and_leaves_the_network_alone():
    network = nn.Sequential(*(two_layers() for _ in range(6)))
    inner = {"kind": "modules", "names": [str(n) for n in range(6)]}
    with training_steps(lambda: network, device_type="cpu") as simulate:
        plain, blocks, again = (simulate(rows, strategy) for strategy in (None, inner, None))
    assert blocks.held_bytes < plain.held_bytes / 2
    assert blocks.peak_bytes < plain.peak_bytes
    assert blocks.flops > plain.flops == again.flops
    assert again.peak_bytes == plain.peak_bytes
    assert all(type(weight) is nn.Parameter and weight.grad is None for weight in network.parameters())


def test_autocast_halves_what_matrix_products_keep_and_its_weights_count():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(super().forward(x))

    found = simulated(lambda: Doubled(WIDTH, WIDTH, bias=False), amp=True, loss=lambda y: y.sum())
    halved = VALUES // 2 + VALUES // 2 + MATRIX // 2  # both inputs; one copy of the weight, used twice
    assert halved <= found.held_bytes <= halved + VALUES // 2 + 64


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (lambda x: F.layer_norm(x, x.shape[-1:]), torch.float32),
        (lambda x: x.softmax(dim=-1), torch.float32),
        (lambda x: F.group_norm(x, 2), torch.float32),
        (lambda x: F.interpolate(x, scale_factor=2.0), torch.float32),
        (lambda x: x.exp(), torch.float32),
        (lambda x: F.prelu(x.float(), torch.ones(1)), torch.float16),
        (lambda x: F.max_pool3d(x, 2), torch.float16),
        (lambda x: F.avg_pool3d(x, 2), torch.float16),
        (lambda x: F.conv3d(x.float(), torch.ones(4, 4, 1, 1, 1)), torch.float16),
        (lambda x: F.instance_norm(x), torch.float16),
        (lambda x: F.gelu(x), torch.float16),
    ],
)
def test_on_a_card_autocast_takes_cuda_precision_and_not_the_cpu_one(call, dtype):
    seen = []

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1))

        def forward(self, x):
            seen.append(call(x.half()).dtype)
            return x * self.weight

    simulate_inference_step(Calls, lambda: (torch.empty(2, 4, 4, 4, 4),), amp=True)
    assert seen == [dtype]


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_on_a_card_keeps_no_matrix_of_frames_by_frames(amp, mask, dropout):
    length, width = 1000, 20

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.split = nn.Linear(width, 3 * width)

        def forward(self, x):
            query, key, value = self.split(x).unflatten(-1, (3, 1, width)).permute(2, 0, 3, 1, 4)
            seen = None if mask is None else torch.ones(x.shape[0], 1, 1, length, dtype=getattr(torch, mask))
            return F.scaled_dot_product_attention(query, key, value, seen, dropout)

    found = simulate_training_step(Attention, lambda: (torch.empty(8, length, width),), amp=amp)
    matrix = 8 * length * length * 2
    assert found.peak_bytes - cuda.CUBLAS_WORKSPACE_BYTES < matrix
    assert any("flash" in sentence for sentence in found.assumed)
    with torch.autocast("cpu", torch.float16):  # and it leaves no trace
        assert F.layer_norm(torch.ones(2, 8).half(), (8,)).dtype == torch.float16


def test_storages_on_a_card_are_whole_blocks_of_the_allocator():
    found = simulate_inference_step(lambda: nn.Linear(3, 3), lambda: (torch.empty(1, 3),))
    assert found.by_cause["weights"] == 2 * cuda.BLOCK_BYTES
    assert found.by_cause["transient"] == cuda.CUBLAS_WORKSPACE_BYTES + cuda.BLOCK_BYTES


class SteeredByValues(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make_network", "make_inputs", "options", "message"),
    [
        (lambda: SteeredByValues(3, 3), lambda: (torch.empty(1, 3),), {}, "SteeredByValues: forward is steered by"),
        (lambda: nn.Linear(3, 3), lambda: (torch.empty(1, 4),), {}, r"Linear: input is \(1, 4\), needs a shape"),
        (nn.Identity, rows, {}, "parameters that require a gradient is 0"),
        (two_layers, rows, {"optimizer": "adamwww"}, "optimizer is adamwww, needs one of adamw"),
        (two_layers, rows, {"accumulation": 0}, "accumulation is 0"),
        (two_layers, rows, {"accumulation": True}, "accumulation is True"),
        (two_layers, rows, {"device_type": "tpu"}, "device_type is tpu, needs one of cuda, cpu"),
        (two_layers, rows, {"strategy": {"kind": "blokcs"}}, "kind is blokcs"),
    ],
)
def test_what_cannot_be_simulated_is_told_in_one_line(make_network, make_inputs, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        simulate_training_step(make_network, make_inputs, **options)
    assert "\n" not in str(caught.value)

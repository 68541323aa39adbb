"""Temporal heads: padding never counts, order and time count where they should, exports say what eager says."""

import io
import math

import numpy as np
import onnxruntime
import pytest
import torch

from scripts.networks.heads import HEADS, TemporalHead, make_head
from scripts.networks.time_encoding import real_frames

B, T, D, K = 5, 7, 6, 3
LENGTHS = torch.tensor([7, 1, 4, 6, 2])
ORDERLESS = ("mean", "max", "attention")  # without times
VARIANTS = [
    *((name, {}) for name in HEADS),
    ("gru", {"bidirectional": False}),
    ("lstm", {"bidirectional": False, "readout": "last"}),
    ("gru", {"num_layers": 2, "readout": "last"}),
    ("lstm", {"num_layers": 2}),
    ("tcn", {"num_layers": 1}),
    ("transformer", {"num_layers": 1, "hidden_size": 6}),
]
every_head = pytest.mark.parametrize(("name", "options"), VARIANTS)
every_name = pytest.mark.parametrize("name", HEADS)


def head_of(name: str, **options: object) -> TemporalHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = make_head(name, D, K, **({"hidden_size": 8} | options))
    generator = torch.Generator().manual_seed(1)
    head.fit_scale(torch.randn(D, generator=generator), torch.rand(D, generator=generator) + 0.5)
    return head.eval()


def batch_of(lengths: torch.Tensor = LENGTHS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, T, D) with zeros on padding, times (B, T) with NaN on padding and here and there."""
    generator = torch.Generator().manual_seed(seed)
    length = int(lengths.max())
    features = torch.randn(len(lengths), length, D, generator=generator)
    times = torch.rand(len(lengths), length, generator=generator).mul(5000).cumsum(dim=1)
    times[torch.rand(times.shape, generator=generator) < 0.2] = torch.nan
    mask = torch.arange(length)[None] < lengths[:, None]
    return features * mask[:, :, None], times.masked_fill(~mask, torch.nan)


@every_head
@torch.inference_mode()
def test_logits_weights_and_prefixes_of_a_sequence_are_the_same_alone_and_padded_in_a_batch(name, options):
    head = head_of(name, **options)
    features, times = batch_of()
    logits, weights, prefixes = head.explain(features, LENGTHS, times)
    for i, length in enumerate(LENGTHS.tolist()):
        alone = head.explain(features[i : i + 1, :length], None, times[i : i + 1, :length])
        padded = logits[i : i + 1], weights[i : i + 1, :length], prefixes[i : i + 1, :length]
        torch.testing.assert_close(padded, alone)


@pytest.mark.parametrize("value", [1e6, torch.nan, -torch.inf])
@every_head
@torch.inference_mode()
def test_nothing_said_of_a_sequence_depends_on_what_stands_in_its_padding(name, options, value):
    head = head_of(name, **options)
    features, times = batch_of()
    padding = ~real_frames(features, LENGTHS)
    assert padding.sum() == B * T - LENGTHS.sum()
    wanted = head.explain(features, LENGTHS, times)
    features[padding], times[padding] = value, value
    torch.testing.assert_close(head.explain(features, LENGTHS, times), wanted, rtol=0, atol=0)


@every_head
def test_gradients_are_finite_when_padding_and_times_are_not_and_reach_every_parameter(name, options):
    head = head_of(name, **options).train()
    features, times = batch_of()
    features[~real_frames(features, LENGTHS)] = torch.nan
    head(features, LENGTHS, times).square().sum().backward()
    gradients = {parameter: p.grad for parameter, p in head.named_parameters()}
    assert [parameter for parameter, grad in gradients.items() if grad is None or not torch.isfinite(grad).all()] == []
    assert {"project.weight", "elapsed.weight", "appearance.weight", "classify.weight"} <= gradients.keys()


@every_head
@torch.inference_mode()
def test_weights_sum_to_one_over_real_frames_and_are_zero_on_padding(name, options):
    features, times = batch_of()
    weights = head_of(name, **options).explain(features, LENGTHS, times)[1]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(B))
    assert bool((weights[~real_frames(features, LENGTHS)] == 0).all())
    assert bool((weights >= 0).all())


@torch.inference_mode()
def test_weights_of_the_simple_heads_are_even_or_all_on_the_last_frame():
    features, times = batch_of()
    mask = real_frames(features, LENGTHS)
    even = head_of("mean").explain(features, LENGTHS, times)[1]
    torch.testing.assert_close(even, mask / LENGTHS[:, None])
    last = torch.nn.functional.one_hot(LENGTHS - 1, T).float()
    for name, options in (("last", {}), ("gru", {"readout": "last"})):
        torch.testing.assert_close(head_of(name, **options).explain(features, LENGTHS, times)[1], last)


@torch.inference_mode()
def test_weight_of_a_frame_under_max_is_its_share_of_channels_won_and_ties_are_shared():
    head = head_of("max", use_times=False)
    features = torch.randn(1, 4, D, generator=torch.Generator().manual_seed(3))
    head.project.bias.data[0] = -100.0  # a channel that is zero in all frames
    weights = head.explain(features)[1][0]
    x = (features - head.mean) / head.std
    states = torch.relu(head.project(x - x.mean(dim=1, keepdim=True)))[0]  # (T, M)
    won = states == states.amax(dim=0)
    assert won[:, 0].tolist() == [True] * 4
    torch.testing.assert_close(weights, (won / won.sum(dim=0)).mean(dim=1))


@every_head
@torch.inference_mode()
def test_prefix_logits_are_those_of_the_sequence_cut_there(name, options):
    head = head_of(name, **options)
    features, times = batch_of()
    logits, _, prefixes = head.explain(features, LENGTHS, times)
    assert prefixes.shape == (B, T, K)
    compared = 0
    for i, length in enumerate(LENGTHS.tolist()):
        for end in range(1, length + 1):
            cut = head(features[i : i + 1, :end], None, times[i : i + 1, :end])
            torch.testing.assert_close(prefixes[i : i + 1, end - 1], cut)
            compared += 1
        torch.testing.assert_close(prefixes[i, length - 1 :], logits[i].expand(T - length + 1, K))
    assert compared == LENGTHS.sum()


@every_head
@torch.inference_mode()
def test_order_of_frames_changes_the_logits_only_of_a_head_that_knows_it(name, options):
    head = head_of(name, use_times=False, **options)
    features, _ = batch_of(torch.full((B,), T))
    turned = head(features.flip(1))
    assert torch.allclose(turned, head(features), atol=1e-5) is (name in ORDERLESS)


@every_name
@torch.inference_mode()
def test_times_change_the_logits_only_of_a_head_that_uses_them(name):
    features, times = batch_of()
    for use_times in (True, False):
        head = head_of(name, use_times=use_times)
        same = torch.equal(head(features, LENGTHS, times), head(features, LENGTHS, times * 3))
        assert same is not use_times


@every_name
@torch.inference_mode()
def test_times_left_out_mean_that_every_time_is_unknown(name):
    features, _ = batch_of()
    head, unknown = head_of(name), torch.full((B, T), torch.nan)
    torch.testing.assert_close(head.explain(features, LENGTHS), head.explain(features, LENGTHS, unknown))


@every_name
@torch.inference_mode()
def test_lengths_left_out_mean_that_every_frame_is_real(name):
    full = torch.full((B,), T)
    features, times = batch_of(full)
    head = head_of(name)
    torch.testing.assert_close(head.explain(features, None, times), head.explain(features, full, times))


@every_head
@torch.inference_mode()
def test_one_frame_gets_all_the_weight_and_finite_logits(name, options):
    logits, weights, prefixes = head_of(name, **options).explain(torch.randn(2, 1, D), None, torch.zeros(2, 1))
    assert bool(torch.isfinite(logits).all())
    torch.testing.assert_close(weights, torch.ones(2, 1))
    torch.testing.assert_close(prefixes[:, 0], logits)


@torch.inference_mode()
def test_weights_follow_the_change_between_frames_and_not_what_all_frames_share():
    features, times = batch_of()
    head = head_of("gru")
    shared = torch.randn(B, 1, D, generator=torch.Generator().manual_seed(5))
    logits, weights, _ = head.explain(features, LENGTHS, times)
    moved_logits, moved_weights, _ = head.explain(features + shared, LENGTHS, times)
    torch.testing.assert_close(moved_weights, weights)
    assert not torch.allclose(moved_logits, logits)  # which reaches the classifier beside them


@torch.inference_mode()
def test_bidirectional_last_state_has_seen_the_last_frame_first():
    """The way back ends at frame 0; read out there, it depends on every frame."""
    head = head_of("gru", readout="last", use_times=False)
    features, _ = batch_of(torch.full((B,), T))
    x = (features - head.mean) / head.std
    x = torch.relu(head.project(x - x.mean(dim=1, keepdim=True)))
    layer = head.layers[0]
    wanted = torch.cat([layer.onward(x)[1][0], layer.back(x.flip(1))[1][0]], dim=-1)
    found, _ = head.readout(layer(x, real_frames(features, None)), real_frames(features, None))
    torch.testing.assert_close(found, wanted)


@every_head
@torch.inference_mode()
def test_scripted_head_equals_the_eager_one_on_batches_of_random_lengths(name, options):
    head = head_of(name, **options)
    scripted = torch.jit.script(head)
    generator = torch.Generator().manual_seed(2)
    for seed in range(4):
        lengths = torch.randint(1, 9, (4,), generator=generator)
        features, times = batch_of(lengths, seed)
        for arguments in ((features,), (features, lengths), (features, lengths, times)):
            torch.testing.assert_close(scripted(*arguments), head(*arguments))
        torch.testing.assert_close(scripted.explain(features, lengths, times), head.explain(features, lengths, times))


def check_onnx(model: bytes, head: TemporalHead) -> None:
    """The exported model says what the head says, whatever B and T, random lengths, NaN on padding."""
    session = onnxruntime.InferenceSession(model)
    names = [value.name for value in session.get_inputs()]
    generator = torch.Generator().manual_seed(2)
    for seed, (batch, longest) in enumerate([(B, T), (1, 1), (2, 30), (9, 3)]):
        lengths = torch.randint(1, longest + 1, (batch,), generator=generator)
        features, times = batch_of(lengths, seed)
        features[~real_frames(features, lengths)] = torch.nan
        inputs = zip(names, (features, lengths, times), strict=True)
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs})
        np.testing.assert_allclose(found, head(features, lengths, times).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",  # torch 2.15, as the next four
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning",  # checks of nn.GRU's arguments
    "ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning",  # its state is made by the model
)
@every_head
@torch.inference_mode()
def test_onnx_by_tracing_equals_the_eager_head_on_batches_of_other_sizes_and_random_lengths(name, options):
    head, names = head_of(name, **options), ["features", "lengths", "frame_times_ms"]
    dynamic = [{0: "batch", 1: "frames"}, {0: "batch"}, {0: "batch", 1: "frames"}]
    features, times = batch_of()
    file = io.BytesIO()
    axes = dict(zip(names, dynamic, strict=True))
    torch.onnx.export(head, (features, LENGTHS, times), file, dynamo=False, input_names=names, dynamic_axes=axes)
    check_onnx(file.getvalue(), head)


unless_static = pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.12"),
    reason="torch 2.11 exports a recurrent layer for one number of frames; tracing does not",
)


@pytest.mark.filterwarnings(
    "ignore:_check_is_size will be removed:FutureWarning",  # torch 2.15 and its decompositions, as the next
    "ignore:The tensor attributes self.layers:UserWarning",  # nn.GRU lists its weights a second time
)
@pytest.mark.parametrize("name", [pytest.param("gru", marks=unless_static), "transformer"])  # seconds each
@torch.inference_mode()
def test_onnx_by_torch_export_equals_the_eager_head_on_batches_of_other_sizes_and_random_lengths(name):
    head = head_of(name)
    features, times = batch_of()
    free = torch.export.Dim.DYNAMIC
    shapes = {0: free, 1: free}, {0: free}, {0: free, 1: free}
    program = torch.onnx.export(head, (features, LENGTHS, times), dynamo=True, dynamic_shapes=shapes, verbose=False)
    check_onnx(program.model_proto.SerializeToString(), head)


@every_head
def test_checkpoint_of_384_features_and_20_classes_is_below_five_megabytes(name, options):
    file = io.BytesIO()
    torch.save(make_head(name, 384, 20, **options).state_dict(), file)
    assert file.tell() < 5e6


@torch.inference_mode()
def test_temperature_divides_the_logits_and_travels_with_statistics_in_the_state_dict():
    features, times = batch_of()
    trained, fresh = head_of("gru"), make_head("gru", D, K, hidden_size=8).eval()
    cold = trained(features, LENGTHS, times)
    trained.set_temperature(2.5)
    torch.testing.assert_close(trained(features, LENGTHS, times), cold / 2.5)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(features, LENGTHS, times), trained(features, LENGTHS, times))
    torch.testing.assert_close(trained.explain(features, LENGTHS, times)[2][:, -1], cold / 2.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_that_cannot_divide_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*, needs a finite number above 0"):
        head_of("mean").set_temperature(temperature)


@torch.inference_mode()
def test_training_adds_noise_to_features_and_their_mean_as_strong_as_dropout_and_width_ask():
    features = torch.randn(200, 10, 16, generator=torch.Generator().manual_seed(0))
    seen = {}
    for dropout in (0.3, 0.1):
        head = make_head("mean", 16, K, hidden_size=8, dropout=dropout).train()
        for path in ("project", "appearance"):
            getattr(head, path).register_forward_hook(lambda _, inputs, __, path=path: seen.update({path: inputs[0]}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head(features)
        mean = features.mean(dim=1, keepdim=True)
        for path, clean, strength in (("project", features - mean, 0.12), ("appearance", mean[:, 0], 0.24)):
            assert float((seen[path] - clean).std()) == pytest.approx(strength * dropout * 4, rel=0.05)
            assert abs(float((seen[path] - clean).mean())) < 0.02


@every_head
@torch.inference_mode()
def test_training_mode_without_dropout_says_what_the_head_says_afterwards(name, options):
    head = head_of(name, dropout=0.0, **options)
    features, times = batch_of()
    wanted = head(features, LENGTHS, times)
    torch.testing.assert_close(head.train()(features, LENGTHS, times), wanted, rtol=0, atol=0)


@torch.inference_mode()
def test_standardised_features_give_the_logits_of_an_unscaled_head():
    """Features (x - mean) / std into a head without statistics: the same as x into one with them."""
    features, times = batch_of(torch.full((B,), T))
    head = head_of("gru")
    wanted = head(features, None, times)
    scaled = (features - head.mean) / head.std
    head.fit_scale(torch.zeros(D), torch.ones(D))
    torch.testing.assert_close(head(scaled, None, times), wanted)


@torch.inference_mode()
def test_feature_that_never_varied_in_training_keeps_logits_finite():
    head = head_of("gru")
    head.fit_scale(torch.zeros(D), torch.zeros(D))
    assert bool(torch.isfinite(head(batch_of()[0], LENGTHS)).all())


@every_name
@torch.inference_mode()
def test_half_precision_features_give_nearly_the_same_logits(name):
    features, times = batch_of()
    head = head_of(name)
    logits = head(features.half(), LENGTHS, times)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(features, LENGTHS, times), rtol=0, atol=5e-3)


def test_options_left_at_none_are_the_heads_own_whichever_head_it_is():
    plain, nones = make_head("mean", D, K), make_head("mean", D, K, num_layers=None, readout=None, dropout=None)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in nones.parameters()]
    wide = make_head("gru", D, K, hidden_size=12, num_layers=2, bidirectional=False)
    assert (len(wide.layers), wide.layers[1].onward.hidden_size, wide.classify.out_features) == (2, 12, K)


def test_unknown_head_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=f"head_name is vit, needs one of {', '.join(HEADS)}"):
        make_head("vit", D, K)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean", {"num_layers": 2}, "head mean: num_layers is 2, needs a head that has it; mean has hidden_size, "),
        ("tcn", {"readout": "last"}, "head tcn: readout is last, needs a head that has it"),
        ("gru", {"widths": 2}, "head gru: widths is 2, needs a head that has it; gru has hidden_size, dropout"),
        ("gru", {"readout": "best"}, "readout is best, needs one of attention, last"),
        ("gru", {"num_layers": 0}, "num_layers is 0, needs a whole number of at least 1"),
        ("gru", {"num_layers": "two"}, "num_layers is two, needs a whole number"),
        ("gru", {"num_layers": True}, "num_layers is True, needs a whole number"),
        ("gru", {"hidden_size": -3}, "hidden_size is -3, needs a whole number"),
        (
            "gru",
            {"hidden_size": 10**9},
            "hidden_size is 1000000000, needs a whole number of at least 1 and at most 2048",
        ),
        ("tcn", {"num_layers": 10**8}, "num_layers is 100000000, needs a whole number of at least 1 and at most 16"),
        ("gru", {"dropout": 1.0}, "dropout is 1.0, needs a number from 0.0 to below 1.0"),
        ("gru", {"bidirectional": "no"}, "bidirectional is no, needs true or false"),
        ("mean", {"use_times": 1}, "use_times is 1, needs true or false"),
    ],
)
def test_option_that_the_head_does_not_have_or_cannot_take_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_head(name, D, K, **options)


@pytest.mark.parametrize("field", ["num_features", "num_classes"])
def test_head_without_features_or_classes_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        make_head("gru", **{"num_features": D, "num_classes": K, field: 0})

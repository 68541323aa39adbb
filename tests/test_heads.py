"""Temporal heads: padding never counts, times may be unknown, statistics travel with the weights."""

import pytest
import torch

from scripts.networks.heads import TIME_FEATURES, GRUHead, encode_times, make_head, real_frames

B, T, D, K = 5, 7, 6, 3
LENGTHS = torch.tensor([7, 1, 4, 6, 2])


def head_of(**options: object) -> GRUHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = GRUHead(D, K, hidden_size=8, **options)
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


@pytest.mark.parametrize("use_times", [True, False])
@torch.inference_mode()
def test_logits_and_weights_of_a_sequence_are_the_same_alone_and_padded_in_a_batch(use_times):
    head = head_of(use_times=use_times)
    features, times = batch_of()
    logits, weights = head.weigh(features, LENGTHS, times)
    for i, length in enumerate(LENGTHS.tolist()):
        alone, its_weights = head.weigh(features[i : i + 1, :length], None, times[i : i + 1, :length])
        torch.testing.assert_close(logits[i : i + 1], alone)
        torch.testing.assert_close(weights[i : i + 1, :length], its_weights)


@pytest.mark.parametrize("value", [1e6, -1e6, torch.nan, torch.inf])
@torch.inference_mode()
def test_logits_ignore_what_stands_in_padded_frames_and_their_times(value):
    head = head_of()
    features, times = batch_of()
    padding = ~real_frames(features, LENGTHS)
    assert padding.sum() == B * T - LENGTHS.sum()
    wanted = head.weigh(features, LENGTHS, times)
    features, times = features.clone(), times.clone()
    features[padding], times[padding] = value, value
    torch.testing.assert_close(head.weigh(features, LENGTHS, times), wanted, rtol=0, atol=0)


def test_gradients_stay_finite_when_padding_and_times_are_not():
    head = head_of().train()
    features, times = batch_of()
    features[~real_frames(features, LENGTHS)] = torch.nan
    head(features, LENGTHS, times).sum().backward()
    finite = {name: bool(torch.isfinite(p.grad).all()) for name, p in head.named_parameters()}
    assert finite == dict.fromkeys(finite, True)
    assert {"project.weight", "gru.weight_hh_l0", "classify.weight"} <= finite.keys()


@torch.inference_mode()
def test_weights_sum_to_one_over_real_frames_and_are_zero_on_padding():
    features, times = batch_of()
    weights = head_of().weigh(features, LENGTHS, times)[1]
    mask = real_frames(features, LENGTHS)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(B))
    assert bool((weights[~mask] == 0).all())
    assert bool((weights[mask] > 0).all())


@torch.inference_mode()
def test_weights_follow_the_change_between_frames_and_not_what_all_frames_share():
    features, times = batch_of()
    head = head_of()
    shared = torch.randn(B, 1, D, generator=torch.Generator().manual_seed(5))
    logits, weights = head.weigh(features, LENGTHS, times)
    moved_logits, moved_weights = head.weigh(features + shared, LENGTHS, times)
    torch.testing.assert_close(moved_weights, weights)
    assert not torch.allclose(moved_logits, logits)  # which reaches the classifier beside them


@torch.inference_mode()
def test_one_frame_gets_all_the_weight_and_finite_logits():
    logits, weights = head_of().weigh(torch.randn(2, 1, D), torch.tensor([1, 1]), torch.zeros(2, 1))
    assert logits.shape == (2, K)
    assert bool(torch.isfinite(logits).all())
    torch.testing.assert_close(weights, torch.ones(2, 1))


@torch.inference_mode()
def test_lengths_left_out_mean_that_every_frame_is_real():
    features, times = batch_of(torch.full((B,), T))
    head = head_of()
    torch.testing.assert_close(head(features, None, times), head(features, torch.full((B,), T), times), rtol=0, atol=0)


@torch.inference_mode()
def test_times_left_out_mean_that_every_time_is_unknown():
    features, _ = batch_of()
    head = head_of()
    unknown = torch.full((B, T), torch.nan)
    torch.testing.assert_close(head(features, LENGTHS), head(features, LENGTHS, unknown), rtol=0, atol=0)


@torch.inference_mode()
def test_times_change_the_logits_only_of_a_head_that_uses_them():
    features, times = batch_of()
    for use_times in (True, False):
        head = head_of(use_times=use_times)
        same = torch.equal(head(features, LENGTHS, times), head(features, LENGTHS, times * 3))
        assert same is not use_times


def test_encoded_times_are_logs_of_seconds_and_zero_where_unknown_or_padded():
    times = torch.tensor([[0.0, 100.0, torch.nan, 1000.0, 5000.0, 7000.0]])
    mask = torch.tensor([[True] * 5 + [False]])
    expected = torch.tensor(
        [
            [0.0, 0.0, 1.0],
            [2.0, 2.0, 1.0],
            [0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0],
            [51.0, 41.0, 1.0],
            [0.0, 0.0, 0.0],
        ]
    )  # 10 x seconds + 1, before the log
    expected[1, :2] = torch.log(torch.tensor(2.0))
    expected[4, :2] = torch.log(torch.tensor([51.0, 41.0]))
    found = encode_times(times, mask)
    assert found.shape == (1, 6, TIME_FEATURES)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("use_times", [True, False])
@torch.inference_mode()
def test_scripted_head_equals_the_eager_one_on_batches_of_random_lengths(use_times):
    head = head_of(use_times=use_times)
    scripted = torch.jit.script(head)
    generator = torch.Generator().manual_seed(2)
    compared = 0
    for seed in range(6):
        lengths = torch.randint(1, 9, (4,), generator=generator)
        features, times = batch_of(lengths, seed)
        for arguments in ((features,), (features, lengths), (features, lengths, times)):
            torch.testing.assert_close(scripted(*arguments), head(*arguments))
            compared += 1
    assert compared == 18


@torch.inference_mode()
def test_standardisation_travels_in_the_state_dict():
    features, times = batch_of()
    trained, fresh = head_of(), GRUHead(D, K, hidden_size=8).eval()
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(features, LENGTHS, times), trained(features, LENGTHS, times), rtol=0, atol=0)
    assert not torch.equal(trained.mean, torch.zeros(D))


@torch.inference_mode()
def test_standardised_features_give_the_logits_of_an_unscaled_head():
    """Features (x - mean) / std into a head without statistics: the same as x into one with them."""
    features, times = batch_of(torch.full((B,), T))
    head = head_of()
    wanted = head(features, None, times)
    scaled = (features - head.mean) / head.std
    head.fit_scale(torch.zeros(D), torch.ones(D))
    torch.testing.assert_close(head(scaled, None, times), wanted)


@torch.inference_mode()
def test_feature_that_never_varied_in_training_keeps_logits_finite():
    head = head_of()
    head.fit_scale(torch.zeros(D), torch.zeros(D))
    assert bool(torch.isfinite(head(batch_of()[0], LENGTHS)).all())


@torch.inference_mode()
def test_half_precision_features_give_nearly_the_same_logits():
    features, times = batch_of()
    head = head_of()
    logits = head(features.half(), LENGTHS, times)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, head(features, LENGTHS, times), rtol=0, atol=5e-3)


def test_head_is_made_by_name_with_its_options():
    head = make_head("gru", num_features=D, num_classes=K, hidden_size=8, use_times=False)
    assert isinstance(head, GRUHead)
    assert (head.gru.hidden_size, head.use_times, head.classify.out_features) == (8, False, K)


def test_unknown_head_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="head_name is lstm, needs one of gru"):
        make_head("lstm", num_features=D, num_classes=K)


@pytest.mark.parametrize("field", ["num_features", "num_classes"])
def test_head_without_features_or_classes_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        GRUHead(**{"num_features": D, "num_classes": K, field: 0})

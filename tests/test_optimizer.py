"""Clipped steps, the learning rate from step to step, and the moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from scripts.training.optimizer import averaged_weights, bare, make_optimizer, make_schedule


def network_of(value: float = 1.0) -> nn.Linear:
    network = nn.Linear(2, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def step(network: nn.Module, optimizer: torch.optim.Optimizer, gradient: tuple[float, float] = (3.0, 4.0)) -> None:
    network.weight.grad = torch.tensor([gradient])
    optimizer.step()


def rates(schedule: str, warmup: float, max_epochs: int = 10, num_batches: int = 10, **options) -> list[float]:
    """The learning rate of each step of a training."""
    network = network_of()
    optimizer = make_optimizer(network, 0.1)
    make_schedule(optimizer, schedule, warmup, max_epochs, num_batches, **options)
    found = []
    for _ in range(max_epochs * math.ceil(num_batches / options.get("accumulation_steps", 1))):
        found.append(optimizer.param_groups[0]["lr"])
        step(network, optimizer)
    return found


# --- clipping ---


@pytest.mark.parametrize(("longest", "left"), [(1.0, 1.0), (10.0, 5.0), (0.0, 5.0)])
def test_gradients_are_scaled_down_to_the_longest_that_is_allowed(longest, left):
    network = network_of()
    step(network, make_optimizer(network, 0.1, max_gradient_norm=longest))
    assert float(network.weight.grad.norm()) == pytest.approx(left, rel=1e-5)


def test_step_is_that_of_adamw_on_the_clipped_gradients():
    ours, theirs = network_of(), network_of()
    optimizer = make_optimizer(ours, 0.1, 0.3, max_gradient_norm=1.0)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3)
    for gradient in ((3.0, 4.0), (0.3, -0.4), (-30.0, 40.0)):
        step(ours, optimizer, gradient)
        length = max(math.hypot(*gradient), 1.0)
        step(theirs, plain, (gradient[0] / length, gradient[1] / length))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_end_the_run_before_the_weights_change(value):
    network = network_of()
    with pytest.raises(ValueError, match=f"norm of the gradients is {value}, needs a finite number"):
        step(network, make_optimizer(network, 0.1, max_gradient_norm=1.0), (1.0, value))
    assert network.weight.tolist() == [[1.0, 1.0]]


def test_a_negative_norm_is_refused():
    with pytest.raises(ValueError, match="max_gradient_norm is -1"):
        make_optimizer(network_of(), 0.1, max_gradient_norm=-1.0)


# --- schedule ---


def test_cosine_goes_up_in_a_line_then_down_to_zero():
    found = rates("cosine", 0.2)
    up, down = found[:20], found[20:]
    assert found[20] == max(found) == pytest.approx(0.1)
    assert up == pytest.approx([0.1 * (n + 1) / 21 for n in range(20)])
    assert down == pytest.approx([0.05 * (1 + math.cos(math.pi * n / 80)) for n in range(80)])


def test_cosine_without_warmup_begins_at_the_peak():
    found = rates("cosine", 0.0)
    assert found[0] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)


def test_one_cycle_is_pytorchs_with_its_peak_where_the_warmup_ends():
    network = network_of()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, pct_start=0.3)
    found = rates("one_cycle", 0.3)
    for rate in found:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        step(network, optimizer)
        theirs.step()
    assert found.index(max(found)) == 29
    assert found[0] < 0.1 / 20 and found[-1] < 1e-5


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_accumulated_batches_are_one_step_of_the_schedule(schedule):
    found = rates(schedule, 0.1, num_batches=7, accumulation_steps=2)
    assert len(found) == 40
    assert found == rates(schedule, 0.1, num_batches=4)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
@pytest.mark.parametrize("max_epochs", [1, 2, 3])
def test_the_shortest_trainings_have_a_schedule(schedule, warmup, max_epochs):
    found = rates(schedule, warmup, max_epochs, num_batches=1)
    assert len(found) == max_epochs
    assert all(0.0 < rate <= 0.1 + 1e-9 for rate in found)


@pytest.mark.parametrize(
    ("schedule", "warmup", "message"),
    [
        ("linear", 0.1, "schedule is linear, needs one of cosine, one_cycle"),
        ("cosine", 1.0, "warmup is 1.0, needs 0.0 up to below 1.0"),
        ("cosine", math.nan, "warmup is nan"),
    ],
)
def test_other_schedules_are_refused(schedule, warmup, message):
    with pytest.raises(ValueError, match=message):
        rates(schedule, warmup)


# --- average ---


def test_average_follows_the_weights_with_its_decay_once_it_has_seen_enough():
    network = network_of(0.0)
    optimizer = make_optimizer(network, 0.1)
    averaged = averaged_weights(network, optimizer, 0.5, "cpu")
    by_hand = None
    for n in range(20):
        step(network, optimizer)
        weight = network.weight.detach().clone()
        decay = min(0.5, (1 + n) / (10 + n))
        by_hand = weight if by_hand is None else decay * by_hand + (1 - decay) * weight
    torch.testing.assert_close(bare(averaged).weight, by_hand)
    assert not torch.equal(bare(averaged).weight, network.weight)


def test_average_starts_from_the_first_step_not_from_the_untrained_weights():
    network = network_of(0.0)
    optimizer = make_optimizer(network, 0.1)
    averaged = averaged_weights(network, optimizer, 0.999, "cpu")
    step(network, optimizer)
    torch.testing.assert_close(bare(averaged).weight, network.weight, rtol=0, atol=0)


def test_average_has_the_networks_buffers():
    network = network_of()
    network.register_buffer("scale", torch.zeros(()))
    optimizer = make_optimizer(network, 0.1)
    averaged = averaged_weights(network, optimizer, 0.9, "cpu")
    network.scale.fill_(3.0)  # as fit_scale does, after the average was made
    step(network, optimizer)
    assert float(bare(averaged).scale) == 3.0


def test_without_a_decay_the_network_itself_is_used():
    network = network_of()
    assert averaged_weights(network, make_optimizer(network, 0.1), 0.0, "cpu") is network
    assert bare(network) is network


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_other_decays_are_refused(decay):
    network = network_of()
    with pytest.raises(ValueError, match="ema_decay is"):
        averaged_weights(network, make_optimizer(network, 0.1), decay, "cpu")

"""Loss, activation and likelihood of each type of task, against torch, scikit-learn and by hand."""

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.utils import CommonKeys
from sklearn.metrics import log_loss
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
from scripts.training.engine import likelihood_metric
from scripts.training.losses import likelihood, make_loss, to_probabilities

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
CLASSES, SEVERAL = torch.tensor([0, 2]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_of_one_class_each_is_cross_entropy(task_type, label_smoothing):
    found = make_loss(task_type, label_smoothing)(LOGITS, CLASSES)
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, CLASSES, label_smoothing=label_smoothing))


def test_loss_of_several_labels_is_the_mean_binary_cross_entropy():
    by_hand = -(SEVERAL * LOGITS.sigmoid().log() + (1 - SEVERAL) * (-LOGITS).sigmoid().log()).mean()
    torch.testing.assert_close(make_loss(MULTILABEL)(LOGITS, SEVERAL), by_hand)


# --- what changes the loss ---

WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_class_weights_change_the_loss_to_pytorchs_weighted_cross_entropy(label_smoothing):
    plain = make_loss(MULTICLASS, label_smoothing)(LOGITS, CLASSES)
    found = make_loss(MULTICLASS, label_smoothing, WEIGHTS)(LOGITS, CLASSES)
    torch.testing.assert_close(found, F.cross_entropy(LOGITS, CLASSES, WEIGHTS, label_smoothing=label_smoothing))
    assert abs(found - plain) > 0.5


def test_class_weights_are_those_of_scikit_learns_log_loss():
    found = make_loss(MULTICLASS, class_weights=WEIGHTS)(LOGITS, CLASSES)
    wanted = log_loss(CLASSES, LOGITS.double().softmax(dim=1), sample_weight=WEIGHTS[CLASSES], labels=[0, 1, 2])
    assert float(found) == pytest.approx(wanted, rel=1e-6)


def test_weights_of_labels_count_positive_answers_more():
    found = make_loss(MULTILABEL, class_weights=WEIGHTS)(LOGITS, SEVERAL)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, pos_weight=WEIGHTS))
    assert abs(found - make_loss(MULTILABEL)(LOGITS, SEVERAL)) > 0.5


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_weighs_each_answer_by_what_is_left_to_learn(gamma):
    right = LOGITS.softmax(dim=1)[[0, 1], CLASSES]
    by_hand = (-((1 - right) ** gamma) * right.log()).mean()
    found = make_loss(MULTICLASS, focal_gamma=gamma)(LOGITS, CLASSES)
    torch.testing.assert_close(found, by_hand)
    assert found < make_loss(MULTICLASS)(LOGITS, CLASSES)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_labels_is_torchvisions(gamma):
    wanted = sigmoid_focal_loss(LOGITS, SEVERAL, alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(make_loss(MULTILABEL, focal_gamma=gamma)(LOGITS, SEVERAL), wanted)


@pytest.mark.parametrize("task_type", [MULTICLASS, MULTILABEL])
def test_focal_loss_of_certain_answers_has_finite_gradients(task_type):
    logits = torch.tensor([[200.0, -200.0, -200.0]], requires_grad=True)
    labels = torch.tensor([0]) if task_type == MULTICLASS else torch.tensor([[1.0, 0.0, 0.0]])
    make_loss(task_type, focal_gamma=0.5)(logits, labels).backward()
    assert torch.isfinite(logits.grad).all()


def test_smoothing_of_labels_moves_both_answers_towards_a_half():
    wanted = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL * 0.8 + 0.1)
    torch.testing.assert_close(make_loss(MULTILABEL, label_smoothing=0.2)(LOGITS, SEVERAL), wanted)


def test_focus_smoothing_and_weights_work_together():
    probabilities = LOGITS.double().softmax(dim=1).numpy()
    targets = np.full((2, 3), 0.1 / 3)
    targets[[0, 1], CLASSES] += 0.9
    losses = -(targets * (1 - probabilities) ** 2 * np.log(probabilities) * WEIGHTS.numpy()).sum(axis=1)
    found = make_loss(MULTICLASS, 0.1, WEIGHTS, 2.0)(LOGITS, CLASSES)
    assert float(found) == pytest.approx(losses.sum() / float(WEIGHTS[CLASSES].sum()), rel=1e-6)


def test_labels_that_are_not_known_change_neither_loss_nor_gradients():
    labels = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    known = labels >= 0
    for options in ({}, {"class_weights": WEIGHTS, "focal_gamma": 2.0, "label_smoothing": 0.1}):
        logits = LOGITS.clone().requires_grad_()
        loss = make_loss(MULTILABEL, **options)(logits, labels)
        loss.backward()
        assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all()
        other = torch.where(known, LOGITS, torch.full_like(LOGITS, 9.0))
        torch.testing.assert_close(make_loss(MULTILABEL, **options)(other, labels), loss)
    wanted = F.binary_cross_entropy_with_logits(LOGITS[known], labels[known])
    torch.testing.assert_close(make_loss(MULTILABEL)(LOGITS, labels), wanted)


def test_loss_without_any_known_label_is_zero_with_zero_gradients():
    logits = LOGITS.clone().requires_grad_()
    loss = make_loss(MULTILABEL)(logits, torch.full((2, 3), -1.0))
    loss.backward()
    assert loss.item() == 0.0
    assert (logits.grad == 0).all()


def test_loss_of_half_precision_logits_is_computed_in_single_precision():
    found = make_loss(MULTICLASS)(LOGITS.half(), CLASSES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, make_loss(MULTICLASS)(LOGITS.half().float(), CLASSES), rtol=0, atol=0)


def test_loss_of_a_thousand_classes_is_cross_entropy():
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) * 100
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.05)
    torch.testing.assert_close(make_loss(MULTICLASS, 0.05)(logits, labels), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0, needs 0.0 up to below 1.0"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0, needs a number of at least 0.0"),
        ({"focal_gamma": math.nan}, "focal_gamma is nan"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_loss(MULTICLASS, **options)


def test_loss_of_an_unknown_task_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"task_type is regression, needs one of .*'multiclass'"):
        make_loss("regression")


@pytest.mark.parametrize("task_type", [BINARY, MULTICLASS])
def test_probabilities_of_one_class_each_sum_to_one(task_type):
    found = to_probabilities(LOGITS, task_type)
    torch.testing.assert_close(found, LOGITS.exp() / LOGITS.exp().sum(dim=1, keepdim=True))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))


def test_probabilities_of_several_labels_are_a_sigmoid_each():
    torch.testing.assert_close(to_probabilities(LOGITS, MULTILABEL), 1 / (1 + (-LOGITS).exp()))


@pytest.mark.parametrize("task_type", [MULTICLASS, MULTILABEL])
def test_probabilities_of_half_precision_logits_are_single_precision(task_type):
    found = to_probabilities(LOGITS.half(), task_type)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, to_probabilities(LOGITS, task_type), rtol=0, atol=1e-3)


def test_likelihood_of_classes_is_the_geometric_mean_of_the_true_classes_probabilities():
    true = LOGITS.softmax(dim=1)[[0, 1], CLASSES]
    assert likelihood(LOGITS, CLASSES) == pytest.approx(math.sqrt(float(true[0] * true[1])), rel=1e-6)


def test_likelihood_of_several_labels_is_the_geometric_mean_over_every_answer():
    true = torch.where(SEVERAL == 1, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    assert likelihood(LOGITS, SEVERAL) == pytest.approx(float(true.prod()) ** (1 / 6), rel=1e-6)


def test_likelihood_over_an_epoch_of_a_single_label_is_that_of_the_label():
    logits, labels = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1], [0], [-1]])
    metric = likelihood_metric()
    metric.attach(engine := Engine(lambda *_: {CommonKeys.PRED: logits, CommonKeys.LABEL: labels}), "likelihood")
    found = engine.run([0]).metrics["likelihood"]
    assert found == pytest.approx(math.sqrt(logits[0].sigmoid().item() * (1 - logits[1].sigmoid().item())), rel=1e-6)


def test_likelihood_of_a_guess_is_one_over_k_and_of_certainty_one():
    assert likelihood(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 0])) == pytest.approx(0.25)
    assert likelihood(torch.eye(3) * 100, torch.arange(3)) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_likelihood_of_logits_that_are_not_finite_is_zero(value):
    logits = LOGITS.clone()
    logits[0, 0] = value
    assert likelihood(logits, CLASSES) == 0.0


def test_likelihood_takes_half_precision_logits_and_integer_labels_of_any_size():
    wanted = likelihood(LOGITS.half().float(), CLASSES)
    assert likelihood(LOGITS.half(), CLASSES.to(torch.int32)) == pytest.approx(wanted, rel=1e-6)
    assert likelihood(LOGITS, SEVERAL.to(torch.int64)) == pytest.approx(likelihood(LOGITS, SEVERAL))


def test_likelihood_leaves_out_labels_that_are_not_known():
    labels = torch.tensor([[1, -1, 1], [-1, -1, 1]])
    known = labels >= 0
    assert likelihood(LOGITS, labels) == pytest.approx(likelihood(LOGITS[known][:, None], labels[known][:, None]))
    assert likelihood(LOGITS, torch.full((2, 3), -1)) == 0.0

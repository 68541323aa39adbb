"""Loss, activation and likelihood of each type of task, against torch and by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
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

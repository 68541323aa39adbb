"""The loss, the activation and the number that chooses the best epoch, for each type of task."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.errors import bad_value
from scripts.keys import MULTILABEL, TASK_TYPES

SMALLEST = 1e-8  # under a power below one, whose slope at zero is infinite


class SequenceLoss(nn.Module):
    """Mean loss of a batch of logits (B, K): cross entropy, or binary cross entropy of the known labels of multilabel.

    In several processes the mean is over the batches of all: the average of what they return, and so of their
    gradients, is that of one process with the whole batch, also where their batches differ in size.

    Args:
        task_type: one of TASK_TYPES.
        class_weights: (K,); of each class, or of the positive answers of each label. As in PyTorch, the mean over
            classes is divided by the weights of the true ones, that over labels by their number.
        focal_gamma: answers are weighed by (1 - probability of the right one) to this power; 0 weighs all alike.
        label_smoothing: share of the target that is spread over all classes, or over both answers of each label.
    """

    def __init__(
        self,
        task_type: str,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.task_type, self.class_weights = task_type, class_weights
        self.focal_gamma, self.label_smoothing = focal_gamma, label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean, ().

        Args:
            logits: (B, K).
            labels: (B,) class indices, or (B, K) ones, zeros, and -1 where not known.
        """
        parts = self._of_labels if self.task_type == MULTILABEL else self._of_classes
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        total, divisor = parts(logits.to(torch.float32), labels, weights)
        if dist.is_initialized():
            dist.all_reduce(divisor)
            divisor = divisor / dist.get_world_size()
        return total / divisor.clamp(min=SMALLEST)  # without any known label the loss is 0, and so are its gradients

    def _of_classes(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum of the losses and what it is divided by."""
        num_classes = logits.shape[1]
        logs = logits.log_softmax(dim=1)
        targets = F.one_hot(labels, num_classes) * (1.0 - self.label_smoothing) + self.label_smoothing / num_classes
        losses = -targets * self._focal(logs) * logs  # (B, K)
        if weights is None:
            return losses.sum(), logits.new_tensor(len(logits))
        return (losses * weights).sum(), weights[labels].sum()

    def _of_labels(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        known = labels >= 0
        targets = labels.clamp(min=0) * (1.0 - self.label_smoothing) + self.label_smoothing / 2
        yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
        positive = -targets * self._focal(yes) * yes
        negative = -(1.0 - targets) * self._focal(no) * no
        losses = positive * (1.0 if weights is None else weights) + negative  # (B, K)
        return losses[known].sum(), known.sum().to(losses.dtype)

    def _focal(self, logs: Tensor) -> Tensor | float:
        """What answers of these logarithmic probabilities are weighed by (Lin et al. 2017, arXiv:1708.02002)."""
        return (-torch.expm1(logs)).clamp(min=SMALLEST) ** self.focal_gamma if self.focal_gamma else 1.0


def make_loss(
    task_type: str, label_smoothing: float = 0.0, class_weights: Tensor | None = None, focal_gamma: float = 0.0
) -> SequenceLoss:
    """The loss of a type of task.

    Raises:
        ValueError: unknown type of task, or a number outside its range.
    """
    if task_type not in TASK_TYPES:
        raise ValueError(bad_value("configuration", "task_type", task_type, f"one of {TASK_TYPES}"))
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(bad_value("configuration", "label_smoothing", label_smoothing, "0.0 up to below 1.0"))
    if not (math.isfinite(focal_gamma) and focal_gamma >= 0.0):
        raise ValueError(bad_value("configuration", "focal_gamma", focal_gamma, "a number of at least 0.0"))
    return SequenceLoss(task_type, class_weights, focal_gamma, label_smoothing)


def to_probabilities(logits: Tensor, task_type: str) -> Tensor:
    """Probabilities (B, K) float32: softmax over classes, or a sigmoid each for multilabel."""
    logits = logits.to(torch.float32)
    return logits.sigmoid() if task_type == MULTILABEL else logits.softmax(dim=1)


def likelihood(logits: Tensor, labels: Tensor) -> float:
    """Geometric mean of the probability given to the true label, in [0, 1]; 0 for logits that are not finite.

    The exponential of minus the cross entropy: smooth where a few validation sequences make accuracy jump, and
    positive, as MONAI's engines want of a key metric.

    Args:
        logits: (N, K).
        labels: (N,) class indices, or (N, K) ones, zeros, and -1 where not known, which is left out; of one label
            both may be (N,), to which ignite's EpochMetric squeezes them.
    """
    logits = logits.to(torch.float32)
    if labels.ndim < logits.ndim:
        loss = F.cross_entropy(logits, labels.to(torch.int64))
    else:
        known = labels >= 0
        loss = F.binary_cross_entropy_with_logits(logits[known], labels[known].to(torch.float32))
    return float(torch.exp(-loss)) if torch.isfinite(loss) else 0.0

"""The loss, the activation and the number that chooses the best epoch, for each type of task."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.errors import bad_value
from scripts.keys import MULTILABEL, TASK_TYPES


def make_loss(task_type: str, label_smoothing: float = 0.0) -> nn.Module:
    """Mean loss over a batch of logits (B, K): cross entropy, or binary cross entropy for multilabel.

    Raises:
        ValueError: unknown type of task.
    """
    if task_type not in TASK_TYPES:
        raise ValueError(bad_value("configuration", "task_type", task_type, f"one of {TASK_TYPES}"))
    if task_type == MULTILABEL:
        return nn.BCEWithLogitsLoss()
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


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
        labels: (N,) class indices, or (N, K) zeros and ones.
    """
    logits = logits.to(torch.float32)
    if labels.ndim == 1:
        loss = F.cross_entropy(logits, labels.to(torch.int64))
    else:
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(torch.float32))
    return float(torch.exp(-loss)) if torch.isfinite(loss) else 0.0

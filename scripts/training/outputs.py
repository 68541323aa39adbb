"""Head, cached sequences -> logits, and what each frame had to do with them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from scripts.errors import bad_value
from scripts.features.batching import FeatureDataset, collate_sequences
from scripts.keys import SOURCE
from scripts.training.engine import prepare_batch

BATCH_SIZE = 64


def logits_of(
    head: nn.Module, dataset: FeatureDataset, device: torch.device | str, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Logits of every sequence, (N, K) float64.

    Raises:
        ValueError: one is not finite; it names the first such sequence.
    """
    out = []
    with torch.inference_mode():
        for features, others, _ in _batches(head, dataset, device, batch_size):
            out.append(head(features, **others).cpu())
    return _finite(torch.cat(out), dataset)


def explained(
    head: nn.Module, dataset: FeatureDataset, device: torch.device | str, batch_size: int = BATCH_SIZE
) -> tuple[np.ndarray, list[np.ndarray], list[torch.Tensor]]:
    """Logits (N, K) float64; of each sequence the weights of its frames (T,), and the logits after each, (T, K).

    Raises:
        ValueError: as of `logits_of`.
    """
    out, weights, prefixes = [], [], []
    with torch.inference_mode():
        for features, others, lengths in _batches(head, dataset, device, batch_size):
            logits, of_frames, after_frames = head.explain(features, **others)  # type: ignore[operator]
            out.append(logits.cpu())
            weights += [row[:length].cpu().numpy() for row, length in zip(of_frames, lengths, strict=True)]
            prefixes += [row[:length].cpu() for row, length in zip(after_frames, lengths, strict=True)]
    return _finite(torch.cat(out), dataset), weights, prefixes


def _batches(
    head: nn.Module, dataset: FeatureDataset, device: torch.device | str, batch_size: int
) -> Iterator[tuple[torch.Tensor, dict[str, Any], list[int]]]:
    head.eval().to(device)
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_sequences):
        features, _, _, others = prepare_batch(batch, torch.device(device))
        yield features, others, batch["lengths"].tolist()


def _finite(logits: torch.Tensor, dataset: FeatureDataset) -> np.ndarray:
    broken = ~logits.isfinite().all(dim=1)
    if broken.any():
        first = dataset.data[int(broken.nonzero()[0])][SOURCE]
        found = f"not finite for {int(broken.sum())} of {len(logits)} sequences"
        way_out = "Look at its features: python -m scripts store verify; or train with a lower learning rate."
        raise ValueError(bad_value(first, "logits", found, "finite numbers", way_out))
    return logits.to(torch.float64).numpy()

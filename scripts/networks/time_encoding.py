"""Which frames are real, and when they were taken, as numbers a network can use."""

import math

import torch
from torch import Tensor

SHORTEST_S, LONGEST_S, NUM_PERIODS = 0.25, 2048.0, 8  # an X-ray run lasts seconds, a retinal exam half an hour
TIME_FEATURES = 4 + 2 * NUM_PERIODS  # two logarithms, two flags, sines and cosines


def real_frames(features: Tensor, lengths: Tensor | None) -> Tensor:
    """True on the real frames of features (B, T, D), False on padding: (B, T) bool; lengths None means all T."""
    steps = torch.arange(features.shape[1], device=features.device)[None, :]
    if lengths is None:
        return (steps >= 0).expand(features.shape[0], features.shape[1])
    return steps < lengths.to(features.device)[:, None]


def encode_times(frame_times_ms: Tensor | None, mask: Tensor) -> Tensor:
    """Elapsed time as numbers of order one, whether frames are milliseconds or minutes apart.

    Logarithms of the time since the first frame and of the gap before each, and the phases of log-spaced periods,
    since an X-ray run has 0.03 s between frames and a retinal one up to 300 s. What is unknown is 0 with its flag at 0.

    Args:
        frame_times_ms: milliseconds since the first frame, (B, T), NaN = unknown; None means all unknown.
        mask: real frames, (B, T).

    Returns:
        (B, T, TIME_FEATURES) float32, zeros on padding.
    """
    if frame_times_ms is None:
        frame_times_ms = torch.full(mask.shape, float("nan"))
    seconds = frame_times_ms.to(mask.device, torch.float32) / 1000.0  # (B, T)
    known = mask & torch.isfinite(seconds)
    seconds = torch.where(known, seconds, torch.zeros_like(seconds))
    gap_known = known & torch.cat([known[:, :1], known[:, :-1]], dim=1)
    gaps = (seconds - torch.cat([seconds[:, :1], seconds[:, :-1]], dim=1)) * gap_known
    flags = torch.stack([known, gap_known], dim=-1).to(torch.float32)  # (B, T, 2)
    logs = torch.log1p(10.0 * torch.stack([seconds, gaps], dim=-1).clamp(min=0.0))  # (B, T, 2)
    return torch.cat([logs, flags, waves(seconds) * flags[:, :, :1]], dim=-1)


def waves(
    values: Tensor, shortest: float = SHORTEST_S, longest: float = LONGEST_S, num_periods: int = NUM_PERIODS
) -> Tensor:
    """Sines and cosines of log-spaced periods from `shortest` to `longest`, (..., 2 x num_periods)."""
    periods = torch.logspace(math.log10(shortest), math.log10(longest), num_periods, device=values.device)
    angles = 2.0 * math.pi * values.to(torch.float32)[..., None] / periods
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

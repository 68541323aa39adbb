"""Temporal heads: features (B, T, D) -> logits (B, K), with one weight a frame for people to look at."""

import torch
from torch import Tensor, nn

from scripts.errors import bad_value

APPEARANCE_WIDTH = 16  # narrow, so that it cannot learn patients by heart
TIME_GAIN = 4.0  # three time inputs would drown among D standardised features
TIME_FEATURES = 3  # log of seconds since the first frame, log of seconds since the one before, known or not


def real_frames(features: Tensor, lengths: Tensor | None) -> Tensor:
    """True on the real frames of each sequence, False on its padding.

    Args:
        features: (B, T, D).
        lengths: real frames of each sequence, (B,); None means all T.

    Returns:
        Mask, (B, T) bool.
    """
    steps = torch.arange(features.shape[1], device=features.device)[None, :]
    if lengths is None:
        return (steps >= 0).expand(features.shape[0], features.shape[1])
    return steps < lengths.to(features.device)[:, None]


def encode_times(frame_times_ms: Tensor | None, mask: Tensor) -> Tensor:
    """Elapsed time as numbers of order one, whether frames are milliseconds or minutes apart.

    Logarithms, since an X-ray run has 0.03 s between frames and a retinal one up to 300 s. An unknown
    time (NaN) is 0 with its flag at 0.

    Args:
        frame_times_ms: milliseconds since the first frame, (B, T), NaN = unknown; None means all unknown.
        mask: real frames, (B, T).

    Returns:
        (B, T, TIME_FEATURES) float32, zeros on padding.
    """
    if frame_times_ms is None:
        frame_times_ms = torch.full(mask.shape, float("nan"))
    seconds = frame_times_ms.to(torch.float32).to(mask.device) / 1000.0  # (B, T)
    gaps = torch.diff(seconds, dim=1, prepend=seconds[:, :1])  # (B, T)
    known = mask & torch.isfinite(seconds) & torch.isfinite(gaps)
    encoded = torch.stack(
        [
            torch.log1p(10.0 * seconds.clamp(min=0.0)),
            torch.log1p(10.0 * gaps.clamp(min=0.0)),
            torch.ones_like(seconds),
        ],
        dim=-1,
    )  # (B, T, 3)
    return torch.where(known[:, :, None], encoded, torch.zeros_like(encoded))


class GRUHead(nn.Module):
    """A gated recurrent unit over the change from frame to frame, read out by attention over its states.

    The recurrent part sees each frame's features less their mean over the sequence: contrast dynamics are small beside
    what makes one patient's images differ from another's, and drown in it otherwise. That mean,
    the sequence's appearance, reaches the classifier beside it through a narrow layer. Features are standardised by
    the training set's statistics (`fit_scale`), which travel in the state dict.

    Args:
        num_features: D.
        num_classes: K, the number of logits.
        hidden_size: M, width of the recurrent state.
        dropout: on the recurrent input and on what is classified, during training.
        use_times: feed elapsed time to the network beside the features.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        hidden_size: int = 128,
        dropout: float = 0.3,
        use_times: bool = True,
    ) -> None:
        super().__init__()
        sizes = (("num_features", num_features), ("num_classes", num_classes), ("hidden_size", hidden_size))
        for name, value in sizes:
            if value < 1:
                raise ValueError(bad_value("head", name, value, "a positive number"))
        self.use_times = use_times
        self.time_gain = TIME_GAIN
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.project = nn.Linear(num_features + (TIME_FEATURES if use_times else 0), hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.score = nn.Linear(hidden_size, 1, bias=False)  # a softmax cancels a bias
        self.appearance = nn.Linear(num_features, APPEARANCE_WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * hidden_size + APPEARANCE_WIDTH, num_classes)

    def fit_scale(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation of the training features, (D,) each."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))

    def weigh(
        self, features: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits, and how much each frame counted.

        Args:
            features: (B, T, D), padded with zeros.
            lengths: real frames of each sequence, (B,), at least 1; None means all T.
            frame_times_ms: (B, T), NaN = unknown; None means all unknown.

        Returns:
            Logits (B, K), and frame weights (B, T) in [0, 1] that sum to 1 over the real frames.
        """
        mask = real_frames(features, lengths)  # (B, T)
        x = (features.to(self.mean.dtype) - self.mean) / self.std
        x = torch.where(mask[:, :, None], x, torch.zeros_like(x))
        count = mask.sum(dim=1)  # (B,)
        static = x.sum(dim=1) / count[:, None]  # (B, D)
        x = x - static[:, None, :]
        if self.use_times:
            times = self.time_gain * encode_times(frame_times_ms, mask).to(x.dtype)
            x = torch.cat([x, times], dim=-1)  # (B, T, D + 3)
        states, _ = self.gru(self.dropout(torch.relu(self.project(x))))  # (B, T, M)
        weights = self.score(states).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(dim=1)  # (B, T)
        pooled = (weights[:, :, None] * states).sum(dim=1)  # (B, M)
        last = states[torch.arange(states.shape[0], device=states.device), count - 1]  # (B, M)
        read = torch.cat([pooled, last, torch.relu(self.appearance(static))], dim=-1)
        return self.classify(self.dropout(read)), weights

    def forward(self, features: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None) -> Tensor:
        """Class scores for each sequence, before softmax or sigmoid, (B, K); arguments as in `weigh`."""
        return self.weigh(features, lengths, frame_times_ms)[0]


HEADS = {"gru": GRUHead}


def make_head(head_name: str, num_features: int, num_classes: int, **options: object) -> nn.Module:
    """The temporal head of that name.

    Raises:
        ValueError: unknown name.
    """
    if head_name not in HEADS:
        raise ValueError(bad_value("configuration", "head_name", head_name, f"one of {', '.join(HEADS)}"))
    return HEADS[head_name](num_features=num_features, num_classes=num_classes, **options)  # type: ignore[arg-type]

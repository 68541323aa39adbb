"""Temporal heads: features (B, T, D) -> logits (B, K), with one weight and one decision a frame to look at."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.errors import bad_value
from scripts.networks.time_encoding import NUM_PERIODS, TIME_FEATURES, encode_times, real_frames, waves

COMMON: dict[str, Any] = {"hidden_size": 128, "dropout": 0.3, "use_times": True}  # options of all heads, defaults
RECURRENT: dict[str, Any] = {"num_layers": 1, "bidirectional": True, "readout": "attention"}
HEADS: dict[str, dict[str, Any]] = {  # what each has beside them
    "mean": {},
    "max": {},
    "last": {},
    "attention": {},
    "gru": RECURRENT,
    "lstm": RECURRENT,
    "tcn": {"num_layers": 3},
    "transformer": {"num_layers": 2},
}
MOST = {"hidden_size": 2048, "num_layers": 16}  # far above any use; without an end a typing error fills the memory
READOUTS = ("attention", "last")  # of the recurrent heads
ATTENTION_WIDTH = 64
NOISE = 0.12  # on standardised features, times dropout and the root of D, by which what is common to features grows too


class Recurrence(nn.Module):
    """One recurrent layer, (B, T, M) -> (B, T, M'), in one direction or both; nothing is packed, which ONNX could not.

    Where it is `aligned`, states of the way back stand at their frames; else in the order they were made, so that
    either direction's last one has seen all frames.
    """

    def __init__(self, cell: Any, num_inputs: int, hidden_size: int, both: bool, aligned: bool, dropout: float) -> None:
        super().__init__()
        self.aligned, self.dropout = aligned, nn.Dropout(dropout)
        self.onward = cell(num_inputs, hidden_size, batch_first=True)
        self.back = cell(num_inputs, hidden_size, batch_first=True) if both else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(x)
        states = self.onward(x)[0]
        if self.back is not None:
            steps = torch.arange(mask.shape[1], device=mask.device)[None, :]
            turned = torch.where(mask, mask.sum(dim=1, keepdim=True) - 1 - steps, steps)[:, :, None]  # padding stays
            back = self.back(x.gather(1, turned.expand_as(x)))[0]
            back = back.gather(1, turned.expand_as(back)) if self.aligned else back
            states = torch.cat([states, back], dim=-1)
        return states


class Convolution(nn.Module):
    """A residual convolution over time that looks as far to both sides as it is dilated, (B, T, M) -> (B, T, M)."""

    def __init__(self, hidden_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(hidden_size), nn.Dropout(dropout)
        self.convolve = nn.Conv1d(hidden_size, hidden_size, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = self.norm(x) * mask[:, :, None]
        return x + self.dropout(torch.relu(self.convolve(seen.transpose(1, 2)))).transpose(1, 2)


class SelfAttention(nn.Module):
    """A pre-norm transformer block, (B, T, M) -> (B, T, M); the first one tells frames where they stand."""

    def __init__(self, hidden_size: int, first: bool, dropout: float) -> None:
        super().__init__()
        self.place = nn.Linear(2 * NUM_PERIODS, hidden_size, bias=False) if first else None
        self.num_heads = math.gcd(hidden_size, 4)
        self.norm, self.dropout = nn.LayerNorm(hidden_size), nn.Dropout(dropout)
        self.split, self.merge = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)
        wide, back = nn.Linear(hidden_size, 2 * hidden_size), nn.Linear(2 * hidden_size, hidden_size)
        self.think = nn.Sequential(nn.LayerNorm(hidden_size), wide, nn.GELU(), back)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.place is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            x = x + self.place(waves(steps, 4.0, 512.0).to(x.dtype))  # periods in frames
        split = self.split(self.norm(x)).unflatten(2, (3, self.num_heads, -1)).transpose(1, 3)  # (B, heads, 3, T, .)
        mixed = F.scaled_dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2], mask[:, None, None, :])
        x = x + self.dropout(self.merge(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.think(x))


class Readout(nn.Module):
    """States (B, T, M) -> one vector (B, M), and how much each frame counts in it, (B, T).

    `max` takes the largest value of each channel, and a frame's weight is its share of the channels it wins; `mean`,
    `last` and `attention` (gated: Ilse et al. 2018, arXiv:1802.04712) are weighted sums of the real frames.
    """

    def __init__(self, kind: str, num_states: int) -> None:
        super().__init__()
        self.kind = kind
        gated = kind == "attention"
        self.gated = nn.Linear(num_states, 2 * ATTENTION_WIDTH) if gated else None
        self.score = nn.Linear(ATTENTION_WIDTH, 1, bias=False) if gated else None  # a softmax cancels a bias

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count = mask.sum(dim=1, keepdim=True)  # (B, 1)
        if self.gated is not None and self.score is not None:
            content, gate = self.gated(states).chunk(2, dim=-1)
            scores = self.score(torch.tanh(content) * torch.sigmoid(gate)).squeeze(-1)
            weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
        elif self.kind == "max":
            states = states.masked_fill(~mask[:, :, None], float("-inf"))
            largest = states.amax(dim=1, keepdim=True)  # (B, 1, M)
            won = (states == largest).to(states.dtype)
            return largest.squeeze(1), (won / won.sum(dim=1, keepdim=True)).mean(dim=2)
        elif self.kind == "mean":
            weights = mask.to(states.dtype) / count
        else:
            weights = (torch.arange(mask.shape[1], device=mask.device)[None, :] == count - 1).to(states.dtype)
        return (weights[:, :, None] * states).sum(dim=1), weights


class TemporalHead(nn.Module):
    """Embed each frame, mix frames, read one vector out, classify; `make_head` makes one.

    A frame's embedding sees its features less their mean over the sequence: contrast dynamics are small beside what
    makes one patient's images differ from another's, and drown in it otherwise. That mean, the sequence's appearance,
    goes to the classifier on a path of its own; training drops either path at random, so that neither idles.
    Training also adds Gaussian noise to both, which is a ridge on the first layers (Bishop 1995, Neural Computation 7):
    there are more features than exams, and what few of them alone tell apart is told by chance.
    Features are standardised by the training set's statistics (`fit_scale`) and logits divided by `temperature`;
    both travel in the state dict.
    """

    def __init__(self, num_features: int, num_classes: int, head_name: str, options: dict[str, Any]) -> None:
        super().__init__()
        width, dropout = options["hidden_size"], options["dropout"]
        layers, num_states = make_layers(head_name, options)
        self.mean: Tensor
        self.std: Tensor
        self.temperature: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.register_buffer("temperature", torch.ones(()))
        self.project = nn.Linear(num_features, width)
        self.elapsed = nn.Linear(TIME_FEATURES, width, bias=False) if options["use_times"] else None
        self.layers = nn.ModuleList(layers)
        simple = head_name in ("mean", "max", "last")
        self.readout = Readout(head_name if simple else options.get("readout", "attention"), num_states)
        self.appearance = nn.Linear(num_features, width)
        self.dropout = nn.Dropout(dropout)
        self.noise = NOISE * dropout * math.sqrt(num_features)
        self.classify = nn.Linear(num_states + width, num_classes)

    def fit_scale(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation of the training features, (D,) each."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))

    def set_temperature(self, temperature: float) -> None:
        """Divide the logits by this from now on: calibration, fitted after training."""
        if not 0.0 < temperature < math.inf:
            raise ValueError(bad_value("head", "temperature", temperature, "a finite number above 0"))
        self.temperature.fill_(temperature)

    def decide(self, features: Tensor, lengths: Tensor | None, frame_times_ms: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and frame weights (B, T); arguments as of `forward`."""
        mask = real_frames(features, lengths)  # (B, T)
        x = (features.to(self.mean.dtype) - self.mean) / self.std
        x = torch.where(mask[:, :, None], x, torch.zeros_like(x))
        static = x.sum(dim=1) / mask.sum(dim=1, keepdim=True)  # (B, D)
        x = x - static[:, None, :]
        if self.training:
            x = x + self.noise * torch.randn_like(x)
            static = static + 2.0 * self.noise * torch.randn_like(static)  # it is the easier one to learn by heart
        x = self.project(x)  # (B, T, M)
        if self.elapsed is not None:
            x = x + self.elapsed(encode_times(frame_times_ms, mask).to(x.dtype))
        x = self.dropout(torch.relu(x))
        for layer in self.layers:
            x = layer(x, mask)
        dynamic, weights = self.readout(x, mask)
        appearance = torch.relu(self.appearance(static))
        kept = self.dropout(torch.ones_like(mask[:, :1], dtype=x.dtype).expand(-1, 2))  # (B, 2)
        read = torch.cat([dynamic * kept[:, :1], appearance * kept[:, 1:]], dim=-1)
        return self.classify(self.dropout(read)) / self.temperature, weights

    def forward(self, features: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None) -> Tensor:
        """Class scores for each sequence, before softmax or sigmoid, (B, K).

        Args:
            features: (B, T, D); what stands in padding, even NaN, is not used.
            lengths: real frames of each sequence, (B,), at least 1; None means all T.
            frame_times_ms: (B, T), NaN = unknown; None means all unknown.
        """
        return self.decide(features, lengths, frame_times_ms)[0]

    @torch.jit.export
    def explain(
        self, features: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, how much each frame counts in what is read out, and the decision after each frame.

        Returns:
            Logits (B, K); weights (B, T) in [0, 1] that sum to 1 over the real frames; prefix logits (B, T, K), at
            frame t those of the first t + 1 frames alone, on padding those of the whole sequence.
        """
        logits, weights = self.decide(features, lengths, frame_times_ms)
        ends = real_frames(features, lengths).sum(dim=1)  # (B,)
        prefixes: list[Tensor] = []
        for end in range(1, features.shape[1] + 1):
            times = None if frame_times_ms is None else frame_times_ms[:, :end]
            prefixes.append(self.decide(features[:, :end], ends.clamp(max=end), times)[0])
        return logits, weights, torch.stack(prefixes, dim=1)


def make_layers(head_name: str, options: dict[str, Any]) -> tuple[list[nn.Module], int]:
    """The modules (B, T, M), mask (B, T) -> (B, T, M') that mix frames, and the last one's M'."""
    width, dropout, count = options["hidden_size"], options["dropout"], options.get("num_layers", 0)
    if head_name == "tcn":
        return [Convolution(width, 2**n, dropout) for n in range(count)], width
    if head_name == "transformer":
        return [SelfAttention(width, n == 0, dropout) for n in range(count)], width
    layers: list[nn.Module] = []
    states = width
    for n in range(count):
        both, aligned = options["bidirectional"], options["readout"] != "last" or n < count - 1
        cell = nn.LSTM if head_name == "lstm" else nn.GRU
        layers.append(Recurrence(cell, states, width, both, aligned, dropout if n else 0.0))
        states = 2 * width if both else width
    return layers, states


def make_head(head_name: str, num_features: int, num_classes: int, **options: Any) -> TemporalHead:
    """The temporal head of that name.

    Args:
        head_name: one of HEADS.
        num_features: D.
        num_classes: K, the number of logits.
        options: those of COMMON and of that head in HEADS; None means the default, and suits any head.

    Raises:
        ValueError: unknown name, an option that head does not have, or a value it cannot take.
    """
    if not isinstance(head_name, str) or head_name not in HEADS:
        raise ValueError(bad_value("configuration", "head_name", head_name, f"one of {', '.join(HEADS)}"))
    known = COMMON | HEADS[head_name]
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in ({"num_features": num_features, "num_classes": num_classes} | given).items():
        if name == "dropout":
            fits, allowed = 0.0 <= value < 1.0, "a number from 0.0 to below 1.0"
        elif name == "readout":
            fits, allowed = value in READOUTS, f"one of {', '.join(READOUTS)}"
        elif name in ("use_times", "bidirectional"):
            fits, allowed = isinstance(value, bool), "true or false"
        else:
            most: float = MOST.get(name, math.inf)
            fits = type(value) is int and 1 <= value <= most
            allowed = "a whole number of at least 1" + (f" and at most {most}" if name in MOST else "")
        if name in given and name not in known:
            fits, allowed = False, f"a head that has it; {head_name} has {', '.join(known)}"
        if not fits:
            raise ValueError(bad_value(f"head {head_name}", name, value, allowed))
    return TemporalHead(num_features, num_classes, head_name, known | given)

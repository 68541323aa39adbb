"""Encoder and temporal head in one network: image (B, T, 3, H, W) or (B, T, 1, X, Y, Z) -> logits (B, K)."""

import torch
from torch import Tensor, nn

from scripts.networks.encoder import Encoder


class SequenceClassifier(nn.Module):
    """What `models/model.pt` holds and what inference, verification and export run.

    Args:
        encoder: frames (N, 3, H, W), or volumes (N, 1, X, Y, Z) -> features (N, D), or patch tokens (N, P, D), which
            are averaged.
        head: features (B, T, D) -> logits (B, K).
        chunk_frames: frames the encoder takes at once; its activations do not grow with B x T.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, chunk_frames: int = 8) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.chunk_frames = chunk_frames

    def encode(self, image: Tensor) -> Tensor:
        """Features (B, T, D) of an image batch (B, T, 3, H, W), encoded in chunks."""
        batch, length = image.shape[0], image.shape[1]
        frames = image.flatten(0, 1)  # (N, 3, H, W)
        features = torch.cat([self._encode_chunk(chunk) for chunk in frames.split(self.chunk_frames)])
        return features.view(batch, length, -1)  # (B, T, D)

    def _encode_chunk(self, frames: Tensor) -> Tensor:
        """Features (N, D); the mean of patch tokens, as training reads them from the store."""
        features = self.encoder(frames)
        return features.mean(dim=1) if features.ndim == 3 else features

    @torch.jit.export
    def explain(
        self, image: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, K), frame weights (B, T) and the logits after each frame (B, T, K), as the head gives them."""
        return self.head.explain(self.encode(image), lengths, frame_times_ms)  # type: ignore[operator]

    def forward(self, image: Tensor, lengths: Tensor | None = None, frame_times_ms: Tensor | None = None) -> Tensor:
        """Class scores for each sequence, before softmax or sigmoid.

        Args:
            image: (B, T, 3, H, W) or (B, T, 1, X, Y, Z) float32, any T >= 1.
            lengths: real frames of each sequence, (B,); None means all T.
            frame_times_ms: (B, T), NaN = unknown; None means all unknown.

        Returns:
            Logits, (B, K).
        """
        return self.head(self.encode(image), lengths, frame_times_ms)

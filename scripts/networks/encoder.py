"""The frame encoder: frames (N, 3, H, W) -> features (N, D), any timm backbone by name."""

import difflib

import timm
import torch
from torch import Tensor, nn

from scripts.errors import bad_value


class FrameEncoder(nn.Module):
    """A timm backbone that turns each frame into one feature vector.

    A ViT averages its normalised patch tokens (class and register tokens left out) and interpolates its
    position embedding to the image at hand, so that one state dict serves every image size. Other
    families (CNNs, hierarchical transformers) use their own average pooling.

    Args:
        name: a timm model name, such as `vit_small_patch14_reg4_dinov2` (RETFound-Green's form).

    Raises:
        ValueError: timm does not know the name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            self.backbone = _create(name)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # timm: unknown model or tag, or it cannot average tokens
            near = difflib.get_close_matches(name, timm.list_models(), 3, 0.0)
            allowed = f"a timm model that can average its tokens or pixels, such as {', '.join(near)}"
            raise ValueError(bad_value("encoder", "encoder_name", name, allowed)) from error
        self.name = name
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]

    def forward(self, frames: Tensor) -> Tensor:
        """Features of each frame by itself.

        Args:
            frames: (N, 3, H, W) float, as `scripts.sequences.frames.to_encoder_input` makes them.

        Returns:
            Features, (N, D).
        """
        return self.backbone(frames)


def _create(name: str) -> nn.Module:
    try:
        return timm.create_model(
            name, num_classes=0, global_pool="avg", fc_norm=False, dynamic_img_size=True
        )  # fc_norm=False: normalise, then average, as RETFound-Green does; keeps the checkpoint's names
    except TypeError:  # the family has no such options: not a plain ViT
        return timm.create_model(name, num_classes=0)


@torch.inference_mode()
def check_image_size(encoder: FrameEncoder, image_size: int) -> None:
    """Refuse an image size the encoder cannot take, before the first exam is read.

    Raises:
        ValueError: not a positive multiple of the patch size, or not the one size the family is built for.
    """
    patch = getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", 1)
    step = int(patch[0] if isinstance(patch, (tuple, list)) else patch)
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not whole or image_size < step or image_size % step:
        way_out = f"Use {max(round(image_size / step), 1) * step}." if whole else ""
        allowed = f"a positive multiple of its patch size, {step} pixels"
        raise ValueError(bad_value(f"encoder {encoder.name}", "image_size", image_size, allowed, way_out))
    parameter = next(encoder.parameters())
    frame = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    training = encoder.training
    try:
        encoder.eval()(frame)
    except (AssertionError, RuntimeError, ValueError) as error:
        own = encoder.backbone.pretrained_cfg["input_size"][-1]  # type: ignore[index]
        allowed = f"a size this family can take, such as its own, {own}"
        raise ValueError(bad_value(f"encoder {encoder.name}", "image_size", image_size, allowed)) from error
    finally:
        encoder.train(training)

"""The frame encoder: frames (N, 3, H, W) -> features (N, D), any timm backbone by name."""

import timm
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
        if not timm.is_model(name.split(".")[0]):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
            raise ValueError(
                bad_value("encoder", "encoder_name", name, f"a timm model name, such as {near or 'resnet18'}")
            )
        self.name = name
        self.backbone = _create(name)
        self.num_features: int = self.backbone.num_features

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


def image_size_step(encoder: FrameEncoder) -> int:
    """The number of pixels that H and W must be a multiple of, 1 if any size will do."""
    patch_embed = getattr(encoder.backbone, "patch_embed", None)
    size = getattr(patch_embed, "patch_size", 1)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


def check_image_size(encoder: FrameEncoder, image_size: int) -> None:
    """Refuse an image size the encoder cannot take.

    Raises:
        ValueError: not a positive multiple of the encoder's patch size.
    """
    step = image_size_step(encoder)
    if (
        isinstance(image_size, bool)
        or not isinstance(image_size, int)
        or image_size < step
        or image_size % step
    ):
        raise ValueError(
            bad_value(
                f"encoder {encoder.name}",
                "image_size",
                image_size,
                f"a positive multiple of its patch size, {step} pixels",
                f"Use {max(round(float(image_size) / step), 1) * step}."
                if isinstance(image_size, int)
                else "",
            )
        )

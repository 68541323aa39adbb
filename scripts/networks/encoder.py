"""The frame encoder: frames (N, 3, H, W) -> features (N, D) or patch tokens (N, P, D), any timm backbone by name.

`make_encoder` makes it, or for the name of a network of MONAI the encoder of volumes.
"""

import copy
import difflib

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scripts.errors import bad_value
from scripts.networks.volume_encoder import FAMILY, VolumeEncoder, check_side

POOLINGS = ("avg", "token", "max", "none")


class FrameEncoder(nn.Module):
    """A timm backbone that turns each frame into one feature vector, or into one for each patch.

    A plain ViT interpolates its position embedding to the image at hand, so that one state dict serves every image
    size; `pooling` and `layers` change what is made of its tokens and no name in the state dict. Other families (CNNs,
    hierarchical transformers, those that pool by attention) pool by themselves, and take `avg` and one layer only.

    Args:
        name: a timm model name, such as `vit_small_patch14_reg4_dinov2` (RETFound-Green's form).
        pooling: what becomes of a frame's normalised tokens: `avg` or `max` of the patch tokens (class and register
            tokens left out), the class `token`, or `none`: the patch tokens as they are.
        layers: of this many last blocks, the earliest first, the pooled features are put side by side.

    Raises:
        ValueError: timm does not know the name, or the backbone lacks what pooling or layers ask for.
    """

    def __init__(self, name: str, pooling: str = "avg", layers: int = 1) -> None:
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
        self.name, self.pooling, self.layers = name, pooling, layers
        _pool_by(self.backbone, name, pooling, layers)
        self.prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        self.num_features = layers * int(self.backbone.head_hidden_size)  # type: ignore[arg-type]

    def forward(self, frames: Tensor) -> Tensor:
        """Features of each frame by itself.

        Args:
            frames: (N, 3, H, W) float, as `scripts.sequences.frames.to_encoder_input` makes them.

        Returns:
            Features, (N, D), D being `num_features`; with pooling `none` (N, P, D), P patches row by row.
        """
        features = self.backbone(frames) if self.layers == 1 else self._of_layers(frames)
        return features[:, self.prefix_tokens :] if self.pooling == "none" else features

    def input_shape(self, image_size: int) -> tuple[int, ...]:
        """Of one frame, without the batch."""
        return (3, image_size, image_size)

    @torch.jit.unused
    def _of_layers(self, frames: Tensor) -> Tensor:
        """What the backbone's head makes of each of the last layers, side by side."""
        found = self.backbone.forward_intermediates(  # type: ignore[operator]
            frames, self.layers, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )
        if self.prefix_tokens:
            found = [torch.cat((prefix, patches), dim=1) for patches, prefix in found]  # (N, prefix + P, D)
        return torch.cat([self.backbone.forward_head(tokens) for tokens in found], dim=-1)  # type: ignore[operator]

    def __prepare_scriptable__(self) -> nn.Module:  # torch.jit.script calls it before it compiles
        if self.layers > 1:  # timm 1.0.31: forward_intermediates returns what TorchScript has no type for
            way_out = "Cache features with one layer and train again, or run the model in PyTorch."
            raise ValueError(bad_value(f"encoder {self.name}", "layers", self.layers, "1 in TorchScript", way_out))
        return self


Encoder = FrameEncoder | VolumeEncoder


def make_encoder(name: str, pooling: str = "avg", layers: int = 1) -> Encoder:
    """The encoder of frames by its name in timm, or of volumes by its path in MONAI; arguments as of both."""
    if not isinstance(name, str):
        raise ValueError(bad_value("encoder", "encoder_name", name, "the name of a timm model"))
    return (VolumeEncoder if encodes_volumes(name) else FrameEncoder)(name, pooling, layers)


def encodes_volumes(name: str) -> bool:
    """Whether the encoder of that name takes volumes."""
    return name.startswith(FAMILY)


def _create(name: str) -> nn.Module:
    try:
        return timm.create_model(
            name, num_classes=0, global_pool="avg", fc_norm=False, dynamic_img_size=True
        )  # fc_norm=False: normalise, then average, as RETFound-Green does; keeps the checkpoint's names
    except TypeError:  # the family has no such options: not a plain ViT
        return timm.create_model(name, num_classes=0)


def _pool_by(backbone: nn.Module, name: str, pooling: str, layers: int) -> None:
    """Have the backbone pool that way; refuse what it cannot do."""
    item = f"encoder {name}"
    if pooling not in POOLINGS:
        raise ValueError(bad_value(item, "pooling", pooling, f"one of {', '.join(POOLINGS)}"))
    plain = isinstance(backbone, (VisionTransformer, Eva)) and backbone.attn_pool is None
    blocks = len(backbone.blocks) if plain else 1  # type: ignore[arg-type]
    if not isinstance(layers, int) or isinstance(layers, bool) or not 1 <= layers <= blocks:
        raise ValueError(bad_value(item, "layers", layers, f"1 to {blocks}" if plain else "1: it is no plain ViT"))
    if plain:
        backbone.pool_include_prefix = False  # type: ignore[assignment]  # some of timm's average the registers too
        try:
            backbone.reset_classifier(0, "" if pooling == "none" else pooling)  # type: ignore[operator]
        except AssertionError as error:  # timm: there is no class token
            raise ValueError(bad_value(item, "pooling", pooling, "avg, max or none: it has no class token")) from error
    elif pooling != "avg":
        raise ValueError(bad_value(item, "pooling", pooling, "avg: it is no plain ViT and pools by itself"))


@torch.inference_mode()
def check_image_size(encoder: Encoder, image_size: int) -> None:
    """Refuse an image size the encoder cannot take, before the first exam is read.

    Raises:
        ValueError: not a positive multiple of the patch size, or not the one size the family is built for.
    """
    if isinstance(encoder, VolumeEncoder):
        check_side(encoder, image_size)
        return
    patch = getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", 1)
    step = int(patch[0] if isinstance(patch, (tuple, list)) else patch)
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not whole or image_size < step or image_size % step:
        way_out = f"Use {max(round(image_size / step), 1) * step}." if whole else ""
        allowed = f"a positive multiple of its patch size, {step} pixels"
        raise ValueError(bad_value(f"encoder {encoder.name}", "image_size", image_size, allowed, way_out))
    shapes = copy.deepcopy(encoder).to("meta").eval()  # computes none: a size typed too large would take minutes
    try:
        shapes(torch.zeros(1, 3, image_size, image_size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        own = encoder.backbone.pretrained_cfg["input_size"][-1]  # type: ignore[index]
        allowed = f"a size this family can take, such as its own, {own}"
        raise ValueError(bad_value(f"encoder {encoder.name}", "image_size", image_size, allowed)) from error

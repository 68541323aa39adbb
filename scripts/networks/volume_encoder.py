"""The volume encoder: volumes (N, 1, X, Y, Z) -> features (N, D), by one of MONAI's networks."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scripts.errors import bad_value

LEAST_SIDE = 32  # both families halve a volume five times


@dataclass(frozen=True)
class Form:
    """How a family is made, and what its parameters are called.

    Attributes:
        options: arguments of the network.
        num_features: D.
        layers: patterns of timm.models.group_parameters, the layers in the order of the forward pass.
    """

    options: dict[str, Any]
    num_features: int
    layers: dict[str, Any]


_RESNET = {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False}
_RESNET_LAYERS = {"stem": r"^(conv1|bn1)", "blocks": r"^layer(\d+)\.(\d+)"}
_SWIN = {  # that of SwinUNETR with feature_size 48, whose self-supervised weights fit
    **{"in_chans": 1, "embed_dim": 48, "window_size": (7, 7, 7), "patch_size": (2, 2, 2), "spatial_dims": 3},
    **{"depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24)},
}
_SWIN_LAYERS = {
    "stem": r"^patch_embed",
    "blocks": [(r"^layers(\d+)\.0\.blocks\.(\d+)", None), (r"^layers(\d+)\.0\.downsample", (1,))],
}
FAMILY = "monai.networks.nets."
FORMS = {
    **{f"{FAMILY}resnet{depth}": Form(_RESNET, 512, _RESNET_LAYERS) for depth in (10, 18, 34)},
    f"{FAMILY}resnet50": Form(_RESNET, 2048, _RESNET_LAYERS),
    f"{FAMILY}swin_unetr.SwinTransformer": Form(_SWIN, 768, _SWIN_LAYERS),
}


class VolumeEncoder(nn.Module):
    """A network of MONAI that turns each volume into one feature vector, its last feature map averaged.

    The ResNets normalise over the batch: their features can be cached, and no layer of theirs be finetuned. The Swin
    transformer can be trained.

    Args:
        name: one of `FORMS`.
        pooling: `avg`.
        layers: 1.

    Raises:
        ValueError: another name, pooling or number of layers.
    """

    def __init__(self, name: str, pooling: str = "avg", layers: int = 1) -> None:
        super().__init__()
        item = f"encoder {name}"
        for knob, value, allowed in (("encoder_name", name, FORMS), ("pooling", pooling, ("avg",))):
            if value not in allowed:
                raise ValueError(bad_value(item, knob, value, f"one of {', '.join(allowed)}, for volumes"))
        if layers != 1 or isinstance(layers, bool):
            raise ValueError(bad_value(item, "layers", layers, "1, for volumes"))
        self.name, self.pooling, self.layers = name, pooling, layers
        form = FORMS[name]
        module, _, maker = name.rpartition(".")
        self.backbone: nn.Module = getattr(importlib.import_module(module), maker)(**form.options)
        self.backbone.group_matcher = functools.partial(_layers_of, form)  # type: ignore[assignment]  # as timm's have
        self.num_features = form.num_features

    def forward(self, volumes: Tensor) -> Tensor:
        """Features (N, D) of each volume by itself.

        Args:
            volumes: (N, 1, X, Y, Z) float, as `scripts.sequences.volumes` makes them.
        """
        if volumes.ndim != 5:
            raise ValueError(
                "encoder of volumes: input of frames, needs volumes (N, 1, X, Y, Z). Give configs/volumes.yaml too."
            )
        found = self.backbone(volumes)
        last = found[-1] if isinstance(found, (list, tuple)) else found  # of a map after each stage the last one
        return last.flatten(2).mean(2) if last.ndim == 5 else last

    def input_shape(self, image_size: int) -> tuple[int, ...]:
        """Of one volume, without the batch."""
        return (1, image_size, image_size, image_size)


def check_side(encoder: VolumeEncoder, image_size: object) -> None:
    """Refuse a side the encoder cannot take.

    Raises:
        ValueError: no whole number, or too small to be halved so often.
    """
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not whole or image_size < LEAST_SIDE:  # type: ignore[operator]
        allowed = f"a whole number of at least {LEAST_SIDE}"
        raise ValueError(bad_value(f"encoder {encoder.name}", "image_size", image_size, allowed))


def _layers_of(form: Form, coarse: bool = False) -> dict[str, Any]:
    return form.layers

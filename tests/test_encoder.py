"""The frame encoder: any image size of whole patches, each pooling and layer as timm's own parts give it."""

import pytest
import timm
import torch
from torch import nn

from scripts.networks.encoder import POOLINGS, FrameEncoder, check_image_size
from scripts.networks.weights import load_into
from tests.conftest import assert_message

VIT, CNN = "test_vit", "test_resnet"  # timm's own miniatures: 0.3 M and 0.4 M parameters
REGISTERS, EVA = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"  # five prefix tokens each
BARE = "vit_medium_patch16_gap_240"  # none


def frames_of(size: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(
    ("name", "sizes"), [(VIT, (16, 32, 48, 160)), ("vit_tiny_patch16_224", (32,)), (CNN, (32, 50))]
)
@torch.inference_mode()
def test_features_of_any_size_of_whole_patches_are_one_row_a_frame(name, sizes):
    encoder = FrameEncoder(name).eval()
    shapes = [tuple(encoder(frames_of(size)).shape) for size in sizes]
    assert shapes == [(2, encoder.num_features)] * len(sizes)


@pytest.mark.parametrize(("name", "prefix_tokens"), [(VIT, 1), ("vit_small_patch14_reg4_dinov2", 5)])
@torch.inference_mode()
def test_features_of_a_vit_are_the_mean_of_its_normalised_patch_tokens_alone(name, prefix_tokens):
    encoder = FrameEncoder(name).eval()
    side = 3 * encoder.backbone.patch_embed.patch_size[0]
    tokens = encoder.backbone.forward_features(frames_of(side))  # (N, prefix + 9, D)
    assert tokens.shape[1] == prefix_tokens + 9
    torch.testing.assert_close(encoder(frames_of(side)), tokens[:, prefix_tokens:].mean(dim=1))


# --- pooling and layers ---


def encoder_of(name: str, pooling: str, layers: int = 1) -> FrameEncoder:
    """With weights that every pooling and number of layers shares."""
    encoder = FrameEncoder(name, pooling, layers)
    load_into(encoder, "random:0", "models")
    return encoder.eval()


def tokens_after(encoder: FrameEncoder, frames: torch.Tensor, block: int) -> torch.Tensor:
    """Normalised tokens (N, prefix + P, D) after a block, run by hand from the input."""
    kept: list[torch.Tensor] = []
    hook = encoder.backbone.blocks[block].register_forward_hook(lambda module, inputs, out: kept.append(out))
    encoder.backbone.forward_features(frames)
    hook.remove()
    return encoder.backbone.fc_norm(encoder.backbone.norm(kept[0]))  # one of the two is the identity


POOLED = {
    "avg": lambda tokens, prefix: tokens[:, prefix:].mean(dim=1),
    "max": lambda tokens, prefix: tokens[:, prefix:].amax(dim=1),
    "token": lambda tokens, prefix: tokens[:, 0],
    "none": lambda tokens, prefix: tokens[:, prefix:],
}


@pytest.mark.parametrize(
    ("name", "prefix", "pooling", "layers"),
    [
        *((VIT, 1, pooling, layers) for pooling in POOLINGS for layers in (1, 3)),
        *(("test_vit3", 1, pooling, layers) for pooling in ("avg", "none") for layers in (1, 3)),
        *((REGISTERS, 5, pooling, 2) for pooling in ("avg", "token", "none")),
        *((EVA, 5, pooling, 2) for pooling in ("avg", "token", "none")),
        (BARE, 0, "avg", 2),
    ],
)
@torch.inference_mode()
def test_features_are_the_pooled_normalised_tokens_of_the_last_blocks_side_by_side(name, prefix, pooling, layers):
    encoder = encoder_of(name, pooling, layers)
    frames = frames_of(3 * encoder.backbone.patch_embed.patch_size[0])
    blocks = range(len(encoder.backbone.blocks))[-layers:]
    wanted = torch.cat([POOLED[pooling](tokens_after(encoder, frames, b), prefix) for b in blocks], dim=-1)
    found = encoder(frames)
    torch.testing.assert_close(found, wanted)
    width = encoder.backbone.embed_dim * layers
    assert encoder.num_features == width
    assert found.shape == ((2, 9, width) if pooling == "none" else (2, width))


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_last_of_several_layers_is_the_one_layer_bit_for_bit(pooling):
    frames = frames_of(48)
    one, three = encoder_of(VIT, pooling)(frames), encoder_of(VIT, pooling, 3)(frames)
    torch.testing.assert_close(three[..., -one.shape[-1] :], one, rtol=0, atol=0)


@torch.inference_mode()
def test_patch_tokens_stand_row_by_row_whatever_the_frames_shape():
    encoder = encoder_of(VIT, "none")
    frame = torch.zeros(1, 3, 32, 48)  # 2 x 3 patches of 16 pixels
    plain = encoder.backbone.patch_embed(frame)  # (1, 2, 3, D)
    frame[:, :, 16:, :16] = 1  # the first patch of the second row
    changed = (encoder.backbone.patch_embed(frame) != plain).any(dim=-1).flatten()
    assert changed.tolist() == [False, False, False, True, False, False]
    assert encoder(frame).shape == (1, 6, 64)


@pytest.mark.parametrize("name", [VIT, "eva02_tiny_patch14_224"])
@pytest.mark.parametrize(("pooling", "layers"), [("token", 1), ("max", 1), ("none", 1), ("avg", 2)])
def test_pooling_and_layers_change_no_name_or_shape_in_the_state_dict(name, pooling, layers):
    shapes = [
        {tensor_name: tensor.shape for tensor_name, tensor in encoder.state_dict().items()}
        for encoder in (FrameEncoder(name), FrameEncoder(name, pooling, layers))
    ]
    assert shapes[0] == shapes[1]
    own = {f"backbone.{n}" for n in timm.create_model(name, num_classes=0).state_dict()}
    assert shapes[0].keys() == own


@pytest.mark.parametrize(
    ("name", "options", "field", "found"),
    [
        (VIT, {"pooling": "mean"}, "pooling", "mean"),
        (VIT, {"pooling": None}, "pooling", "None"),
        (VIT, {"layers": 0}, "layers", "0"),
        (VIT, {"layers": 7}, "layers", "7"),
        (VIT, {"layers": 2.0}, "layers", "2.0"),
        (VIT, {"layers": True}, "layers", "True"),
        ("test_vit3", {"pooling": "token"}, "pooling", "token"),  # it has no class token
        (CNN, {"pooling": "none"}, "pooling", "none"),
        (CNN, {"layers": 2}, "layers", "2"),
        ("test_vit_relpos", {"pooling": "token"}, "pooling", "token"),
        ("test_vit_relpos", {"layers": 2}, "layers", "2"),
        ("vit_pe_core_tiny_patch16_384", {"pooling": "max"}, "pooling", "max"),  # it pools by attention
    ],
)
def test_pooling_or_layers_that_a_backbone_lacks_are_refused_by_name(name, options, field, found):
    with pytest.raises(ValueError) as refused:
        FrameEncoder(name, **options)
    assert_message(refused.value, f"encoder {name}", field, found)


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.inference_mode()
def test_scripted_encoder_of_one_layer_equals_the_eager_one(pooling):
    encoder, frames = encoder_of(VIT, pooling), frames_of(48)
    torch.testing.assert_close(torch.jit.script(encoder)(frames), encoder(frames))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # branches of timm on shapes, which are fixed here
@torch.inference_mode()
def test_encoder_of_several_layers_is_refused_when_scripted_and_traces_to_equal_features():
    encoder, frames = encoder_of(VIT, "avg", 2), frames_of(48)
    for module in (encoder, nn.Sequential(encoder)):
        with pytest.raises(ValueError) as refused:
            torch.jit.script(module)
        assert_message(refused.value, f"encoder {VIT}", "layers", "2", "1 in TorchScript")
    torch.testing.assert_close(torch.jit.trace(encoder, frames)(frames), encoder(frames))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", CNN])
@torch.inference_mode()
def test_width_of_a_family_with_a_hidden_head_is_that_of_its_features(name):
    encoder = FrameEncoder(name).eval()
    assert encoder(frames_of(64)).shape == (2, encoder.num_features)


@torch.inference_mode()
def test_features_of_a_frame_do_not_depend_on_the_frames_beside_it():
    encoder = FrameEncoder(VIT).eval()
    frames = frames_of(32, count=3)
    one_by_one = torch.cat([encoder(frame[None]) for frame in frames])
    torch.testing.assert_close(encoder(frames), one_by_one)


def test_one_state_dict_serves_every_image_size():
    encoder = FrameEncoder(VIT)
    before = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    with torch.inference_mode():
        encoder(frames_of(64))
    assert {name: tensor.shape for name, tensor in encoder.state_dict().items()} == before


@pytest.mark.parametrize("name", ["vit_tiny_patch16", "resnet", ""])
def test_unknown_name_is_refused_with_names_near_it(name):
    with pytest.raises(
        ValueError, match=r"encoder_name is .*needs a timm model that can average .*, such as \w+, \w+"
    ) as error:
        FrameEncoder(name)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("image_size", [0, -16, 15, 17, 200, 32.0, True, "32"])
def test_image_size_that_is_no_whole_number_of_patches_is_refused(image_size):
    with pytest.raises(ValueError, match=f"{VIT}: image_size is {image_size}, needs .* 16 pixels"):
        check_image_size(FrameEncoder(VIT), image_size)


def test_refused_image_size_comes_with_one_that_works():
    encoder = FrameEncoder(VIT)
    with pytest.raises(ValueError, match=r"Use 64\.$"):
        check_image_size(encoder, 62)
    check_image_size(encoder, 64)


def test_image_size_that_a_backbone_of_fixed_size_cannot_take_is_refused():
    encoder = FrameEncoder("test_vit_relpos")  # like swin, beit, eva02: 160 px only
    with pytest.raises(ValueError, match="image_size is 64"):
        check_image_size(encoder, 64)


def test_unknown_pretrained_tag_is_refused_like_an_unknown_name():
    with pytest.raises(ValueError, match=r"encoder_name is test_vit\.nope"):
        FrameEncoder("test_vit.nope")


def test_vit_that_cannot_average_its_tokens_is_refused_by_name():
    with pytest.raises(ValueError, match="encoder_name is deit_tiny_distilled"):
        FrameEncoder("deit_tiny_distilled_patch16_224")

"""The frame encoder: any image size of whole patches, patch tokens alone, one clear error otherwise."""

import pytest
import torch

from scripts.networks.encoder import FrameEncoder, check_image_size

VIT, CNN = "test_vit", "test_resnet"  # timm's own miniatures: 0.3 M and 0.4 M parameters


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

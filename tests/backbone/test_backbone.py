"""rein_hf.backbone: the pyramid, and patch and position embeddings of other sizes."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, AutoModel, Dinov2Backbone, Dinov2Config

from rein_hf import ViTPyramidBackbone, ViTPyramidConfig
from rein_hf.backbone import load_vit, rescale
from rein_hf.backbone.resampling import resample, resample_patch_embed, resample_position_embed


VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return ViTPyramidBackbone(ViTPyramidConfig(backbone_config=Dinov2Config(**VIT))).eval()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (32, 48), (160, 32)])
def test_maps_are_the_stock_backbones_maps_resized(backbone, size):
    """At the trained size both interpolate nothing, so the stock backbone of the same weights is the reference."""
    images = torch.randn(1, 3, *size)
    stock = Dinov2Backbone(Dinov2Config(**VIT, out_indices=[1, 2, 3, 4], apply_layernorm=False)).eval()
    stock.load_state_dict(backbone.vit.state_dict())
    stock.embeddings = copy.deepcopy(backbone.vit.embeddings)  # positions are tested below
    with torch.no_grad():
        expected, maps = stock(images).feature_maps, backbone(images).feature_maps
    for scale, reference, found in zip((4, 2, 1, 0.5), expected, maps, strict=True):
        assert found.shape[-2:] == (int(size[0] / 16 * scale), int(size[1] / 16 * scale))
        if scale != 1:
            reference = F.interpolate(reference, scale_factor=scale, mode="bilinear", align_corners=False)
        assert torch.equal(found, reference)


def test_positions_are_verbatim_for_the_trained_square_only(backbone):
    embeddings = backbone.vit.embeddings
    assert embeddings.interpolate_pos_encoding(None, 64, 64) is embeddings.position_embeddings
    grid = embeddings.position_embeddings[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    for rows, columns in ((4, 6), (8, 2), (8, 8)):
        found = embeddings.interpolate_pos_encoding(None, 16 * rows, 16 * columns)
        scale = ((rows + 0.1) / 4, (columns + 0.1) / 4)
        expected = F.interpolate(grid, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        assert found.shape == (1, 1 + rows * columns, 32)
        assert torch.equal(found[:, 1:], expected)
        exact = F.interpolate(grid, size=(rows, columns), mode="bicubic").flatten(2).transpose(1, 2)
        assert not torch.allclose(found[:, 1:], exact, atol=1e-4)  # the 0.1 is seen


@pytest.mark.parametrize("autocast", [False, True])
def test_positions_of_a_traced_graph_are_the_same(backbone, monkeypatch, autocast):
    """To rounding, at the trained size and others, under autocast as well."""
    embeddings = backbone.vit.embeddings
    for rows, columns in ((4, 4), (4, 6), (8, 2), (3, 9)):
        expected = embeddings.interpolate_pos_encoding(None, 16 * rows, 16 * columns)
        with monkeypatch.context() as patched, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            found = embeddings.interpolate_pos_encoding(None, 16 * rows, 16 * columns)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("scale", [4, 2, 1, 0.5])
def test_maps_of_a_traced_graph_are_the_same(monkeypatch, scale):
    """To rounding; sides of an odd number of patches too."""
    for size in ((4, 6), (5, 7), (2, 3)):
        maps = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = rescale(maps, scale)
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            found = rescale(maps, scale)
        assert found.shape[-2:] == tuple(int(side * scale) for side in size)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_registered_with_auto_classes(backbone, tmp_path):
    assert isinstance(AutoConfig.for_model("vit_pyramid"), ViTPyramidConfig)
    backbone.save_pretrained(tmp_path)
    loaded = ViTPyramidBackbone.from_pretrained(tmp_path)
    assert isinstance(AutoBackbone.from_config(loaded.config), ViTPyramidBackbone)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("depth", "expected"), [(24, [8, 12, 16, 24]), (12, [3, 6, 9, 12]), (8, [2, 4, 6, 8]), (40, [10, 20, 30, 40])]
)
def test_default_blocks(depth, expected):
    config = ViTPyramidConfig(backbone_config=Dinov2Config(num_hidden_layers=depth))
    assert config.out_indices == expected
    assert ViTPyramidConfig.from_dict(config.to_dict()).out_indices == expected


def test_wrong_sizes_are_refused(backbone):
    with pytest.raises(ValueError, match=r"72x64 pixels; expected sides that are multiples of the patch size 16"):
        backbone(torch.zeros(1, 3, 72, 64))
    with pytest.raises(ValueError, match=r"16x64 pixels; expected .* 32 at least"):
        backbone(torch.zeros(1, 3, 16, 64))
    with pytest.raises(ValueError, match=r"out_indices is \[1, 2, 3, 5\]; expected 4 different blocks from 1 to 4"):
        ViTPyramidConfig(backbone_config=Dinov2Config(**VIT), out_indices=[1, 2, 3, 5])
    with pytest.raises(ValueError, match=r"out_indices is \[1, 2, 4\]"):
        ViTPyramidConfig(backbone_config=Dinov2Config(**VIT), out_indices=[1, 2, 4])


def test_patch_14_is_resampled_to_16(vit_folder):
    stock = AutoModel.from_pretrained(vit_folder, dtype=torch.float32).state_dict()
    config, found = load_vit(vit_folder, image_size=64, patch_size=16, dtype=torch.float32)
    assert (config.patch_size, config.image_size) == (16, 64)
    kernel = "embeddings.patch_embeddings.projection.weight"
    expected = F.interpolate(stock[kernel], size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(found[kernel], expected)
    positions = "embeddings.position_embeddings"
    assert stock[positions].shape == (1, 17, 32) and found[positions].shape == (1, 17, 32)
    assert torch.equal(found[positions], stock[positions])  # 4 x 4 both for 56 / 14 and for 64 / 16
    larger = load_vit(vit_folder, image_size=128, patch_size=16, dtype=torch.float32)[1][positions]
    grid = stock[positions][:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.equal(larger[:, 1:], expected) and torch.equal(larger[:, :1], stock[positions][:, :1])
    for name in stock.keys() - {kernel, positions, "embeddings.mask_token"}:
        assert torch.equal(found[name], stock[name])


def test_resampling_to_the_same_size_is_the_identity():
    kernel, positions = torch.randn(8, 3, 16, 16), torch.randn(1, 17, 8)
    assert resample_patch_embed(kernel, 16) is kernel
    assert resample_position_embed(positions, 4) is positions
    with pytest.raises(ValueError, match="18 position embeddings found; expected a square number"):
        resample_position_embed(torch.randn(1, 19, 8), 4)


def test_dropout_of_a_checkpoint_is_switched_off(tmp_path):
    config = Dinov2Config(**VIT, drop_path_rate=0.3, hidden_dropout_prob=0.2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    found, _ = load_vit(tmp_path, image_size=64, patch_size=16, dtype=torch.float32)
    assert (found.drop_path_rate, found.hidden_dropout_prob) == (0.0, 0.0)


def test_resampling_of_every_kind():
    """Maps that grow linearly stay so inside; what belongs to the class token is left alone."""
    for shape, new, class_tokens in (
        ((1, 37, 2), (1, 65, 2), 1),
        ((37, 2), (65, 2), 1),
        ((1, 6, 6, 2), (1, 8, 8, 2), 0),
    ):
        rows = torch.arange(6.0).repeat_interleave(6)
        grid = torch.cat([torch.full((class_tokens, 2), -5.0), torch.stack([rows, -rows], 1)]).reshape(shape)
        found = resample(grid, torch.Size(new), "grid", class_tokens).reshape(-1, 2)
        assert torch.equal(found[:class_tokens], torch.full((class_tokens, 2), -5.0))
        expected = (torch.arange(8.0) + 0.5) * 6 / 8 - 0.5
        torch.testing.assert_close(found[class_tokens:, 0].view(8, 8)[2:6, 3], expected[2:6], atol=0.05, rtol=0)
        torch.testing.assert_close(found[:, 1][class_tokens:], -found[:, 0][class_tokens:])
    axis = torch.arange(11.0)[:, None].repeat(1, 3)
    found = resample(axis, torch.Size([15, 3]), "axis", 0)
    torch.testing.assert_close(found[1:-1, 0], ((torch.arange(15.0) + 0.5) * 11 / 15 - 0.5)[1:-1])
    offsets = torch.cat([torch.arange(25.0), torch.tensor([7.0, 8.0, 9.0])])[:, None]
    found = resample(offsets, torch.Size([9 * 9 + 3, 1]), "offsets", 1)
    assert found[-3:, 0].tolist() == [7.0, 8.0, 9.0]
    assert found[4 * 9 + 4, 0] == 12  # in the middle: no offset in either direction
    assert resample(offsets, offsets.shape, "offsets", 1) is offsets
    half = resample(offsets.half(), torch.Size([84, 1]), "offsets", 1)
    assert half.dtype == torch.float16


def test_image_sizes_that_are_no_multiple_of_the_patch_are_refused(vit_folder):
    with pytest.raises(ValueError, match="image_size is 60; expected a multiple of patch_size 16"):
        load_vit(vit_folder, image_size=60, patch_size=16)

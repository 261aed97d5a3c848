"""Rein on every known architecture: a tiny checkpoint of each through the segmenter."""

import copy
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import Sam2VisionModel, SwinConfig, SwinModel

import rein_hf
from rein_hf import ReinConfig, ReinLayer
from rein_hf.backbone import load_vit
from rein_hf.tuner.architectures import ARCHITECTURES, find_vision_encoder
from tests.support import vision_encoders
from tests.support.fake_cuda import FakeCuda
from tests.support.models import BuiltOnce, adapter_parameters, perturb, trainable_names
from tests.support.runs import HEAD


HIERA = Path(__file__).parents[3] / "shared" / "weights" / "sam2-hiera-tiny"
PREFIX = {"dinov2 with registers": 4, "dinov3": 3, "sam": 0, "sam vision": 0, "sam2 hiera": 0, "siglip": 0}
LEARNED = ["clip", "mae", "siglip", "vit"]  # positions that transformers interpolates when it is told to


@pytest.fixture(scope="module", params=vision_encoders.CHECKPOINTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    return vision_encoders.write_encoder(name, tmp_path_factory.mktemp("source"))


def build(folder, **kwargs):
    torch.manual_seed(0)
    classes = {0: "road", 1: "car", 2: "sky"}
    return rein_hf.build_segmenter(folder, classes, **{"image_size": 64, "num_queries": 8, "head": HEAD, **kwargs})


@pytest.fixture(scope="module")
def built_once(folder):
    return BuiltOnce(build, folder)


@pytest.fixture
def base(built_once):
    return built_once().eval()


@pytest.fixture
def model(base):
    """With Rein, every trainable weight moved away from its initial value."""
    model = rein_hf.add_rein(base, ReinConfig(r=4, num_tokens=8))
    perturb(model)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def encoder(model):
    return model.get_submodule(next(n for n, m in model.named_modules() if isinstance(m, rein_hf.ViTPyramidBackbone)))


def layers(model) -> list[ReinLayer]:
    return [module for module in model.modules() if isinstance(module, ReinLayer)]


def maps(model, images):
    with torch.no_grad():
        return encoder(model)(images).feature_maps


def outputs(model, images):
    # the last bit of a CPU matmul depends on whether its weights require gradients
    model = copy.deepcopy(model).eval().requires_grad_(False)
    output = model(pixel_values=images)
    return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])


def test_no_feature_or_gradient_needs_the_host(model, images):
    """A GPU would wait for what is computed there, and no CUDA graph could be recorded."""
    backbone, images, host = encoder(model.to("meta").train()), images.to("meta"), FakeCuda()
    with host:
        maps = backbone(images).feature_maps
        sum(one.mean() for one in maps).backward()
    assert not host.on_host
    assert all(weight.grad.shape == weight.shape for weight in backbone.parameters() if weight.grad is not None)


def test_every_architecture_is_tested():
    found = [find_vision_encoder(make()).model.config.model_type for make in vision_encoders.CHECKPOINTS.values()]
    assert set(found) == set(ARCHITECTURES)


def test_a_map_depends_on_the_tokens_of_its_block_and_of_earlier_ones_only(model, images):
    before, blocks = maps(model, images), encoder(model).config.out_indices
    index = 0
    for layer in layers(model):
        for row in range(len(layer)):
            index += 1
            tokens = layer.rein_tokens_a["default"].data[row]
            kept = tokens.clone()
            tokens += 1
            same = [torch.equal(a, b) for a, b in zip(before, maps(model, images), strict=True)]
            assert same == [block < index for block in blocks]
            tokens.copy_(kept)
    assert index == sum(encoder(model).config.depths)


def test_prefix_tokens_pass_bit_for_bit_and_all_patches_are_refined(model, images, name):
    prefix, seen = PREFIX.get(name, 1), []
    for block in (block for layer in layers(model) for block in layer):
        block.register_forward_hook(lambda block, args, output: seen.append(output), prepend=True)
        block.register_forward_hook(lambda block, args, output: seen.append(output))
    maps(model, images)
    assert len(seen) == 2 * sum(encoder(model).config.depths)
    for plain, refined in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(plain[:, :prefix], refined[:, :prefix])
        assert bool((plain[:, prefix:] != refined[:, prefix:]).any(dim=-1).all())


def test_blocks_are_refined_as_in_the_paper(model, images, name):
    [layer] = layers(model)[-1:]
    plain = []
    layer[len(layer) - 1].register_forward_hook(lambda block, args, output: plain.append(output), prepend=True)
    final = maps(model, images)[-1]
    f = plain[0] if plain[0].dim() == 4 else plain[0][:, PREFIX.get(name, 1) :].unflatten(1, (4, 6))
    with torch.no_grad():
        t = layer.tokens("default")[-1]
        values = t[1:] @ layer.rein_token_to_feature["default"].weight.T + layer.rein_token_to_feature["default"].bias
        attention = (f @ t.T / t.shape[-1] ** 0.5).softmax(-1)[..., 1:]
        f = f + layer.rein_scale["default"] * layer.rein_delta["default"](attention @ values + f)
    f = f.permute(0, 3, 1, 2)
    if not encoder(model).config.in_stages:
        f = F.interpolate(f, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(final, f, rtol=1e-4, atol=1e-4)


def loss(model, images):
    torch.manual_seed(0)  # the points at which masks are compared
    masks = [(torch.rand(2, *images.shape[-2:]) > 0.5).float() for _ in images]
    return model(pixel_values=images, mask_labels=masks, class_labels=[torch.tensor([0, 2])] * len(images)).loss


def test_gradients_reach_rein_and_the_head_and_nothing_else(model, images):
    loss(model.train(), images).backward()
    found = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == trainable_names(model) == adapter_parameters(model, "default")
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if ".rein_" in name)


def test_checkpointing_changes_no_gradient(model, images):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder(model).activation_checkpointing_enable()
        model.zero_grad()
        loss(model.train(), images).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if ".rein_" in name})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_reloaded_models_are_bit_equal(model, base, images, folder, tmp_path):
    expected = outputs(model, images)
    model.save_pretrained(tmp_path / "adapter")
    loaded = rein_hf.from_pretrained(tmp_path / "adapter")
    assert torch.equal(outputs(loaded, images), expected)
    assert torch.equal(outputs(rein_hf.from_pretrained(tmp_path / "adapter", backbone=folder), images), expected)
    described = rein_hf.describe(tmp_path / "adapter")
    assert described.classes == ("road", "car", "sky")
    assert described.rein_parameters == sum(
        p.numel() for n, p in model.named_parameters() if ".rein_" in n and "query_content" not in n
    )


def test_a_whole_model_is_saved_and_loaded(base, images, tmp_path):
    expected = outputs(base, images)
    base.save_pretrained(tmp_path)
    assert torch.equal(outputs(rein_hf.from_pretrained(tmp_path), images), expected)


def test_disabled_and_unloaded_it_is_the_base(base, images):
    features, names = maps(base, images), list(encoder(base).state_dict())
    expected = outputs(base, images)
    model = rein_hf.add_rein(base, ReinConfig(r=4, num_tokens=8))
    perturb(model)
    refined = outputs(model, images)
    assert not torch.equal(refined, expected)
    with model.disable_adapter():
        assert all(map(torch.equal, maps(model, images), features))
        assert torch.equal(outputs(model, images), expected)
    assert torch.equal(outputs(model, images), refined)
    unloaded = model.unload()
    assert list(encoder(unloaded).state_dict()) == names
    assert all(map(torch.equal, maps(unloaded, images), features))


def test_two_adapters_take_turns(model, images):
    first = maps(model, images)
    model.add_adapter("night", ReinConfig(r=None, num_tokens=8, modules_to_save=rein_hf.HEAD_MODULES))
    model.set_adapter("night")
    second = maps(model, images)
    assert not any(map(torch.equal, first, second))
    model.set_adapter("default")
    model.delete_adapter("night")
    assert all(map(torch.equal, maps(model, images), first))


def test_a_bare_vision_encoder_is_tuned_as_well(name, images):
    whole = vision_encoders.make_encoder(name)
    source = find_vision_encoder(whole)
    tuned = get_peft_model(whole, ReinConfig(r=4, num_tokens=6))
    assert {n for n, m in whole.named_modules() if isinstance(m, (ReinLayer, rein_hf.ReinStages))} >= {source.blocks}
    assert len(layers(tuned)) == (4 if "hiera" in name else 1)
    assert all(".rein_" in name for name in trainable_names(tuned))


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32), (48, 80), (240, 176)])
def test_images_of_any_size(model, size):
    torch.manual_seed(2)
    found = maps(model, torch.randn(1, 3, *size))
    for map, width, scale in zip(found, encoder(model).channels, (4, 2, 1, 0.5), strict=True):
        assert map.shape == (1, width, int(size[0] / 16 * scale), int(size[1] / 16 * scale))
        assert map.isfinite().all()


def test_photos_of_any_size_are_segmented(model):
    scores = rein_hf.slide_inference(model, torch.randn(1, 3, 75, 100))
    assert scores.shape == (1, 3, 75, 100) and scores.isfinite().all()


def test_training_is_as_evaluation(model, images):
    """Neither dropout, nor stochastic depth, nor positions moved at random."""
    expected = maps(model, images)
    assert all(map(torch.equal, maps(model.train(), images), expected))


def test_a_frozen_backbone_in_bfloat16(base, images):
    expected = maps(base, images)
    found = maps(base.to(torch.bfloat16), images)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() < 0.1 * b.norm()


def test_features_are_those_of_transformers(name, folder):
    """At the trained size and patch, without what the segmenter changes: outputs of the blocks, before any norm."""
    whole = vision_encoders.make_encoder(name)
    source = find_vision_encoder(whole).model
    vit = source.config
    image, patch = (64, 16) if "hiera" in name else (vit.image_size, vit.patch_size)
    found = build(folder, image_size=image, patch_size=patch).eval()
    images = torch.randn(2, 3, image, image)
    outputs, blocks = [], source.get_submodule(ARCHITECTURES[vit.model_type].blocks)
    for block in blocks:
        block.register_forward_hook(lambda block, args, output: outputs.append(output))
    with torch.no_grad():
        if name == "mae":  # in order, and without leaving patches out
            source.config.mask_ratio = 0.0
            source(images, noise=torch.arange(9.0).repeat(2, 1))
        else:
            source(images)
    config = encoder(found).config
    expected = [outputs[index - 1] for index in config.out_indices]
    for map, output, scale in zip(maps(found, images), expected, (4, 2, 1, 0.5), strict=True):
        if not ARCHITECTURES[vit.model_type].grid:
            output = output[:, PREFIX.get(name, 1) :].unflatten(1, (image // patch, image // patch))
        output = output.permute(0, 3, 1, 2)
        if not config.in_stages and scale != 1:
            output = F.interpolate(output, scale_factor=scale, mode="bilinear")
        assert torch.equal(map, output)


def test_sizes_of_a_checkpoint_that_fit_leave_its_weights_alone(name, folder):
    source = find_vision_encoder(vision_encoders.make_encoder(name)).model
    image, patch = (64, 16) if "hiera" in name else (source.config.image_size, source.config.patch_size)
    _, weights = load_vit(folder, image, patch)
    stock = source.state_dict()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in weights.items())
    left_out = {name.split(".")[0] for name in stock.keys() - weights.keys()}
    assert left_out <= {"pooler", "head", "neck", "embeddings"}
    assert {n for n in stock.keys() - weights.keys() if n.startswith("embeddings")} <= {"embeddings.mask_token"}


@pytest.mark.parametrize("name", LEARNED, indirect=True)
def test_learned_positions_are_interpolated_as_transformers_does(name, folder):
    """Resampled when it is loaded, or interpolated by the stock model for that image: the same."""
    stock = find_vision_encoder(vision_encoders.make_encoder(name)).model
    patch, side = stock.config.patch_size, 5
    images = torch.randn(2, 3, side * patch, side * patch)
    found = encoder(build(folder, image_size=side * patch, patch_size=patch)).vit
    if name == "mae":
        stock.config.mask_ratio = 0.0
        kwargs = {"noise": torch.arange(float(side**2)).repeat(2, 1)}
    else:
        kwargs = {}
    with torch.no_grad():
        expected = stock(images, interpolate_pos_encoding=True, output_hidden_states=True, **kwargs).hidden_states
        states = found(images, output_hidden_states=True).hidden_states
    for a, b in zip(states, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_relative_positions_are_interpolated_as_transformers_does(tmp_path):
    """BEiT's, and SAM's where it looks at the whole image: the same, resampled at loading or for an image."""
    stock = vision_encoders.make_encoder("beit")
    images = torch.randn(1, 3, 80, 80)
    found = encoder(build(vision_encoders.write_encoder("beit", tmp_path / "beit"), image_size=80)).vit
    assert found.layers[0].relative_position_bias.relative_position_bias_table.shape == (9 * 9 + 3, 2)
    with torch.no_grad():
        expected = stock(images, output_hidden_states=True).hidden_states
        for a, b in zip(found(images, output_hidden_states=True).hidden_states, expected, strict=True):
            torch.testing.assert_close(a, b)
    whole, small = (
        vision_encoders.make_encoder("sam"),
        encoder(build(vision_encoders.write_encoder("sam", tmp_path / "sam"))).vit,
    )
    features = torch.randn(1, 4, 4, 32)
    for before, after in zip(whole.vision_encoder.layers, small.layers, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(after(features), before(features))
    assert small.layers[0].attn.rel_pos_h.shape == (5, 16)  # of a window
    assert small.layers[1].attn.rel_pos_h.shape == (7, 16)  # of 4 x 4 patches, of 6 x 6 before


def test_sams_absolute_positions(tmp_path):
    whole = vision_encoders.make_encoder("sam").vision_encoder
    found = encoder(build(vision_encoders.write_encoder("sam", tmp_path), image_size=64)).vit
    grid = whole.pos_embed.permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(found.pos_embed, expected, rtol=0, atol=0)
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        first = found(images, output_hidden_states=True).hidden_states[0]
        wide = F.interpolate(expected.permute(0, 3, 1, 2), size=(4, 8), mode="bicubic", align_corners=False)
        patches = found.patch_embed.projection(images) + wide
    torch.testing.assert_close(first, patches.permute(0, 2, 3, 1))
    assert found(images).hidden_states is None


def test_registers_are_positioned_as_dinov2(tmp_path):
    found = encoder(build(vision_encoders.write_encoder("dinov2 with registers", tmp_path))).vit.embeddings
    grid = found.position_embeddings[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, scale_factor=(4.1 / 4, 6.1 / 4), mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.equal(found.interpolate_pos_encoding(None, 64, 96)[:, 1:], expected)


@pytest.mark.parametrize("name", ["sam2 hiera"], indirect=True)
def test_stages(base, images):
    model = rein_hf.add_rein(base, ReinConfig(r=4, num_tokens=8))
    assert [(layer.hidden_size, len(layer)) for layer in layers(model)] == [(8, 1), (16, 2), (32, 3), (64, 1)]
    stages = next(module for module in model.modules() if isinstance(module, rein_hf.ReinStages))
    assert len(stages) == len(list(stages)) == 7 and stages[6] is stages.stages[3][0]
    position = model.base_model.model.model.transformer_module.queries_embedder
    expected = sum(layer.object_queries("default") for layer in layers(model))
    assert torch.equal(position.weight, expected) and expected.shape == (8, 32)
    text = str(model)
    assert "(blocks): ReinStages(" in text and text.count(": ReinLayer(") == 4
    config = model.peft_config["default"]
    assert (config.hidden_size, config.num_hidden_layers) == ([8, 16, 32, 64], [1, 2, 3, 1])
    assert encoder(model).config.out_indices == [1, 3, 6, 7] and encoder(model).channels == [8, 16, 32, 64]


@pytest.mark.parametrize("name", ["sam2 hiera"], indirect=True)
def test_some_blocks_of_stages(folder, images):
    model = rein_hf.add_rein(build(folder), ReinConfig(r=4, num_tokens=8, layers_to_transform=[0, 2, 3, 5, 6]))
    perturb(model)
    assert [layer.tokens("default").shape[0] for layer in layers(model)] == [1, 1, 2, 1]
    seen = []
    for block in (block for layer in layers(model) for block in layer):
        block.register_forward_hook(lambda block, args, output: seen.append(output), prepend=True)
        block.register_forward_hook(lambda block, args, output: seen.append(output))
    maps(model, images)
    changed = [not torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert changed == [True, False, True, True, False, True, True]
    for wrong in ([0, 1], [0, 1, 3, 6, 7]):
        with pytest.raises(ValueError, match=r"expected blocks 0 to 6, one at least of each stage"):
            rein_hf.add_rein(build(folder), ReinConfig(num_tokens=8, layers_to_transform=wrong))


def test_what_does_not_fit_is_refused(tmp_path):
    hiera, vit = (
        vision_encoders.write_encoder("sam2 hiera", tmp_path / "hiera"),
        vision_encoders.write_encoder("vit", tmp_path / "vit"),
    )
    with pytest.raises(ValueError, match=r"patch_size is 14; a sam2_hiera_det_model has strides of its own"):
        load_vit(hiera, image_size=56, patch_size=14)
    with pytest.raises(ValueError, match=r"out_indices is \[1, 2, 3, 7\]; expected a block of each of 4 stages"):
        build(hiera, out_indices=[1, 2, 3, 7])
    rein_hf.add_rein(build(vit), ReinConfig(num_tokens=8)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"made for a backbone of model_type vit; .*hiera has sam2_hiera_det_model"):
        rein_hf.from_pretrained(tmp_path / "adapter", backbone=hiera)


def test_unknown_architectures_are_told_what_to_add(tmp_path):
    swin = SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32, patch_size=4))
    swin.save_pretrained(tmp_path)
    message = r"model_type 'swin' is not known \(known: beit, clip.*vit_mae\). Add a line for it to ARCHITECTURES"
    with pytest.raises(ValueError, match="holds a SwinModel, whose " + message):
        build(str(tmp_path))
    with pytest.raises(ValueError, match=message + ".*or name the list of blocks"):
        get_peft_model(swin, ReinConfig())
    with pytest.raises(ValueError, match=message):
        rein_hf.ViTPyramidConfig(backbone_config=swin.config)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model = vision_encoders.make_encoder("clip")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.2.mlp.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    expected = r"lacks weights of its CLIPVisionModel: vision_model.encoder.layers.2.mlp.fc1.bias, vision_model\.\S+$"
    with pytest.raises(ValueError, match=expected):
        build(str(tmp_path))


@pytest.mark.skipif(not HIERA.is_dir(), reason="needs the weights of SAM 2's Hiera-tiny")
def test_real_hiera(tmp_path):
    model = rein_hf.add_rein(build(HIERA, image_size=256), ReinConfig(num_tokens=8)).eval()
    perturb(model)
    stock = Sam2VisionModel.from_pretrained(HIERA, dtype=torch.float32).eval()
    images = torch.randn(1, 3, 256, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [states.permute(0, 3, 1, 2) for states in stock.backbone(images).intermediate_hidden_states]
    refined = maps(model, images)
    with model.disable_adapter():
        assert all(map(torch.equal, maps(model, images), expected))
    assert not any(map(torch.equal, refined, expected))
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(rein_hf.from_pretrained(tmp_path), images), outputs(model, images))

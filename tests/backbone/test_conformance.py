"""The backbone has the properties that transformers asks of its models and backbones, on every known architecture."""

import copy
import inspect

import pytest
import torch
from transformers import Dinov2Config

from rein_hf import ViTPyramidBackbone, ViTPyramidConfig
from rein_hf.backbone import pad_to_multiple, resample_to
from rein_hf.tuner.architectures import find_vision_encoder
from tests.support.vision_encoders import CHECKPOINTS, make_encoder


WINDOWED = ("sam", "sam vision", "sam2 hiera")  # their blocks give no attention weights
PREFIX = {"dinov2 with registers": 4, "dinov3": 3, "siglip": 0}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16, "image_size": 64}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shared_backbone(name):
    encoder = find_vision_encoder(make_encoder(name)).model
    config, weights = resample_to(encoder.config, encoder.state_dict(), image_size=64, patch_size=16)
    backbone = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=config)).eval()
    backbone.vit.load_state_dict(weights)
    return backbone


@pytest.fixture
def backbone(shared_backbone):
    return copy.deepcopy(shared_backbone)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@torch.no_grad()
def maps(backbone, images, **kwargs):
    return backbone(images, **kwargs).feature_maps


def test_saved_and_loaded_it_is_the_same(backbone, images, tmp_path):
    backbone.save_pretrained(tmp_path)
    loaded, report = ViTPyramidBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    assert equal(maps(loaded, images), maps(backbone, images))
    assert loaded.config.to_dict()["out_indices"] == backbone.config.out_indices
    half = ViTPyramidBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} == {one.dtype for one in maps(half, images)}
    assert half.dtype == half.config.dtype == torch.bfloat16


def test_no_weight_has_two_names(backbone):
    storages = [tensor.data_ptr() for tensor in backbone.state_dict().values() if tensor.numel()]
    assert len(storages) == len(set(storages))
    assert not getattr(backbone, "_tied_weights_keys", None)


def test_new_weights_are_initialised(backbone):
    """Also those that a checkpoint lacks: transformers makes them on the meta device and fills them later."""
    torch.manual_seed(0)
    first = ViTPyramidBackbone(backbone.config)
    torch.manual_seed(0)
    second = ViTPyramidBackbone(backbone.config)
    late = ViTPyramidBackbone.from_pretrained(None, config=backbone.config, state_dict={})
    for (name, one), other, third in zip(
        first.named_parameters(), second.parameters(), late.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert third.isfinite().all() and third.device.type == "cpu", name
        if one.numel() > 500:
            # not equal: of CLIP's projections transformers initialises the late ones in another way
            assert one.std() == third.std() or 0.05 < third.std() / one.std() < 20, name
        elif one.unique().numel() == 1:
            assert torch.equal(one, third), name


def test_the_signature_begins_with_pixel_values(backbone, images):
    assert list(inspect.signature(backbone.forward).parameters)[0] == backbone.main_input_name == "pixel_values"
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_hidden_state'"):
        backbone(images, output_hidden_state=True)


def test_maps_channels_and_names_agree(backbone, images):
    config = backbone.config
    assert len(backbone.num_features) == len(backbone.stage_names) == len(config.stage_names)
    assert backbone.out_features == config.out_features == [config.stage_names[i] for i in config.out_indices]
    assert backbone.channels == [backbone.out_feature_channels[one] for one in backbone.out_features]
    output = backbone(images)
    assert isinstance(output.feature_maps, tuple) and output.hidden_states is output.attentions is None
    assert [map.shape[:2] for map in output.feature_maps] == [(2, channels) for channels in backbone.channels]


def test_images_of_a_batch_do_not_see_each_other(backbone, images):
    for both, first in zip(maps(backbone, images), maps(backbone, images[:1]), strict=True):
        torch.testing.assert_close(both[:1], first, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_are_given_when_asked_for(backbone, images, name):
    output = backbone(images, output_hidden_states=True)
    assert equal(output.feature_maps, maps(backbone, images))
    assert len(output.hidden_states) == len(backbone.stage_names)
    for state, width in zip(output.hidden_states, backbone.num_features, strict=True):
        if name in WINDOWED:
            assert state.shape[0] == 2 and state.shape[-1] == width and state.dim() == 4
        else:
            assert state.shape == (2, PREFIX.get(name, 1) + 4 * 6, width)
    index = backbone.out_indices[2]
    state = output.hidden_states[index]
    if name not in WINDOWED:
        state = state[:, PREFIX.get(name, 1) :].unflatten(1, (4, 6))
    assert torch.equal(state.permute(0, 3, 1, 2), output.feature_maps[2])

    some = backbone(images, output_hidden_states=[1, -1])
    assert [one is not None for one in some.hidden_states] == [
        index in (1, len(backbone.stage_names) - 1) for index in range(len(backbone.stage_names))
    ]
    assert torch.equal(some.hidden_states[1], output.hidden_states[1])
    assert torch.equal(some.hidden_states[-1], output.hidden_states[-1])
    assert equal(some.feature_maps, output.feature_maps)
    with pytest.raises(ValueError, match=r"output_hidden_states is \[99\]; expected numbers from 0"):
        backbone(images, output_hidden_states=[99])


@torch.no_grad()
def test_the_configuration_asks_as_the_arguments_do(backbone, images):
    expected = backbone(images, output_hidden_states=True)
    backbone.config.output_hidden_states = True
    found = backbone(images)
    assert equal(found.hidden_states, expected.hidden_states)
    assert backbone(images, output_hidden_states=False).hidden_states is None
    as_tuple = backbone(images, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == 2
    assert equal(as_tuple[0], expected.feature_maps) and equal(as_tuple[1], expected.hidden_states)
    backbone.config.output_hidden_states = False
    backbone.config.return_dict = False
    (found,) = backbone(images)
    assert equal(found, expected.feature_maps)
    assert equal(backbone(images, return_dict=True).feature_maps, found)


@torch.no_grad()
def test_attention_weights_are_given_or_refused(backbone, images, name):
    expected = maps(backbone, images)
    if name in WINDOWED:
        with pytest.raises(ValueError, match=r"output_attentions is True; a sam\w* attends within windows"):
            backbone(images, output_attentions=True)
        found = backbone.forward_with_filtered_kwargs(images, output_attentions=True)
        assert found.attentions is None and equal(found.feature_maps, expected)
        return
    with pytest.raises(ValueError, match="the attention implementation 'sdpa', .* expected 'eager': call set_attn"):
        backbone(images, output_attentions=True)
    backbone.set_attn_implementation("eager")
    found = backbone(images, output_attentions=True)
    tokens = PREFIX.get(name, 1) + 4 * 6
    assert [weights.shape for weights in found.attentions] == [(2, 2, tokens, tokens)] * 4
    for weights in found.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, tokens))
    for one, other in zip(found.feature_maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert backbone(images).attentions is None
    backbone.config.output_attentions = True
    assert equal(backbone(images).attentions, found.attentions)
    assert len(backbone(images, return_dict=False)) == 2


def test_gradients_of_hidden_states_and_attentions_are_kept(backbone, images, name):
    backbone.set_attn_implementation("eager")
    output = backbone(images, output_hidden_states=True, output_attentions=name not in WINDOWED)
    kept = [*output.hidden_states, *(output.attentions or ())]
    for tensor in kept:
        tensor.retain_grad()
    output.feature_maps[-1].square().sum().backward()
    assert all(tensor.grad is not None for tensor in kept)
    assert all(tensor.grad.abs().max() > 0 for tensor in output.hidden_states)


def test_checkpointing_is_switched_on_and_off(backbone, images):
    gradients = []
    for enabled in (False, True, False):
        if enabled:
            backbone.activation_checkpointing_enable()
        else:
            backbone.activation_checkpointing_disable()
        assert backbone.is_activation_checkpointing == enabled
        backbone.train().zero_grad()
        sum(one.square().mean() for one in backbone(images).feature_maps).backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == gradients[2].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
        assert torch.equal(gradients[2][name], gradient)


def test_the_patch_embedding_is_the_input_embedding(backbone):
    kernels = [p for name, p in backbone.get_input_embeddings().named_parameters() if p.dim() == 4]
    assert len(kernels) == 1 and kernels[0].shape[1] == 3


@pytest.mark.parametrize(
    "name",
    [one if one in ("dinov2", "dinov3") else pytest.param(one, marks=pytest.mark.slow) for one in CHECKPOINTS],
    indirect=True,
)
def test_it_is_exported(backbone, images):
    """Into a graph for one size of images and batches of any size."""
    backbone.requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(backbone, (images,), dynamic_shapes={"pixel_values": {0: batch}}, strict=False)
    for number in (2, 3):
        more = torch.randn(number, *images.shape[1:], generator=torch.Generator().manual_seed(2))
        found = program.module()(more)["feature_maps"]
        for one, other in zip(found, maps(backbone, more), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


class AnySize(torch.nn.Module):
    """A backbone that takes images whose sides are no multiples of the patch size, as an exported file does."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        for dim in (2, 3):
            images, _ = pad_to_multiple(images, dim, 16, least=4)
        return self.backbone(images).feature_maps


# One is of the trained size, one fills windows of SAM and Hiera and one does not, and batches have one image and more.
SIZES = [(2, 64, 64), (1, 49, 130), (3, 145, 65), (1, 224, 80)]


@pytest.mark.parametrize(
    "name",
    [one if one in ("dinov2", "sam2 hiera") else pytest.param(one, marks=pytest.mark.slow) for one in CHECKPOINTS],
    indirect=True,
)
def test_one_graph_takes_images_of_any_size(backbone):
    model = AnySize(backbone.requires_grad_(False))
    sides = (torch.export.Dim(one, min=49, max=256) for one in ("height", "width"))
    dims = dict(zip((0, 2, 3), (torch.export.Dim("batch", min=1), *sides), strict=True))
    program = torch.export.export(
        model,
        (torch.randn(2, 3, 65, 49),),
        dynamic_shapes=(dims,),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    run = program.module()
    for number, height, width in SIZES:
        images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(height))
        for one, other in zip(run(images), model(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_blocks_are_chosen_by_number_or_by_name():
    vit = Dinov2Config(**{**VIT, "num_hidden_layers": 6})
    names, blocks = ["stage2", "stage3", "stage5", "stage6"], [2, 3, 5, 6]
    for chosen in ({"out_features": names}, {"out_indices": blocks}, {"out_features": names, "out_indices": blocks}):
        config = ViTPyramidConfig(backbone_config=vit, **chosen)
        assert (config.out_features, config.out_indices) == (names, blocks)
        again = ViTPyramidConfig.from_dict(config.to_dict())
        assert (again.out_features, again.out_indices) == (names, blocks)
    default = ViTPyramidConfig(backbone_config=vit, out_features=None, out_indices=None)
    assert default.out_indices == [1, 3, 4, 6]
    for other in (["stage1", "stage3", "stage4", "stage6"], [2, 3, 5, 7], ["stage2", "stage3"]):
        with pytest.raises(ValueError, match="out_features and out_indices|out_indices is"):
            key = "out_indices" if isinstance(other[0], int) else "out_features"
            ViTPyramidConfig(backbone_config=vit, **{"out_features": names, "out_indices": blocks, key: other})


@torch.no_grad()
def test_blocks_of_a_model_are_changed_or_refused(tmp_path):
    torch.manual_seed(0)
    model = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=Dinov2Config(**{**VIT, "num_hidden_layers": 6})))
    images = torch.randn(1, 3, 64, 64)
    states = model(images, output_hidden_states=True).hidden_states

    def gives(blocks):
        expected = states[blocks[2]][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        return model.out_indices == model.config.out_indices == blocks and torch.equal(
            model(images).feature_maps[2], expected
        )

    assert gives([1, 3, 4, 6])
    model.out_indices = (2, 3, 5, 6)
    assert model.out_features == ["stage2", "stage3", "stage5", "stage6"] and gives([2, 3, 5, 6])
    model.out_features = ["stage1", "stage2", "stage3", "stage4"]
    assert gives([1, 2, 3, 4])
    for wrong in ([1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 7], [1, 1, 2, 3], [4, 3, 2, 1], [1, 2, 3, -1], [1.0, 2, 3, 4]):
        with pytest.raises(ValueError, match="expected 4 different blocks from 1 to 6, in ascending order"):
            model.out_indices = wrong
    for wrong in (["stage1", "stage2", "stage3", "stage9"], "stage1"):
        with pytest.raises(ValueError, match="out_features is .*; expected 4 of stage1, stage2, .*stage6"):
            model.out_features = wrong
    with pytest.raises(ValueError, match=r"out_indices is \[0, 1, 2, 3\]"):
        model.out_features = ["stem", "stage1", "stage2", "stage3"]
    assert gives([1, 2, 3, 4])  # a refused change changes nothing
    model.save_pretrained(tmp_path)
    assert ViTPyramidBackbone.from_pretrained(tmp_path).out_indices == [1, 2, 3, 4]
    model.out_features = None
    assert gives([1, 3, 4, 6])


@pytest.mark.parametrize("name", ["sam2 hiera"], indirect=True)
def test_blocks_of_stages_are_changed_or_refused(backbone, images):
    backbone.out_indices = [1, 2, 5, 7]
    assert backbone.out_features == ["stage1", "stage2", "stage5", "stage7"]
    assert [one.shape[1] for one in maps(backbone, images)] == backbone.channels == [8, 16, 32, 64]
    with pytest.raises(ValueError, match=r"out_indices is \[1, 2, 3, 7\]; expected a block of each of 4 stages"):
        backbone.out_indices = [1, 2, 3, 7]


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "pixel_values is torch.uint8; expected normalised"),
        (
            torch.zeros(1, 4, 64, 64),
            r"has the shape \(1, 4, 64, 64\); expected \(B, 3, H, W\) with one",
        ),
        (torch.zeros(1, 64, 64, 3), r"has the shape \(1, 64, 64, 3\); expected \(B, 3, H, W\)"),
        (torch.zeros(3, 64, 64), r"has the shape \(3, 64, 64\); expected \(B, 3, H, W\)"),
        (torch.zeros(0, 3, 64, 64), r"has the shape \(0, 3, 64, 64\); expected .* one image at least"),
        (torch.zeros(1, 3, 64, 60), r"64x60 pixels; expected sides that are multiples of the patch size 16"),
    ],
)
def test_images_of_another_kind_are_refused(pixel_values, message):
    backbone = ViTPyramidBackbone(ViTPyramidConfig(backbone_config=Dinov2Config(**VIT)))
    with pytest.raises(ValueError, match=message):
        backbone(pixel_values)

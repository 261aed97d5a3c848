"""rein_hf.adaptformer: the arithmetic against a naive re-derivation, on every architecture."""

import copy
import threading

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from rein_hf import AdaptFormerConfig, AdaptFormerLayer
from rein_hf.tuner.architectures import find_vision_encoder
from tests.support import vision_encoders
from tests.support.models import hook_counts, perturb


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def build(**kwargs) -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**SIZES, layerscale_value=0.5, **kwargs)).eval()


def tuned(vit, **kwargs):
    model = get_peft_model(vit, AdaptFormerConfig(**{"bottleneck_size": 3, "scale": 0.3, **kwargs})).eval()
    perturb(model)
    return model


def images_for(vit) -> torch.Tensor:
    size = getattr(vit.config, "image_size", 96)
    size = size if isinstance(size, int) else 96
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(vit, images):
    """Hidden states after the embeddings and after each block."""
    arguments = find_vision_encoder(vit).architecture.arguments
    with torch.no_grad():
        return vit(images, output_hidden_states=True, **arguments).hidden_states


def layers(model) -> list[AdaptFormerLayer]:
    return [module for module in model.modules() if isinstance(module, AdaptFormerLayer)]


@pytest.mark.parametrize("name", [name for name in vision_encoders.CHECKPOINTS if name != "mae"])  # it is random
def test_each_block_adds_the_bottleneck_of_its_mlps_input_to_the_residual_stream(name):
    """Outside of LayerScale, for all tokens, at the width of the block; a disabled adapter is the base."""
    vit = find_vision_encoder(vision_encoders.make_encoder(name)).model.eval()
    encoder, images = find_vision_encoder(vit), images_for(vit)
    base = features(vit, images)
    model = get_peft_model(vit, AdaptFormerConfig(bottleneck_size=3, scale=0.3)).eval()
    # Up begins at zero
    assert all(torch.equal(*pair) for pair in zip(features(vit, images), base, strict=True))
    perturb(model)
    blocks, calls, inputs = encoder.model.get_submodule(encoder.architecture.blocks), [], []
    for block in blocks:
        block.register_forward_hook(lambda block, *call: calls.append((block, *call)), with_kwargs=True)
        block.mlp.base_layer.register_forward_pre_hook(lambda mlp, args: inputs.append(args[0]))
    features(vit, images)
    assert len(calls) == len(inputs) == len(blocks) == len(layers(model))
    with torch.no_grad(), model.disable_adapter():
        for (block, args, kwargs, output), x in zip(list(calls), list(inputs), strict=True):
            down, up = block.mlp.adaptformer_down["default"], block.mlp.adaptformer_up["default"]
            assert down.weight.shape == up.weight.T.shape == (3, x.shape[-1])
            hidden = torch.clamp(x @ down.weight.T + down.bias, min=0)
            delta = 0.3 * (hidden @ up.weight.T + up.bias)
            torch.testing.assert_close(output - block(*args, **kwargs), delta, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(*pair) for pair in zip(features(vit, images), base, strict=True))


def test_initial_values():
    """Down is that of a Linear, Kaiming uniform with a = sqrt(5); Up and all biases are zero."""
    torch.manual_seed(0)
    layer = AdaptFormerLayer(nn.Linear(256, 256), "default", AdaptFormerConfig(), hidden_size=256)
    down, up = layer.adaptformer_down["default"], layer.adaptformer_up["default"]
    bound = 256**-0.5  # sqrt(6 / ((1 + 5) * 256))
    assert down.weight.shape == (64, 256) and 0.99 * bound < down.weight.abs().max() <= bound
    assert not down.bias.any() and not up.weight.any() and not up.bias.any()


def test_stochastic_depth_drops_the_mlp_and_not_the_bottleneck():
    vit = build(drop_path_rate=1.0 - 1e-6).train()
    images = images_for(vit)
    model = tuned(vit).train()
    block, found = vit.encoder.layer[-1], []
    block.mlp.register_forward_hook(lambda mlp, args, output: found.append(mlp.delta("default", args[0])))
    states = vit(images, output_hidden_states=True).hidden_states
    assert block.drop_path.drop_prob > 0.99 and model.training
    torch.testing.assert_close(states[-1] - states[-2], found[0])


def test_a_forward_pass_that_was_cut_short_leaves_nothing_to_the_next_one():
    """Neither by an error after the MLP, nor by the end of a recomputation in a backward pass."""
    vit = build()
    model, images = tuned(vit), images_for(vit)
    expected = features(vit, images)
    handle = vit.encoder.layer[1].layer_scale2.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        features(vit, images)
    handle.remove()
    assert all(torch.equal(*pair) for pair in zip(features(vit, images), expected, strict=True))
    copy.deepcopy(model)  # a tensor with a gradient's history cannot be copied
    model.train().gradient_checkpointing_enable()
    model(images).last_hidden_state.square().mean().backward()
    model.eval()
    assert all(torch.equal(*pair) for pair in zip(features(vit, images), expected, strict=True))
    copy.deepcopy(model)


def test_threads_share_a_model():
    vit = build()
    model, images = tuned(vit), [images_for(vit) * factor for factor in (1, 2, 3, 4)]
    expected, found = [model(one).last_hidden_state for one in images], [None] * 4

    def run(index):
        for _ in range(20):
            found[index] = model(images[index]).last_hidden_state

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_layers_to_transform_leave_the_other_blocks_alone():
    vit = build()
    base, images = features(vit, images_for(vit)), images_for(vit)
    counts = hook_counts(vit)
    model = tuned(vit, layers_to_transform=[1])
    assert [type(block.mlp).__name__ for block in vit.encoder.layer] == ["Dinov2MLP", "AdaptFormerLayer", "Dinov2MLP"]
    found = features(vit, images)
    assert [torch.equal(*pair) for pair in zip(found, base, strict=True)] == [True, True, False, False]
    assert hook_counts(model.unload()) == counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck_size": 0}, "AdaptFormerConfig.bottleneck_size is 0; expected a width of at least 1"),
        ({"scale": 0.0}, "AdaptFormerConfig.scale is 0, with which nothing is added"),
        ({"layers_to_transform": [1, 1]}, r"AdaptFormerConfig.layers_to_transform is \[1, 1\]; expected one or more"),
        ({"layers_to_transform": [1, 0]}, r"AdaptFormerConfig.layers_to_transform is \[1, 0\]; .* in ascending order"),
        ({"layers_to_transform": [3]}, r"AdaptFormerConfig.layers_to_transform is \[3\]; the backbone has blocks 0"),
        ({"target_modules": ["layer"]}, r"matches encoder.layer, a ModuleList; expected the MLPs of all blocks, e.g."),
        ({"target_modules": ["fc1"]}, r"matches encoder.layer.0.mlp.fc1, a Linear; expected the MLPs of all blocks"),
        ({"target_modules": ["ffn"]}, r"target_modules is {'ffn'}; found no module of that name .* Name the MLPs of"),
        ({"hidden_size": 8}, "This AdaptFormer adapter was made for a backbone of hidden_size 8; found 16"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    vit = build()
    names = vit.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        get_peft_model(vit, AdaptFormerConfig(**options))
    assert vit.state_dict().keys() == names


def test_print_shows_where_it_is():
    assert "(mlp): AdaptFormerLayer(\n" in (text := str(tuned(build())))
    assert "default: bottleneck of 3, scale 0.3" in text

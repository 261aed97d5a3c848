"""rein_hf.vpt: what blocks see and give, against their own forward with prompts put in by hand."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModel, Dinov2Config, Dinov2Model

from rein_hf import VPTConfig, VPTLayer
from rein_hf.tuner.architectures import find_vision_encoder
from tests.support import vision_encoders
from tests.support.models import hook_counts, perturb


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
WITHOUT_PLACE = ("sam", "sam vision", "sam2 hiera", "beit", "beit with absolute positions")
# ViTMAE's own model is random
WITH_PLACE = [name for name in vision_encoders.CHECKPOINTS if name not in ("mae", *WITHOUT_PLACE)]


def build() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(**SIZES, layerscale_value=0.5)).eval()


def tuned(vit, **kwargs):
    model = get_peft_model(vit, VPTConfig(**{"num_prompts": 3, **kwargs})).eval()
    perturb(model)
    return model


def images_for(vit) -> torch.Tensor:
    size = vit.config.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(vit, images, **kwargs):
    """Hidden states after the embeddings and after each block."""
    arguments = find_vision_encoder(vit).architecture.arguments
    with torch.no_grad():
        return vit(images, output_hidden_states=True, **arguments, **kwargs).hidden_states


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", WITH_PLACE)
def test_each_block_sees_its_prompts_behind_the_prefix_tokens(name, attention):
    vit = find_vision_encoder(vision_encoders.make_encoder(name)).model.eval()
    vit.set_attn_implementation(attention)
    encoder, images = find_vision_encoder(vit), images_for(vit)
    blocks, base, calls = vit.get_submodule(encoder.architecture.blocks), features(vit, images), []
    handles = [block.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True) for block in blocks]
    features(vit, images)
    for handle in handles:
        handle.remove()
    model = tuned(vit)
    layer = vit.get_submodule(encoder.architecture.blocks)
    assert isinstance(layer, VPTLayer)
    prefix = encoder.architecture.num_prefix_tokens(vit.config.to_dict())
    assert layer.num_prefix_tokens == prefix
    states = features(vit, images)
    assert [state.shape for state in states] == [state.shape for state in base] and torch.equal(states[0], base[0])
    for index, (block, (args, kwargs, _)) in enumerate(zip(blocks, calls, strict=True)):
        before, prompts = states[index], layer.vpt_prompts["default"][index].expand(2, -1, -1)
        tokens = torch.cat([before[:, :prefix], prompts, before[:, prefix:]], dim=1)
        with torch.no_grad(), model.disable_adapter():
            output = block(tokens, *args[1:], **kwargs)
        expected = torch.cat([output[:, :prefix], output[:, prefix + 3 :]], dim=1)
        torch.testing.assert_close(states[index + 1], expected)
        assert not torch.allclose(states[index + 1], base[index + 1])
    with model.disable_adapter():
        assert all(torch.equal(*pair) for pair in zip(features(vit, images), base, strict=True))


@pytest.mark.parametrize("name", WITHOUT_PLACE)
def test_where_a_prompt_has_no_place_it_is_refused_with_the_alternative(name):
    vit = vision_encoders.make_encoder(name)
    names = vit.state_dict().keys()
    reason = "a bias for every pair of positions" if "beit" in name else "within windows of a grid of patches"
    with pytest.raises(ValueError, match=f"VPT cannot tune a .*{reason}.* Use Rein, AdaptFormer or LoRA on it"):
        get_peft_model(vit, VPTConfig())
    assert vit.state_dict().keys() == names


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_attention_mask_has_room_for_the_prompts(attention):
    """What it hides stays hidden, from prompts too; they are seen by all."""
    vit = build()
    vit.set_attn_implementation(attention)
    tuned(vit)
    images, mask, masks = images_for(vit), torch.tensor([[1] * 5, [1] * 4 + [0]]), []
    vit.encoder.layer[1].attention.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    before = features(vit, images, attention_mask=mask)
    assert masks[0].shape == (2, 1, 8, 8)
    hidden = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hidden[1, ..., 7] = True
    assert torch.equal(masks[0] != masks[0][0, 0, 0, 0], hidden)
    images[1, :, 14:, 14:] += 1  # the patch that is hidden
    after = features(vit, images, attention_mask=mask)
    assert torch.equal(after[-1][0], before[-1][0]) and not torch.equal(after[-1][1, 4], before[-1][1, 4])
    torch.testing.assert_close(after[-1][1, :4], before[-1][1, :4])
    free = features(vit, images, attention_mask=torch.ones(2, 5, dtype=torch.long))
    torch.testing.assert_close(free[-1], features(vit, images)[-1])


@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 4, 5), (2, 5, 5)])
def test_an_attention_mask_of_another_size_is_refused(shape):
    layer = get_peft_model(build(), VPTConfig(num_prompts=3)).base_model.model.encoder.layer
    assert layer.extend_mask(0, 5, torch.ones(2, 5, dtype=torch.long)).tolist() == [[1] * 8] * 2  # of keys alone
    with pytest.raises(ValueError, match=r"Block 0 is called with 5 tokens and an attention mask of the shape \(2, "):
        layer.extend_mask(0, 5, torch.ones(shape))


def test_initial_values_and_saved_tensors(vit_folder, tmp_path):
    from safetensors import safe_open

    model = get_peft_model(AutoModel.from_pretrained(vit_folder), VPTConfig(num_prompts=200))
    prompts = model.base_model.model.encoder.layer.vpt_prompts["default"]
    bound = math.sqrt(6 / (3 * 16**2 + 32))
    assert prompts.shape == (4, 200, 32) and 0.99 * bound < prompts.abs().max() <= bound
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert list(file.keys()) == ["base_model.model.encoder.layer.vpt_prompts"]


def test_each_state_depends_on_the_prompts_of_its_own_and_earlier_blocks_only():
    vit = build()
    model, images = tuned(vit), images_for(vit)
    before = features(vit, images)
    prompts = model.base_model.model.encoder.layer.vpt_prompts["default"]
    for changed in range(3):
        with torch.no_grad():
            prompts[changed] += 1
        same = [torch.equal(*pair) for pair in zip(before, features(vit, images), strict=True)]
        assert same == [index <= changed for index in range(4)]
        with torch.no_grad():
            prompts[changed] -= 1
        before = features(vit, images)


@pytest.mark.parametrize("kwargs", [{}, {"return_dict": False}])
def test_the_first_hidden_state_has_no_prompts(kwargs):
    """transformers records it as the first block's input, in which they are."""
    vit = build()
    images = images_for(vit)
    base = vit(images, output_hidden_states=True).hidden_states[0]
    tuned(vit)
    output = vit(images, output_hidden_states=True, **kwargs)
    states = output[2] if kwargs else output.hidden_states
    assert torch.equal(states[0], base) and [state.shape[1] for state in states] == [5] * 4


def test_layers_to_transform_leave_the_other_blocks_alone():
    vit = build()
    base, images = features(vit, images_for(vit)), images_for(vit)
    counts = hook_counts(vit)
    model = tuned(vit, layers_to_transform=[1, 2])
    assert vit.encoder.layer.vpt_prompts["default"].shape == (2, 3, 16)
    found = features(vit, images)
    assert [torch.equal(*pair) for pair in zip(found, base, strict=True)] == [True, True, False, False]
    assert hook_counts(model.unload()) == counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prompts": 0}, "VPTConfig.num_prompts is 0; expected at least 1"),
        ({"layers_to_transform": []}, r"VPTConfig.layers_to_transform is \[\]; expected one or more"),
        ({"layers_to_transform": [2, 1]}, r"VPTConfig.layers_to_transform is \[2, 1\]; .* in ascending order"),
        ({"num_prefix_tokens": -1}, "VPTConfig.num_prefix_tokens is -1; expected the number of tokens before"),
        ({"num_prefix_tokens": 99}, "VPTConfig.num_prefix_tokens is 99; expected 1, the number of tokens before"),
        ({"layers_to_transform": [3]}, r"VPTConfig.layers_to_transform is \[3\]; the backbone has blocks 0 to 2"),
        ({"target_modules": ["fc1"]}, r"matches encoder.layer.0.mlp.fc1, a Linear; expected the nn.ModuleList"),
        ({"hidden_size": 8}, "This VPT adapter was made for a backbone of hidden_size 8; found 16"),
    ],
)
def test_wrong_configurations_are_refused(options, message):
    vit = build()
    names = vit.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        get_peft_model(vit, VPTConfig(**options))
    assert vit.state_dict().keys() == names


def test_print_shows_where_it_is():
    text = str(tuned(build(), layers_to_transform=[1]))
    assert "(layer): VPTLayer(\n" in text and "default: 3 prompts for 1 blocks" in text

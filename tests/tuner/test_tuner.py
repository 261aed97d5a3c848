"""rein_hf.tuner: the arithmetic against a naive re-derivation, and the contract of a peft method."""

import copy
import math

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel

from rein_hf import ReinConfig, ReinLayer, VPTConfig
from tests.support.models import perturb


PREFIX = "base_model.model.encoder.layer."
LOW_RANK_KEYS = {
    "rein_tokens_a",
    "rein_tokens_b",
    "rein_scale",
    "rein_token_to_feature.weight",
    "rein_token_to_feature.bias",
    "rein_delta.weight",
    "rein_delta.bias",
}


@pytest.fixture
def vit(vit_folder):
    return AutoModel.from_pretrained(vit_folder, dtype=torch.float32).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def features(model, images):
    """Hidden states after the embeddings and after each block."""
    with torch.no_grad():
        return model(images, output_hidden_states=True).hidden_states


def refine_by_hand(layer: ReinLayer, hidden: torch.Tensor, index: int, config: ReinConfig) -> torch.Tensor:
    """Paper section 3.2 in loops over images and patches."""
    weights = {name: container["default"] for name in layer.adapter_layer_names if (container := getattr(layer, name))}
    tokens = (
        weights["rein_tokens"][index]
        if not config.r
        else (weights["rein_tokens_a"][index] @ weights["rein_tokens_b"][index])
    )
    scale = 1.0 if config.zero_init else weights["rein_scale"].item()
    result = hidden.clone()
    for b in range(hidden.shape[0]):
        for n in range(1, hidden.shape[1]):
            f = hidden[b, n]
            similarity = tokens @ f
            if config.use_softmax:
                similarity = torch.softmax(similarity / math.sqrt(len(f)), dim=0)
            values = tokens[1:] @ weights["rein_token_to_feature"].weight.T + weights["rein_token_to_feature"].bias
            delta = similarity[1:] @ values
            delta = (delta + f) @ weights["rein_delta"].weight.T + weights["rein_delta"].bias
            result[b, n] = f + scale * delta
    return result


@pytest.mark.parametrize(
    "options",
    [{}, {"r": None}, {"r": 0}, {"use_softmax": False}, {"zero_init": True}, {"layers_to_transform": [0, 2]}],
)
def test_every_block_is_refined_as_in_the_paper(vit, images, options):
    config = ReinConfig(**{"r": 4, "num_tokens": 6, **options})
    model = get_peft_model(vit, config).eval()
    perturb(model)
    states = features(model, images)
    layer = vit.encoder.layer
    with torch.no_grad(), model.disable_adapter():
        for index, block in enumerate(layer):
            expected = block(states[index])
            if index in (options.get("layers_to_transform") or range(4)):
                row = (options.get("layers_to_transform") or list(range(4))).index(index)
                expected = refine_by_hand(layer, expected, row, config)
            torch.testing.assert_close(states[index + 1], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(states[1][:, 0], features_without(model, images)[1][:, 0])  # the class token passes


def features_without(model, images):
    with model.disable_adapter():
        return features(model, images)


def test_initial_values_are_the_papers(vit):
    torch.manual_seed(0)
    layer = get_peft_model(vit, ReinConfig(num_tokens=100)).base_model.model.encoder.layer
    bound = math.sqrt(6 / (3 * 16 * 16 + math.sqrt(32 * 16)))
    for tokens in (layer.rein_tokens_a["default"], layer.rein_tokens_b["default"]):
        assert 0.97 * bound < tokens.abs().max() <= bound
    assert layer.rein_scale["default"].tolist() == [pytest.approx(1e-3)]
    # Kaiming uniform with a = sqrt(5): within +-1 / sqrt(fan_in), as the bias
    for linear in (layer.rein_token_to_feature["default"], layer.rein_delta["default"]):
        assert 0.9 / math.sqrt(32) < linear.weight.abs().max() <= 1 / math.sqrt(32)
        assert linear.bias.abs().max() <= 1 / math.sqrt(32)
    full = get_peft_model(vit, ReinConfig(r=None, num_tokens=100), "full").base_model.model.encoder.layer
    bound = math.sqrt(6 / (3 * 16 * 16 + 32))
    assert 0.97 * bound < full.rein_tokens["full"].abs().max() <= bound


def test_zero_init_changes_nothing_and_has_no_scale(vit, images):
    before = features(vit, images)
    model = get_peft_model(vit, ReinConfig(num_tokens=6, zero_init=True)).eval()
    assert not vit.encoder.layer.rein_scale
    after = features(model, images)
    torch.testing.assert_close(after[-1], before[-1], rtol=0, atol=0)


def test_each_state_depends_on_the_tokens_of_its_own_and_earlier_blocks_only(vit, images):
    model = get_peft_model(vit, ReinConfig(num_tokens=6)).eval()
    perturb(model)
    before = features(model, images)
    for changed in range(4):
        trial = copy.deepcopy(model)
        with torch.no_grad():
            trial.base_model.model.encoder.layer.rein_tokens_a["default"][changed] += 1
        after = features(trial, images)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [index <= changed for index in range(5)]


def test_first_token_is_a_sink(vit, images):
    """Its row takes no part in the values; its column takes attention away from the others."""
    layer = get_peft_model(vit, ReinConfig(r=None, num_tokens=6)).base_model.model.encoder.layer
    f = torch.randn(1, 5, 32)
    with torch.no_grad():
        layer.rein_tokens["default"][0, 0] = 0
        before = layer.factors("default", 0).refine(f)
        # a first token similar to every patch takes all attention: what is left is W_f f + b_f
        layer.rein_tokens["default"][0, 0] = 1e4 * f.mean(dim=1)[0]
        f = f.mean(dim=1, keepdim=True)
        after = layer.factors("default", 0).refine(f)
        alone = layer.rein_delta["default"](f) * layer.rein_scale["default"]
    torch.testing.assert_close(after, alone)
    assert before.shape == (1, 5, 32)


def test_saved_keys_are_literally_these(vit, tmp_path):
    from safetensors import safe_open

    get_peft_model(vit, ReinConfig(num_tokens=6)).save_pretrained(tmp_path / "low")
    with safe_open(tmp_path / "low" / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == {PREFIX + key for key in LOW_RANK_KEYS}
        assert file.get_slice(PREFIX + "rein_tokens_a").get_shape() == [4, 6, 16]
        assert file.get_slice(PREFIX + "rein_tokens_b").get_shape() == [4, 16, 32]
        assert file.get_slice(PREFIX + "rein_scale").get_shape() == [1]


def test_wrong_configurations_are_refused(vit, vit_folder):
    with pytest.raises(ValueError, match=r"ReinConfig.r is -1; expected a rank of at least 1"):
        ReinConfig(r=-1)
    with pytest.raises(ValueError, match=r"num_tokens is 1; expected at least 2"):
        ReinConfig(num_tokens=1)
    with pytest.raises(ValueError, match=r"layers_to_transform is \[\]; expected one or more different blocks"):
        ReinConfig(layers_to_transform=[])
    with pytest.raises(ValueError, match=r"layers_to_transform is \[4\]; the backbone has blocks 0 to 3"):
        get_peft_model(copy.deepcopy(vit), ReinConfig(layers_to_transform=[4]))
    for wrong in ([3, 1], [1, 1]):
        with pytest.raises(
            ValueError, match=r"layers_to_transform is \[., 1\]; .* different blocks in ascending order"
        ):
            ReinConfig(layers_to_transform=wrong)
    with pytest.raises(ValueError, match=r"ReinConfig.num_prefix_tokens is -1; expected the number of tokens before"):
        ReinConfig(num_prefix_tokens=-1)
    for wrong in (0, 2, 99):
        with pytest.raises(ValueError, match=rf"num_prefix_tokens is {wrong}; expected 1, the .* in this dinov2"):
            get_peft_model(copy.deepcopy(vit), ReinConfig(num_prefix_tokens=wrong))
    with pytest.raises(ValueError, match=r"made for a backbone of hidden_size 64; found 32"):
        get_peft_model(copy.deepcopy(vit), ReinConfig(hidden_size=64))
    with pytest.raises(ValueError, match=r"made for a backbone of num_hidden_layers 12; found 4"):
        get_peft_model(copy.deepcopy(vit), ReinConfig(num_hidden_layers=12))
    with pytest.raises(ValueError, match=r"expected the nn.ModuleList of the backbone's blocks"):
        get_peft_model(copy.deepcopy(vit), ReinConfig(target_modules=["q_proj"]))


def test_unknown_architecture_needs_target_modules():
    from transformers import DeiTConfig, DeiTModel

    config = DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    with pytest.raises(ValueError, match=r"model_type 'deit' is not known \(known: .*dinov2.*\). Add a line for it"):
        get_peft_model(DeiTModel(config), ReinConfig())
    model = get_peft_model(DeiTModel(config), ReinConfig(target_modules=["layers"], num_tokens=4, num_prefix_tokens=2))
    assert isinstance(model.base_model.model.layers, ReinLayer)


@pytest.mark.parametrize("config_class", [ReinConfig, VPTConfig])
def test_an_unknown_architecture_has_patches_behind_its_prefix_tokens(config_class):
    """Only the tokens of a block tell that a number of prefix tokens leaves nothing to change."""
    block = torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    arguments = {"target_modules": ["layers"], "hidden_size": 16}
    for prefix, fits in ((4, True), (5, False), (99, False)):
        encoder = torch.nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        model = get_peft_model(encoder, config_class(**arguments, num_prefix_tokens=prefix)).eval()
        if fits:
            assert model(torch.randn(1, 5, 16)).shape == (1, 5, 16)
        else:
            with pytest.raises(ValueError, match=rf"num_prefix_tokens of .* is {prefix}, a block has 5 tokens; exp"):
                model(torch.randn(1, 5, 16))


def test_a_recorded_number_of_prefix_tokens_is_checked_when_it_is_loaded(vit, vit_folder, tmp_path):
    get_peft_model(copy.deepcopy(vit), ReinConfig(num_tokens=4)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"num_prefix_tokens": 1', '"num_prefix_tokens": 5'))
    with pytest.raises(ValueError, match="num_prefix_tokens is 5; expected 1, the number of tokens before the"):
        PeftModel.from_pretrained(vit, str(tmp_path))


def test_the_vision_tower_alone_is_tuned():
    from tests.support import vision_encoders

    model = get_peft_model(vision_encoders.make_encoder("clip"), ReinConfig(num_tokens=4))
    [name] = [name for name, module in model.named_modules() if isinstance(module, ReinLayer)]
    assert name == "base_model.model.vision_model.encoder.layers"
    assert model.peft_config["default"].target_modules == {"vision_model.encoder.layers"}


def test_print_shows_rein_where_the_paper_has_it(vit):
    text = str(get_peft_model(vit, ReinConfig(num_tokens=6, layers_to_transform=[1, 3])))
    assert "(layer): ReinLayer(\n" in text
    assert "default: 6 tokens of rank 16 for 2 blocks" in text

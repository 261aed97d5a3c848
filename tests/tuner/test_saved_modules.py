"""`modules_to_save`: what it may name is saved and loaded with the adapter, all else is refused before anything."""

import pytest
import torch
from peft import LoraConfig

import rein_hf
from tests.support.models import hook_counts, perturb, trainable_names
from tests.support.runs import adapter_weights, run_recipe


METHODS = {
    "rein": lambda **kwargs: rein_hf.ReinConfig(r=4, num_tokens=8, **kwargs),
    "unlinked": lambda **kwargs: rein_hf.ReinConfig(r=4, num_tokens=8, link_queries=False, **kwargs),
    "lora": lambda **kwargs: LoraConfig(r=2, target_modules=r".*\.vit\..*\.(q_proj|v_proj)", **kwargs),
    "adaptformer": lambda **kwargs: rein_hf.AdaptFormerConfig(bottleneck_size=4, **kwargs),
    "vpt": lambda **kwargs: rein_hf.VPTConfig(num_prompts=3, **kwargs),
    "soma": lambda **kwargs: rein_hf.SomaConfig(r=2, **kwargs),
}
HOLDS_TWICE = "An adapter that holds a module twice cannot be loaded"
NESTED = {
    "layernorm": r"'transformer_module.decoder', a name of \S+decoder, and 'layernorm', a name of \S+.layernorm,",
    "embeddings": r"'embeddings', a name of \S+.vit.embeddings, and 'embeddings', a name of \S+.patch_embeddings,",
    "mask_predictor": r"has 'transformer_module.decoder', .* and 'mask_predictor', a name of",
    "transformer_module": r"has 'transformer_module', a name of model.transformer_module, and 'transformer_module.dec",
}


def states_of(model) -> tuple:
    parameters = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return parameters, hook_counts(model), [type(module) for module in model.modules()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NESTED)
def test_a_module_in_another_that_is_saved_is_refused(segmenter, method, name):
    before, config = states_of(segmenter), METHODS[method](modules_to_save=[name])
    with pytest.raises(ValueError, match=NESTED[name]) as refused:
        rein_hf.add_adapter(segmenter, config)
    assert f"{type(config).__name__}.modules_to_save, " in str(refused.value) and HOLDS_TWICE in str(refused.value)
    assert states_of(segmenter) == before and config.modules_to_save == [name]


@pytest.mark.parametrize("method", METHODS)
def test_a_name_of_no_module_is_refused(segmenter, method):
    before = states_of(segmenter)
    with pytest.raises(ValueError, match="modules_to_save has 'nothing', but no module of the Mask2FormerForUniver"):
        rein_hf.add_adapter(segmenter, METHODS[method](modules_to_save=["class_predictor", "nothing"]))
    assert states_of(segmenter) == before


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("rein", "vit", r"has 'vit', a name of \S+encoder.vit, .* in the place of \S+vit.encoder.layer; expected"),
        ("vpt", "encoder.layer", r"has 'encoder.layer', .* in the place of \S+vit.encoder.layer; expected"),
        ("rein", "queries_features", r"in the place of model.transformer_module.queries_features; expected"),
        (
            "adaptformer",
            "mlp",
            r"has 'mlp', .* in the place of \S+layer.0.mlp; expected modules in that one",
        ),
        # a name that is another one as soon as the layer is there
        ("rein", "layer.2.norm1", r"which lies in \S+encoder.layer, .* expected a .* such as '2.norm1'"),
        ("vpt", "encoder.layer.2.norm1", r"which lies in \S+encoder.layer, .* expected a .* such as '2.norm1'"),
        ("adaptformer", "mlp.fc1", r"which lies in \S+layer.0.mlp, .* expected a .* such as 'fc1'"),
    ],
)
def test_what_the_method_replaces_is_refused(segmenter, method, name, message):
    before = states_of(segmenter)
    with pytest.raises(ValueError, match=message):
        rein_hf.add_adapter(segmenter, METHODS[method](modules_to_save=[name]))
    assert states_of(segmenter) == before


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        *((method, "vit.layernorm", 1) for method in METHODS),
        *((method, "norm1", 4) for method in METHODS),  # in the blocks that the adapter tunes
        *((method, "decoder", 0) for method in METHODS),  # what the head has anyhow
        ("rein", "2.norm1", 1),
        ("rein", "vit.embeddings", 1),
        ("rein", "mlp", 4),
        ("lora", "layer.2.attention", 1),
        ("unlinked", "queries_features", 0),
    ],
)
def test_what_it_may_name_is_trained_saved_and_loaded(build, pixel_values, tmp_path, method, name, count):
    plain = rein_hf.add_adapter(build(), METHODS[method]())
    model = rein_hf.add_adapter(build(), METHODS[method](modules_to_save=[name]))
    more = {one for one in trainable_names(model) - trainable_names(plain) if ".modules_to_save." in one}
    assert len({one.partition(".modules_to_save.")[0] for one in more}) == count
    perturb(model)
    model.save_pretrained(tmp_path)
    loaded = rein_hf.from_pretrained(tmp_path)
    with torch.no_grad():
        found, expected = (
            one.eval().requires_grad_(False)(pixel_values=pixel_values).masks_queries_logits for one in (loaded, model)
        )
    assert torch.equal(found, expected)


def test_a_recipe(recipe, tmp_path):
    with pytest.raises(ValueError, match=HOLDS_TWICE):
        run_recipe(recipe, "--rein.modules_to_save", "[layernorm]")
    run_recipe(recipe, "--rein.modules_to_save", "[vit.layernorm]")
    saved = adapter_weights(tmp_path / "out")
    assert "base_model.model.model.pixel_level_module.encoder.vit.layernorm.weight" in saved
    rein_hf.from_pretrained(tmp_path / "out")

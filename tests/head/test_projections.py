"""Heads whose parts differ in width, or that ask for projections between them, whose weights are the head's too."""

import pytest
import torch
from peft import LoraConfig

import rein_hf
from rein_hf.commands import train
from rein_hf.head import HEADS, class_and_mask_logits
from rein_hf.inference import prepare_for_inference
from tests.head.test_mask2former import check_logits, logits_of
from tests.support.models import perturb, trainable_names
from tests.support.runs import HEAD, adapter_weights, run_recipe


PROJECTIONS = [f"transformer_module.input_projections.{level}" for level in range(3)]
WIDTHS = [{"feature_size": 64}, {"hidden_dim": 64}, {"enforce_input_projection": True}]
METHODS = {
    "rein": rein_hf.ReinConfig(r=4, num_tokens=8),
    "lora": LoraConfig(r=2, target_modules=r".*\.vit\..*\.(q_proj|v_proj)"),
}


@pytest.fixture(params=WIDTHS, ids=str)
def wide(request, build):
    return build(head={**HEAD, **request.param})


def tuned(model, method: str = "rein"):
    model = rein_hf.add_adapter(model, METHODS[method])
    perturb(model)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_projections_are_trained_saved_and_loaded(wide, pixel_values, tmp_path, method):
    model = tuned(wide, method)
    trained = {name for name in trainable_names(model) if ".transformer_module.input_projections." in name}
    assert len(trained) == 6
    model.save_pretrained(tmp_path)
    saved = adapter_weights(tmp_path)
    assert {f"base_model.model.model.{end}.{leaf}" for end in PROJECTIONS for leaf in ("weight", "bias")} < set(saved)
    loaded = rein_hf.from_pretrained(tmp_path)
    with torch.no_grad():
        found, expected = (logits_of(one.requires_grad_(False)(pixel_values=pixel_values)) for one in (loaded, model))
    assert all(map(torch.equal, found, expected))
    about = rein_hf.describe(tmp_path)
    of_adapter = sum(p.numel() for name, p in model.named_parameters() if ".modules_to_save." in name)
    of_adapter += sum(p.numel() for name, p in model.named_parameters() if ".rein_query_content." in name)
    assert about.head_parameters == of_adapter


def test_the_head_computes_with_them(wide):
    model = tuned(wide).double()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = check_logits(model, images)
    with torch.no_grad():
        for end in PROJECTIONS:
            model.get_base_model().get_submodule(f"model.{end}").modules_to_save["default"].bias += 1
        assert not torch.allclose(class_and_mask_logits(model, images)[1], expected[1], atol=1e-3)


def test_prepared_for_inference(wide, pixel_values):
    model = tuned(wide)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = class_and_mask_logits(model, pixel_values)
        found = class_and_mask_logits(prepare_for_inference(model, torch.bfloat16), pixel_values)
    assert all(map(torch.equal, found, expected))


def test_a_head_without_them_is_saved_as_ever(segmenter):
    assert HEADS["mask2former"].modules_of(segmenter) == rein_hf.HEAD_MODULES
    assert rein_hf.add_rein(segmenter, METHODS["rein"]).peft_config["default"].modules_to_save == [
        "class_predictor",
        "pixel_level_module.decoder",
        "transformer_module.decoder",
        "transformer_module.level_embed",
    ]


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_without_adapter(recipe, tmp_path, tuning):
    values = ["--head.feature_size", "64", "--tuning", tuning]
    model = train.build_model(train.parse([str(recipe), *values])[0], id2label={0: "road", 1: "sky"})
    assert {name for name in trainable_names(model) if PROJECTIONS[0] in name}
    model.save_pretrained(tmp_path / "whole")
    loaded = dict(rein_hf.from_pretrained(tmp_path / "whole").named_parameters())
    assert all(torch.equal(loaded[name], parameter) for name, parameter in model.named_parameters())


def test_a_run_leaves_an_adapter_that_loads(recipe, tmp_path):
    trainer = run_recipe(recipe, "--head.feature_size", "64")
    names = [f"base_model.model.model.{end}.weight" for end in PROJECTIONS]
    saved = adapter_weights(tmp_path / "out")
    loaded = rein_hf.from_pretrained(tmp_path / "out").get_base_model().model.transformer_module.input_projections
    trained = trainer.model.get_base_model().model.transformer_module.input_projections
    for name, one, other in zip(names, loaded, trained, strict=True):
        assert torch.equal(one.weight, saved[name]) and torch.equal(other.weight, saved[name])
        assert not torch.equal(one.original_module.weight, one.weight)

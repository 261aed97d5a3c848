"""rein_hf.segmenter: a stock Mask2Former with Rein, saved as an adapter and rebuilt from it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

import rein_hf
from rein_hf import ReinConfig, ReinLayer
from rein_hf.tuner import ReinQueries
from rein_hf.tuner.recorded import BaseModelError
from tests.support.models import perturb
from tests.support.runs import HEAD


ENCODER = "model.pixel_level_module.encoder."


def logits(model, pixel_values):
    """Class and mask logits of the last decoder output. The last bit of a CPU matmul depends on whether its weights
    require gradients, so none may here."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        output = model(pixel_values=pixel_values)
    return torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()])


def test_the_model_is_the_stock_one_with_the_recipes_sizes(vit_folder):
    model = rein_hf.build_segmenter(vit_folder, {0: "road", 1: "sky"})
    assert type(model) is Mask2FormerForUniversalSegmentation
    config = model.config
    assert (config.feature_size, config.encoder_layers, config.decoder_layers) == (256, 6, 10)  # 10: 9 layers
    assert (config.encoder_feedforward_dim, config.dim_feedforward, config.num_attention_heads) == (1024, 2048, 8)
    assert (config.train_num_points, config.oversample_ratio, config.importance_sample_ratio) == (12544, 3.0, 0.75)
    assert (config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight) == (2, 5, 5, 0.1)
    assert (config.num_queries, config.id2label, config.use_auxiliary_loss) == (100, {0: "road", 1: "sky"}, True)
    assert len(model.model.transformer_module.decoder.layers) == 9
    assert config.backbone_config.backbone_config.image_size == 512


def test_the_backbone_is_the_pretrained_one(segmenter, vit_folder):
    _, expected = rein_hf.backbone.load_vit(vit_folder, 64, 16, dtype=torch.float32)
    found = segmenter.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[ENCODER + "vit." + name], tensor), name
    assert len(expected) == sum(name.startswith(ENCODER) for name in found)


def test_saved_keys_are_rein_and_the_head_and_nothing_of_the_backbone(rein_model, tmp_path):
    """The list in fixtures/adapter_keys.txt: 13 tensors of Rein, 92 of the (one layer, two layers) tiny head."""
    rein_model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = sorted(file.keys())
    assert keys == (Path(__file__).parent / "fixtures" / "adapter_keys.txt").read_text().split()
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_each_map_depends_on_its_own_and_earlier_tokens_and_on_none_later(rein_model, pixel_values):
    encoder = rein_model.base_model.model.model.pixel_level_module.encoder
    with torch.no_grad():
        before = encoder(pixel_values).feature_maps
        for changed in range(4):
            tokens = encoder.vit.encoder.layer.rein_tokens_a["default"]
            tokens[changed] += 1
            after = encoder(pixel_values).feature_maps
            tokens[changed] -= 1
            assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [i < changed for i in range(4)]
            before = encoder(pixel_values).feature_maps


def test_queries_are_the_tokens_as_in_the_paper(rein_model):
    """Section 3.3, by hand: maximum, mean and last over the layers, interleaved by channel, then two maps."""
    transformer = rein_model.base_model.model.model.transformer_module
    layer = rein_model.base_model.model.model.pixel_level_module.encoder.vit.encoder.layer
    with torch.no_grad():
        tokens = layer.rein_tokens_a["default"] @ layer.rein_tokens_b["default"]
        q = torch.stack([layer.rein_query_proj["default"](tokens[i]) for i in range(4)])
        merged = torch.zeros(8, 3 * 32)
        for k in range(32):
            merged[:, 3 * k] = q[:, :, k].max(0).values
            merged[:, 3 * k + 1] = q[:, :, k].mean(0)
            merged[:, 3 * k + 2] = q[3, :, k]
        position = layer.rein_query_merge["default"](merged)
        content = transformer.queries_features.rein_query_content["default"](position)
        torch.testing.assert_close(transformer.queries_embedder.weight, position)
        torch.testing.assert_close(transformer.queries_features.weight, content)
        with rein_model.disable_adapter():
            assert torch.equal(transformer.queries_embedder.weight, transformer.queries_embedder.base_layer.weight)


def test_without_link_the_heads_own_queries_are_trained_and_saved(segmenter, pixel_values, tmp_path):
    model = rein_hf.add_rein(segmenter, ReinConfig(r=4, num_tokens=5, link_queries=False))
    modules = list(model.modules())
    assert not any(isinstance(module, ReinQueries) for module in modules)
    stack = next(module for module in modules if isinstance(module, ReinLayer))
    assert not stack.rein_query_proj and not stack.rein_query_merge
    perturb(model)  # the queries as well: the base that is rebuilt has others
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(rein_hf.from_pretrained(tmp_path), pixel_values), logits(model, pixel_values))


def test_reload_in_a_new_process_is_bit_equal(rein_model, pixel_values, tmp_path):
    rein_model.save_pretrained(tmp_path)
    code = (
        "import sys, torch, rein_hf\n"
        "model = rein_hf.from_pretrained(sys.argv[1]).requires_grad_(False)\n"
        "with torch.no_grad(): output = model(pixel_values=torch.load(sys.argv[2]))\n"
        "torch.save(torch.cat([output.class_queries_logits.flatten(), output.masks_queries_logits.flatten()]), "
        "sys.argv[3])\n"
    )
    torch.save(pixel_values, tmp_path / "in.pt")
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, capture_output=True)
    assert torch.equal(torch.load(tmp_path / "out.pt"), logits(rein_model, pixel_values))


def test_several_adapters_in_one_model(rein_model, build, pixel_values, tmp_path):
    rein_model.save_pretrained(tmp_path / "day")
    perturb(rein_model, seed=1)
    night = logits(rein_model, pixel_values)
    rein_model.save_pretrained(tmp_path / "night")
    model = rein_hf.from_pretrained(tmp_path / "day")
    day = logits(model, pixel_values)
    encoder = model.get_base_model().model.pixel_level_module.encoder
    backbone = {tensor.data_ptr() for name, tensor in encoder.named_parameters() if "rein_" not in name}
    model.load_adapter(str(tmp_path / "night"), "night")
    assert torch.equal(logits(model, pixel_values), day)
    model.set_adapter("night")
    assert torch.equal(logits(model, pixel_values), night) and not torch.equal(day, night)
    model.set_adapter("default")
    assert torch.equal(logits(model, pixel_values), day)
    assert backbone == {tensor.data_ptr() for name, tensor in encoder.named_parameters() if "rein_" not in name}
    model.delete_adapter("default")
    model.set_adapter("night")
    assert torch.equal(logits(model, pixel_values), night)


def test_unload_keeps_the_trained_head_on_the_plain_backbone(rein_model, build):
    unloaded = copy.deepcopy(rein_model).unload()
    assert type(unloaded) is Mask2FormerForUniversalSegmentation
    plain = build().state_dict()
    state = unloaded.state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain if name.startswith(ENCODER))
    assert not torch.equal(state["class_predictor.weight"], plain["class_predictor.weight"])


def test_auto_peft_model_cannot_know_the_base_and_says_what_can(rein_model, vit_folder, tmp_path, monkeypatch):
    """The adapter names a DINOv2; around it AutoPeftModel builds a Mask2Former of the default configuration. It finds
    a backbone on the disk from the working directory alone."""
    rein_model.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    message = r"^Use rein_hf\.from_pretrained to load this adapter: it belongs to a whole segmenter"
    with pytest.raises(BaseModelError, match=message):
        AutoPeftModel.from_pretrained(str(tmp_path))
    with pytest.raises(BaseModelError, match=message):
        PeftModel.from_pretrained(AutoModel.from_pretrained(vit_folder), str(tmp_path))


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({1: "road", 2: "sky"}, "^id2label has the ids 1, 2; expected 0 to 1"),
        ({0: "road", 1: "road"}, "^id2label.*'road'"),
        ({index: str(index) for index in range(256)}, "^id2label.* 256 classes; expected 1 to 255"),
        ({}, "^id2label.* 0 classes"),
        (["road"], "^id2label is .*expected a name for each id"),
    ],
)
def test_classes_are_numbered_from_0_and_have_names_of_their_own(vit_folder, id2label, message):
    with pytest.raises(ValueError, match=message):
        rein_hf.build_segmenter(vit_folder, id2label, image_size=64, num_queries=8)


def test_as_many_classes_as_labels_have_ids(build):
    names = {index: f"class {index}" for index in range(255)}
    model = build(id2label={str(index): name for index, name in names.items()})  # as JSON has them
    assert model.config.id2label == names and model.class_predictor.out_features == 256


def test_the_backbone_attends_as_asked(rein_model, build, pixel_values, tmp_path):
    rein_model.save_pretrained(tmp_path / "adapter")
    build().save_pretrained(tmp_path / "whole")
    for folder in ("adapter", "whole"):
        outputs = []
        for attention in (None, "eager"):
            model = rein_hf.from_pretrained(tmp_path / folder, attn_implementation=attention, device_map="cpu")
            vit = next(module for module in model.modules() if isinstance(module, Dinov2Model))
            assert vit.config._attn_implementation == (attention or "sdpa")
            base = model.get_base_model() if folder == "adapter" else model
            with torch.no_grad():
                outputs.append(base.model.pixel_level_module.encoder(pixel_values).feature_maps[0])
        torch.testing.assert_close(*outputs)


def test_transformers_loads_a_whole_model_with_its_own_loss(segmenter, pixel_values, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, pixel_values), logits(segmenter, pixel_values))  # its own head, too
    assert type(loaded.criterion) is Mask2FormerLoss


def test_whole_models_load_too(segmenter, pixel_values, tmp_path):
    segmenter.save_pretrained(tmp_path)
    loaded = rein_hf.from_pretrained(tmp_path)
    assert type(loaded) is Mask2FormerForUniversalSegmentation
    assert isinstance(loaded.criterion, rein_hf.head.ReinCriterion)
    assert torch.equal(logits(loaded, pixel_values), logits(segmenter, pixel_values))


def test_another_backbone_by_argument(rein_model, vit_folder, pixel_values, tmp_path):
    rein_model.save_pretrained(tmp_path / "adapter")
    expected = logits(rein_model, pixel_values)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (tmp_path / "adapter" / config["base_model_name_or_path"]).samefile(vit_folder)
    config["base_model_name_or_path"] = "nowhere"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="nowhere"):
        rein_hf.from_pretrained(tmp_path / "adapter")
    loaded = rein_hf.from_pretrained(tmp_path / "adapter", backbone=vit_folder)
    assert torch.equal(logits(loaded, pixel_values), expected)


def test_bfloat16_keeps_rein_and_loads(rein_model, pixel_values, tmp_path):
    rein_model.save_pretrained(tmp_path)
    model = rein_hf.from_pretrained(tmp_path, dtype=torch.bfloat16)
    by_name = rein_hf.from_pretrained(tmp_path, dtype="bfloat16")
    assert torch.equal(logits(by_name, pixel_values.bfloat16()), logits(model, pixel_values.bfloat16()))
    output = model(pixel_values=pixel_values.bfloat16())
    assert output.masks_queries_logits.dtype == torch.bfloat16 and output.masks_queries_logits.isfinite().all()


def test_the_image_processor_goes_with_the_adapter(tmp_path):
    rein_hf.build_image_processor(patch_size=14).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(str(tmp_path))
    assert (processor.do_resize, processor.ignore_index, processor.size_divisor) == (False, 255, 14)


def test_masks_have_the_stride_that_image_processors_know(build, segmenter, pixel_values):
    with pytest.raises(
        ValueError, match=r"head\['common_stride'\] cannot be set: image processors know masks of stride 4"
    ):
        build(head={**HEAD, "common_stride": 8})
    assert build(head={**HEAD, "common_stride": 4}).config.to_dict() == segmenter.config.to_dict()
    with torch.no_grad():
        output = segmenter(pixel_values=pixel_values)
    maps = rein_hf.build_image_processor().post_process_semantic_segmentation(output)
    assert [found.shape for found in maps] == [(64, 64)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": {"num_labels": 7, "fature_size": 32}}, r"head\['num_labels'\] cannot be set: id2label beside head"),
        ({"head": {"fature_size": 32}}, "head has the unknown key 'fature_size'; .*, did you mean 'feature_size'"),
        ({"head": {"num_queries": 3}}, r"head\['num_queries'\] cannot be set: use num_queries beside head"),
        ({"head": {"backbone_config": {}}}, r"head\['backbone_config'\] cannot be set: the checkpoint"),
        ({"head": {"zzz": 3}}, r"unknown key 'zzz'; expected those of Mask2FormerConfig\.$"),
        (
            {"head": {"model_type": "upernet", "num_queries": 3}},
            "unknown key 'num_queries'; expected those of UperNet",
        ),
        ({"head": {"model_type": "upernet", "use_auxiliary_head": True}}, r"head\['use_auxiliary_head'\] cannot be"),
        ({"head": {"model_type": "upernet"}, "num_queries": 55}, "num_queries is 55, but a head of upernet has none"),
        ({"num_queries": 0}, "num_queries is 0; expected a whole number, 1 at least"),
        ({"num_queries": 8.0}, "num_queries is 8.0; expected a whole number"),
        ({"image_size": 0}, "image_size is 0; expected a whole number, 32 at least"),
        ({"image_size": -64}, "image_size is -64; expected a whole number, 32 at least"),
        ({"image_size": 16}, "image_size is 16; expected a whole number, 32 at least"),
        ({"image_size": 64.0}, "image_size is 64.0; expected a whole number"),
        ({"patch_size": 0}, "patch_size is 0; expected a whole number, 1 at least"),
    ],
)
def test_arguments_without_effect_or_sense_are_refused(vit_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        rein_hf.build_segmenter(vit_folder, **{"id2label": {0: "road", 1: "car"}, "image_size": 64, **arguments})


def test_the_smallest_crop_is_one_that_the_model_takes(build):
    with torch.no_grad():
        output = build(image_size=32)(pixel_values=torch.zeros(2, 3, 32, 32))
    assert output.masks_queries_logits.shape == (2, 8, 8, 8)


def test_errors_name_what_is_wrong(rein_model, build, tmp_path):
    with pytest.raises(ValueError, match=r"num_tokens is 9, but the model has 8 object queries"):
        rein_hf.add_rein(build(), ReinConfig(num_tokens=9))
    rein_model.save_pretrained(tmp_path / "adapter")
    other = Dinov2Config(hidden_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(other).save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match=r"adapter was made for a backbone of hidden_size 32; .*larger has 48"):
        rein_hf.from_pretrained(tmp_path / "adapter", backbone=tmp_path / "larger")
    larger = rein_hf.build_segmenter(tmp_path / "larger", {0: "a"}, image_size=64, num_queries=8)
    with pytest.raises(ValueError, match=r"made for a backbone of hidden_size 32; found 48"):
        PeftModel.from_pretrained(larger, str(tmp_path / "adapter"))
    with pytest.raises(OSError, match="missing"):
        rein_hf.from_pretrained(tmp_path / "missing")
    bare = get_peft_model(Dinov2Model(other), ReinConfig(num_tokens=4, base_config={"model_type": "dinov2"}))
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare: .*dinov2.*expected .*mask2former"):
        rein_hf.from_pretrained(tmp_path / "bare")

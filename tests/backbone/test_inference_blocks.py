"""Blocks in fewer operations at inference: the same features on every known architecture, whatever is put on them."""

import copy

import pytest
import torch
from accelerate import infer_auto_device_map
from peft import LoraConfig, get_peft_model
from transformers import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale

import rein_hf
from rein_hf import AdaptFormerConfig, ReinConfig, VPTConfig
from rein_hf.backbone import backbone_of, cast_frozen_weights, use_inference_blocks
from tests.support import vision_encoders
from tests.support.models import perturb
from tests.support.operator_count import OperatorCount, path_of_cuda
from tests.support.runs import HEAD


SCALED = ["dinov2", "dinov2 with registers", "dinov3"]  # whose blocks scale what they add
METHODS = {
    "rein": ReinConfig(r=4, num_tokens=8),
    "adaptformer": AdaptFormerConfig(bottleneck_size=4),
    "vpt": VPTConfig(num_prompts=4),
    "lora": LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
}


def without_drop_path(name: str):
    """A checkpoint as trained ones are: nothing dropped."""
    encoder = vision_encoders.CHECKPOINTS[name]()
    if getattr(encoder.config, "drop_path_rate", 0):
        encoder.config.drop_path_rate = 0.0
        torch.manual_seed(0)
        encoder = type(encoder)(encoder.config)
    return encoder


@pytest.fixture(scope="module", params=vision_encoders.CHECKPOINTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def segmenter(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    encoder = without_drop_path(name)
    perturb(encoder)
    encoder.save_pretrained(folder)
    return rein_hf.build_segmenter(str(folder), {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def maps_of(backbone, images, dtype):
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None), OperatorCount() as count:
        return backbone(images).feature_maps, count.names


def changed(model, dtype):
    backbone = backbone_of(copy.deepcopy(model).requires_grad_(False).eval())
    if dtype is not None:
        cast_frozen_weights(backbone, dtype)
    use_inference_blocks(backbone)
    return backbone


def assert_equal(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_features_are_the_same_bit_for_bit(name, segmenter, images, dtype, cuda):
    model = rein_hf.add_rein(copy.deepcopy(segmenter), METHODS["rein"])
    perturb(model)
    with path_of_cuda() if cuda else torch.no_grad():
        expected, before = maps_of(backbone_of(model).eval(), images, dtype)
        found, after = maps_of(changed(model, dtype), images, dtype)
    assert_equal(found, expected)
    assert after["aten::_to_copy"] <= before["aten::_to_copy"]
    if not cuda:
        assert after["rein_hf::sum_and_norm"] == 0
    elif name in SCALED:
        # of each block the sum after the attention with its norm, the sum after the MLP, and the norm before the
        # attention where it is cast
        assert after["rein_hf::sum_and_norm"] == 4 * (2 if dtype is None else 3)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_still_at_work(name, segmenter, images, method):
    config = METHODS[method]
    if method == "lora" and not any(one.endswith("q_proj") for one, _ in backbone_of(segmenter).named_modules()):
        pytest.skip("its blocks have no q_proj")
    if method == "vpt" and name.startswith(("sam", "beit")):
        pytest.skip("takes no prompts")
    model = (get_peft_model if method == "lora" else rein_hf.add_adapter)(copy.deepcopy(segmenter), config)
    perturb(model)
    for path in (torch.no_grad, path_of_cuda):
        with path():
            expected, _ = maps_of(backbone_of(model).eval(), images, torch.bfloat16)
            found, _ = maps_of(changed(model, torch.bfloat16), images, torch.bfloat16)
            with model.disable_adapter():
                plain, _ = maps_of(backbone_of(model).eval(), images, torch.bfloat16)
        assert_equal(found, expected)
        assert not torch.equal(found[0], plain[0])


@pytest.mark.parametrize("name", SCALED)
def test_who_listens_to_a_part_of_a_block_hears_it(name, images, tmp_path):
    without_drop_path(name).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = rein_hf.build_segmenter(str(tmp_path), {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)
    backbone = changed(model, None)
    expected, _ = maps_of(backbone, images, None)
    block = backbone.vit.get_submodule(backbone.config.architecture.blocks)[1]
    for part, times in (("layer_scale1", 1), ("layer_scale2", 1), ("drop_path", 2), ("norm1", 1), ("norm2", 1)):
        heard = []
        hook = block.get_submodule(part).register_forward_hook(lambda *arguments, heard=heard: heard.append(arguments))
        with path_of_cuda():
            found, _ = maps_of(backbone, images, None)
        hook.remove()
        assert len(heard) == times, part
        assert_equal(found, expected)


@pytest.mark.parametrize("name", SCALED)
def test_hidden_states_are_recorded_as_of_stock_blocks(name, images, tmp_path):
    without_drop_path(name).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = rein_hf.build_segmenter(str(tmp_path), {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)
    vit = backbone_of(model).vit.eval()
    with torch.no_grad():
        expected = vit(images, output_hidden_states=True).hidden_states
        use_inference_blocks(backbone_of(model))
        found = vit(images, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 5
    assert_equal(found, expected)


class OtherScale(Dinov2LayerScale):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + 1


@pytest.mark.parametrize("part", ["drop_path", "layer_scale1", "layer_scale2"])
@pytest.mark.parametrize(
    "other", [torch.nn.LeakyReLU(), OtherScale(Dinov2Config(hidden_size=32))], ids=["other", "sub"]
)
def test_blocks_with_something_else_in_their_path_stay_as_they_are(images, tmp_path, part, other):
    folder = vision_encoders.write_encoder("dinov2", tmp_path)
    model = rein_hf.build_segmenter(folder, {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)
    for block in backbone_of(model).vit.encoder.layer:
        setattr(block, part, other)
    expected, _ = maps_of(backbone_of(model).eval(), images, None)
    with path_of_cuda():
        found, names = maps_of(changed(model, None), images, None)
    assert_equal(found, expected)
    assert names["rein_hf::sum_and_norm"] == 0


def test_blocks_are_not_split_between_devices(tmp_path):
    folder = vision_encoders.write_encoder("dinov2", tmp_path)
    model = rein_hf.build_segmenter(folder, {0: "road", 1: "car"}, image_size=64, num_queries=8, head=HEAD)
    backbone = backbone_of(model)
    block = sum(weight.numel() * 4 for weight in backbone.vit.encoder.layer[0].parameters())
    use_inference_blocks(model)
    for part in (backbone, backbone.vit):
        kept, memory = list(part._no_split_modules), {"cpu": int(3.5 * block), "disk": 10**9}
        placed = infer_auto_device_map(part, memory, no_split_module_classes=kept)
        assert len(set(placed.values())) == 2
        assert not any(name.endswith(("norm1", "norm2", "mlp", "attention")) for name in placed)

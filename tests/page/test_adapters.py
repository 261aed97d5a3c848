"""rein_hf.page.adapters: several adapters on one model."""

import numpy as np
import pytest
from PIL import Image

import rein_hf
from rein_hf.page import Adapters
from rein_hf.page.adapters import display_names


def test_they_switch_on_one_backbone(service, adapter_folders, photos):
    adapters = service.adapters
    photo = Image.open(photos / "street.png")
    storage = {parameter.data_ptr() for parameter in adapters.model.parameters()}
    found = {}
    for name, folder in (("day", adapter_folders[0]), ("night", adapter_folders[1]), ("day", adapter_folders[0])):
        processor = adapters.use(name)
        found[name] = rein_hf.segment(adapters.model, processor, photo)
        alone = rein_hf.from_pretrained(folder).requires_grad_(False)
        assert np.array_equal(found[name], rein_hf.segment(alone, processor, photo))
        assert not any(parameter.requires_grad for parameter in adapters.model.parameters())
    assert (found["day"] != found["night"]).any()
    assert {parameter.data_ptr() for parameter in adapters.model.parameters()} == storage


def test_facts_are_those_of_describe(service, adapter_folders):
    about = rein_hf.describe(adapter_folders[1])
    facts = service.adapters.facts["night"]
    assert (facts.method, facts.explains) == ("Rein", True)
    assert (facts.adapter_parameters, facts.head_parameters) == (about.rein_parameters, about.head_parameters)
    backbone = rein_hf.from_pretrained(adapter_folders[1]).unload()
    vit = next(module for module in backbone.modules() if isinstance(module, rein_hf.ViTPyramidBackbone))
    assert facts.backbone_parameters == sum(parameter.numel() for parameter in vit.parameters())


def test_classes_have_their_colours(service):
    assert service.adapters.classes == (("road", (128, 64, 128)), ("car", (0, 0, 142)), ("sky", (70, 130, 180)))
    assert service.adapters.crop == 64 and service.adapters.device == "CPU"


def test_a_lora_and_a_whole_segmenter_have_a_page(build, tmp_path):
    whole = build()
    whole.save_pretrained(tmp_path / "whole")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "whole")
    size = sum(parameter.numel() for parameter in whole.parameters())
    facts = Adapters([tmp_path / "whole"], device="cpu").facts["whole"]
    assert (facts.method, facts.adapter_parameters, facts.explains) == ("whole segmenter", 0, False)
    assert facts.head_parameters + facts.backbone_parameters == size

    from peft import LoraConfig

    lora = rein_hf.add_adapter(build(), LoraConfig(r=2, target_modules="all-linear"))
    lora.save_pretrained(tmp_path / "lora")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "lora")
    of_lora = sum(p.numel() for name, p in lora.named_parameters() if "lora_" in name)
    facts = Adapters([tmp_path / "lora"], device="cpu").facts["lora"]
    assert (facts.method, facts.adapter_parameters, facts.explains) == ("LoRA", of_lora, False)


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/day/rein", "runs/night/rein", "user/adapter"):
        (tmp_path / folder).mkdir(parents=True)
    assert display_names(["runs/day/rein", "runs/night/rein"]) == ["day/rein", "night/rein"]
    assert display_names(["hub-user/rein", "runs/day/rein"]) == ["hub-user/rein", "rein"]
    assert display_names([tmp_path / "user/adapter", "user/adapter-2"]) == ["adapter", "user/adapter-2"]
    assert str(tmp_path) not in " ".join(display_names(["runs/day/rein", "."]))


def test_what_does_not_fit_is_refused(build, adapter_folders, tmp_path):
    with pytest.raises(ValueError, match="no adapter is given"):
        Adapters([])
    with pytest.raises(ValueError, match="is given twice"):
        Adapters([adapter_folders[0], adapter_folders[0]])
    other = rein_hf.add_rein(build(id2label={0: "road", 1: "boat"}), rein_hf.ReinConfig(r=4, num_tokens=8))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="boat.*show this one on a page of its own"):
        Adapters([adapter_folders[0], tmp_path / "other"], device="cpu")
    build().save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="is a whole segmenter, onto which no adapter is loaded"):
        Adapters([tmp_path / "whole", adapter_folders[0]], device="cpu")
    with pytest.raises(OSError):
        Adapters([tmp_path / "nothing"], device="cpu")

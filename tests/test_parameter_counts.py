"""The parameter counts of the paper, of models without memory behind them."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Dinov2Config, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

import rein_hf
from recipes import train


VITS = {
    "S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "g": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}


def counts(vit: str, **kwargs) -> dict[str, int]:
    """Parameters of Rein, of what else is trained, and of the frozen backbone."""
    config = Dinov2Config(**VITS[vit], patch_size=16, image_size=512, use_mask_token=False)
    config = Mask2FormerConfig(
        backbone_config=rein_hf.ViTPyramidConfig(backbone_config=config), id2label={i: str(i) for i in range(19)}
    )
    with torch.device("meta"):
        base = Mask2FormerForUniversalSegmentation(config)
        backbone = sum(parameter.numel() for parameter in base.model.pixel_level_module.encoder.parameters())
        model = rein_hf.add_rein(base, rein_hf.ReinConfig(**kwargs))
    found = {"rein": 0, "head": 0, "backbone": backbone}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # W_F, of the queries' content, is counted with the head
            of_rein = ".rein_" in name and ".rein_query_content." not in name
            found["rein" if of_rein else "head"] += parameter.numel()
    return found


@pytest.mark.parametrize(("vit", "rein"), [("S", 684_033), ("B", 1_741_569), ("L", 2_990_081), ("g", 6_359_041)])
def test_rein(vit, rein):
    assert counts(vit)["rein"] == rein


def test_lora():
    """0.79M in the paper; the recipe's own arguments."""
    with torch.device("meta"):
        encoder = rein_hf.ViTPyramidBackbone(
            rein_hf.ViTPyramidConfig(backbone_config=Dinov2Config(**VITS["L"], patch_size=16, image_size=512))
        )
        level = torch.nn.ModuleDict({"pixel_level_module": torch.nn.ModuleDict({"encoder": encoder})})
        model = get_peft_model(level, LoraConfig(**train.LORA))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 786_432


def test_rein_without_link():
    assert counts("L", link_queries=False)["rein"] == 2_530_817


@pytest.mark.parametrize(("vit", "head"), [("S", 19_924_436), ("L", 20_579_796)])
def test_head(vit, head):
    assert counts(vit)["head"] == head


def test_frozen_backbone():
    mask_token = 1024  # of pre-training; in the paper's count, left out of a segmenter by load_vit
    assert counts("L")["backbone"] + mask_token == 304_199_680

"""The parameter counts of the paper, of models without memory behind them."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    Sam2HieraDetConfig,
    SamVisionConfig,
    SiglipVisionConfig,
    ViTMAEConfig,
)

import rein_hf
from rein_hf.backbone import backbone_of
from rein_hf.commands.train import cast_backbone
from rein_hf.training import LORA


VITS = {
    "S": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "B": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "g": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CROP = {"image_size": 512, "patch_size": 16}
OTHERS = {
    "CLIP-L": CLIPVisionConfig(**LARGE, **CROP),
    "MAE-L": ViTMAEConfig(**LARGE, **CROP),
    "SAM-B": SamVisionConfig(**CROP),
    "SAM-L": SamVisionConfig(
        **CROP, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, global_attn_indexes=[5, 11, 17, 23]
    ),
    "SAM-H": SamVisionConfig(
        **CROP, hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]
    ),
    "SigLIP-B": SiglipVisionConfig(**CROP),
    "DINOv2-L with registers": Dinov2WithRegistersConfig(**VITS["L"], **CROP),
    "DINOv3-L": DINOv3ViTConfig(**LARGE, num_register_tokens=4),
    "Hiera-T": Sam2HieraDetConfig(),
    "Hiera-L": Sam2HieraDetConfig(
        hidden_size=144,
        num_attention_heads=2,
        blocks_per_stage=[2, 6, 36, 4],
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
    ),
}


def counts(vit: str | PreTrainedConfig, **kwargs) -> dict[str, int]:
    """Parameters of Rein, of what else is trained, and of the frozen backbone."""
    config = vit
    if isinstance(vit, str):
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
        model = get_peft_model(level, LoraConfig(**LORA))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 786_432


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (rein_hf.AdaptFormerConfig(), 24 * (1024 * 64 + 64 + 64 * 1024 + 1024)),  # 3.17M in the paper
        (rein_hf.VPTConfig(), 24 * 150 * 1024),  # 3.69M in the paper
    ],
)
@pytest.mark.parametrize("vit", ["DINOv2-L", "CLIP-L", "DINOv3-L"])
def test_other_methods(vit, config, count):
    """On every backbone of that size alike: no other module trains."""
    vit = Dinov2Config(**VITS["L"], **CROP) if vit == "DINOv2-L" else OTHERS[vit]
    with torch.device("meta"):
        encoder = rein_hf.ViTPyramidBackbone(rein_hf.ViTPyramidConfig(backbone_config=vit))
        model = get_peft_model(encoder, copy.copy(config))
    assert model.get_nb_trainable_parameters()[0] == count


def formula(width: int, depth: int, m: int = 100, r: int = 16, q: int = 256) -> int:
    """Of one stack of blocks, as in the paper: tokens, W_T and W_f, W_Q, W_M, scale."""
    return depth * (m * r + r * width) + 2 * (width**2 + width) + (width + 1) * q + (3 * q + 1) * q + 1


@pytest.mark.parametrize(
    ("vit", "rein"),
    [
        ("CLIP-L", 2_990_081),
        ("MAE-L", 2_990_081),
        ("SAM-B", formula(768, 12)),
        ("SAM-L", 2_990_081),
        ("SAM-H", 4_510_721),
        ("SigLIP-B", formula(768, 12)),
        ("DINOv2-L with registers", 2_990_081),
        ("DINOv3-L", 2_990_081),
        ("Hiera-T", formula(96, 1) + formula(192, 2) + formula(384, 7) + formula(768, 2)),
        ("Hiera-L", formula(144, 2) + formula(288, 6) + formula(576, 36) + formula(1152, 4)),
    ],
)
def test_rein_on_others(vit, rein):
    assert counts(OTHERS[vit])["rein"] == rein


def test_dinov3_7b_without_memory():
    """Its backbone frozen in bfloat16, and its forward pass at the recipe's crop; Rein and the maps are in float32."""
    vit = DINOv3ViTConfig(
        hidden_size=4096,
        intermediate_size=8192,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_register_tokens=4,
        use_gated_mlp=True,
        image_size=512,
    )
    config = rein_hf.ViTPyramidConfig(backbone_config=vit)
    with torch.device("meta"):
        base = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=config, num_labels=19))
        cast_backbone(backbone_of(base))
        model = rein_hf.add_rein(base)
        backbone_of(model).activation_checkpointing_enable()
        maps = backbone_of(model.train())(torch.zeros(1, 3, 512, 512)).feature_maps
    assert [(features.dtype, *features.shape[1:]) for features in maps] == [
        (torch.float32, 4096, side, side) for side in (128, 64, 32, 16)
    ]
    of_vit = {name: p for name, p in model.named_parameters() if ".vit." in name}
    rein = [p for name, p in of_vit.items() if ".rein_" in name]
    assert sum(p.numel() for p in rein) == formula(4096, 40) == 37_493_761
    assert all(p.requires_grad and p.dtype == torch.float32 for p in rein)
    frozen = [p for name, p in of_vit.items() if ".rein_" not in name]
    assert not any(p.requires_grad for p in frozen) and {p.dtype for p in frozen} == {torch.bfloat16}


def test_rein_without_link():
    assert counts("L", link_queries=False)["rein"] == 2_530_817


@pytest.mark.parametrize(("vit", "head"), [("S", 19_924_436), ("L", 20_579_796)])
def test_head(vit, head):
    assert counts(vit)["head"] == head


def test_frozen_backbone():
    mask_token = 1024  # of pre-training; in the paper's count, left out of a segmenter by load_vit
    assert counts("L")["backbone"] + mask_token == 304_199_680

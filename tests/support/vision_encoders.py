"""Tiny checkpoints of every known architecture, as the Hub has them: parts of larger models, patch 14, dropout."""

from pathlib import Path

import torch
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    Sam2VisionConfig,
    Sam2VisionModel,
    SamConfig,
    SamModel,
    SamVisionModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)


SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
MLP = {**SIZES, "intermediate_size": 48}
TEXT = {**MLP, "vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
# sides of the images that the checkpoints are trained on, and of patches
P14, P16 = {"image_size": 56, "patch_size": 14}, {"image_size": 64, "patch_size": 16}

SAM_VISION = {
    **SIZES,
    **P16,
    "image_size": 96,
    "window_size": 3,
    "global_attn_indexes": [1, 3],
    "mlp_dim": 48,
    "output_channels": 16,
    "attention_dropout": 0.2,
}
HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "blocks_per_stage": [1, 2, 3, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "global_attention_blocks": [4, 5],
}


def clip() -> CLIPConfig:
    return CLIPConfig(text_config=TEXT, vision_config={**MLP, **P14, "attention_dropout": 0.2}, projection_dim=8)


def sam() -> SamConfig:
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 16, "image_size": 96, "mask_input_channels": 4}
    return SamConfig(vision_config=SAM_VISION, mask_decoder_config=decoder, prompt_encoder_config=prompts)


CHECKPOINTS = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, **P14, **DROPOUT, drop_path_rate=0.2)),
    "dinov2 with SwiGLU": lambda: Dinov2Model(Dinov2Config(**SIZES, **P14, use_swiglu_ffn=True)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES, **P14, **DROPOUT, num_register_tokens=3)
    ),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**MLP, **P16, num_register_tokens=2, drop_path_rate=0.2)),
    "clip": lambda: CLIPModel(clip()),
    "clip vision": lambda: CLIPVisionModel(clip().vision_config),
    "mae": lambda: ViTMAEForPreTraining(
        ViTMAEConfig(
            **MLP,
            **{**P16, "image_size": 48},
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
        )
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(**MLP, **{**P16, "image_size": 48}, **DROPOUT)),
    "sam": lambda: SamModel(sam()),
    "sam vision": lambda: SamVisionModel(sam().vision_config),
    "sam2 hiera": lambda: Sam2VisionModel(
        Sam2VisionConfig(backbone_config=HIERA, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16)
    ),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config={**MLP, **P14})),
    "beit": lambda: BeitModel(
        BeitConfig(
            **MLP,
            **{**P16, "image_size": 48},
            **DROPOUT,
            use_relative_position_bias=True,
            use_mask_token=True,
            drop_path_rate=0.2,
        )
    ),
    "beit with absolute positions": lambda: BeitModel(
        BeitConfig(
            **MLP,
            **{**P16, "image_size": 48},
            use_absolute_position_embeddings=True,
            use_shared_relative_position_bias=True,
        )
    ),
}


def make_encoder(name: str) -> PreTrainedModel:
    """A model whose every weight, positions and LayerScale too, is at random."""
    torch.manual_seed(0)
    model = CHECKPOINTS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def write_encoder(name: str, folder: Path) -> str:
    make_encoder(name).save_pretrained(folder)
    return str(folder)

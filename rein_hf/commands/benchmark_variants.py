"""The variants that `rein-hf benchmark` measures: models with random weights, and the calls that are timed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import (
    Dinov2Config,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from .. import ViTPyramidConfig, slide_inference
from ..backbone import backbone_of, cast_frozen_weights
from ..inference import compile_segmenter, predict_labels, prepare_for_inference, semantic_scores
from ..inference.compiled import GRAPH_ONLY, MODES
from ..inference.cuda_graphs import GraphedInference
from ..segmenter import use_paper_loss_and_fast_modules
from ..training import RecipeArguments, compile_before_loss, param_groups, use_fused_optimizer
from .train import apply_tuning


# Hidden size, blocks and attention heads of DINOv2.
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


class Setting(NamedTuple):
    """What all variants of a comparison have in common."""

    size: str
    crop: int
    batch: int
    dtype: str
    mode: str
    device: str

    def __str__(self) -> str:
        size, crop, batch, dtype, mode, device = self
        return f"ViT-{size}, {crop}x{crop}, batch {batch}, {dtype}, {mode}, {device}"


class Variant(NamedTuple):
    """
    Something to measure.

    Args:
        make: function of a setting and of `build` that returns the call to be timed; `build(tuning, stock)` returns a
            model of the setting, which several variants may share.
        over (`str`, *optional*): name of the variant with which this one is compared.
    """

    make: Callable[[Setting, Callable], Callable[[], object]]
    over: str | None = None


def build_model(setting: Setting, tuning: str, stock: bool = False) -> torch.nn.Module:
    """The paper's segmenter with random weights, tuned as in `rein-hf train`; if `stock`, with transformers' own
    head and loss."""
    torch.manual_seed(0)
    width, depth, heads = SIZES[setting.size]
    vit = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=16,
        image_size=setting.crop,
    )
    backbone = ViTPyramidConfig(backbone_config=vit)
    with torch.device(setting.device):  # a GPU draws 300 million numbers in no time
        model = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(backbone_config=backbone, num_labels=19, num_queries=100)
        )
    if not stock:
        model = use_paper_loss_and_fast_modules(model)
    model = apply_tuning(model, RecipeArguments(backbone="", train=[], tuning=tuning)).to(setting.device)
    if setting.dtype == "bfloat16" and tuning != "full":
        cast_frozen_weights(backbone_of(model), torch.bfloat16)  # as in a run in bfloat16
    return model


def build_eomt(setting: Setting) -> torch.nn.Module:
    """Transformers' EoMT with a backbone of the same size: DINOv2 whose last blocks see the queries too, and no
    decoder. Random weights."""
    torch.manual_seed(0)
    width, depth, heads = SIZES[setting.size]
    config = EomtConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=setting.crop,
        patch_size=16,
        num_queries=100,
        num_labels=19,
    )
    with torch.device(setting.device):
        return EomtForUniversalSegmentation(config)


def feature_call(setting: Setting, model: torch.nn.Module) -> Callable[[], object]:
    """Computes the feature maps of the backbone."""
    encoder = backbone_of(freeze(model, setting))
    return inference_call(setting, accelerated(setting, encoder, lambda pixels: encoder(pixels).feature_maps))


def label_call(setting: Setting, model: torch.nn.Module, width: int = 1) -> Callable[[], object]:
    """Computes label maps, by windows, of images whose width is `width` times their height."""
    freeze(model, setting)
    if (options := compile_options(setting)) is not None:
        compile_segmenter(model, **options)
    size = (setting.crop, width * setting.crop)
    return inference_call(setting, lambda pixels: predict_labels(slide_inference(model, pixels), size), width)


def eomt_label_call(setting: Setting, model: torch.nn.Module) -> Callable[[], object]:
    """Computes label maps of EoMT from its class and mask logits, in the same way as ours."""
    freeze(model, setting)
    if setting.mode == "graph":  # no graph can wait until a GPU has answered whether its masks are to be used
        probabilities = model.attn_mask_probs.tolist()
        del model.attn_mask_probs
        model.attn_mask_probs = probabilities
    forward = accelerated(setting, model, model)
    size = (setting.crop, setting.crop)

    def labels(pixels):
        output = forward(pixels)
        return predict_labels(semantic_scores(output.class_queries_logits, output.masks_queries_logits, size), size)

    return inference_call(setting, labels)


def stock_label_call(setting: Setting, model: torch.nn.Module) -> Callable[[], object]:
    """Computes label maps as transformers does: all masks of every decoder output, resized to 384x384 in between."""
    freeze(model, setting)
    if (options := compile_options(setting)) is not None:
        model.compile(**options)
    post_process = Mask2FormerImageProcessorPil().post_process_semantic_segmentation
    sizes = [(setting.crop, setting.crop)] * setting.batch
    return inference_call(setting, lambda pixels: post_process(model(pixel_values=pixels), target_sizes=sizes))


def accelerated(setting: Setting, model: torch.nn.Module, call: Callable) -> Callable:
    """A function that calls a model, compiled or recorded as the setting says."""
    if setting.mode == "graph":
        return GraphedInference(model, call)
    options = compile_options(setting)
    return call if options is None else torch.compile(call, **options)


def compile_options(setting: Setting) -> dict[str, str] | None:
    """What [`compile_segmenter`] and `torch.compile` are told; `None` where nothing is compiled."""
    compiled = {"mode": MODES[setting.device]} if setting.device in MODES else {}
    return {"eager": None, "compile": compiled, "graph": {"backend": GRAPH_ONLY}}[setting.mode]


def freeze(model: torch.nn.Module, setting: Setting) -> torch.nn.Module:
    """The model as evaluation and prediction prepare it; some kernels differ if weights require gradients."""
    return prepare_for_inference(model, torch.bfloat16 if setting.dtype == "bfloat16" else None)


def inference_call(
    setting: Setting, forward: Callable[[torch.Tensor], object], width: int = 1
) -> Callable[[], object]:
    """Calls `forward` on random images, in the setting's precision, without gradients."""
    pixels = torch.randn(setting.batch, 3, setting.crop, width * setting.crop, device=setting.device)

    @torch.no_grad()
    def run():
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            return forward(pixels)

    return run


def training_call(setting: Setting, model: torch.nn.Module) -> Callable[[], object]:
    """A training step with AdamW on random images that have about ten classes each."""
    model.train()
    groups = param_groups(model, 1e-4, 0.05)
    optimizer = torch.optim.AdamW(groups, fused=use_fused_optimizer(groups))
    blobs = torch.randint(0, 10, (setting.batch, 1, 16, 16)).float()
    maps = F.interpolate(blobs, size=setting.crop)[:, 0].long()
    classes = [map.unique() for map in maps]
    masks = [(map == present[:, None, None]).float() for map, present in zip(maps, classes, strict=True)]
    batch = {
        "pixel_values": torch.randn(setting.batch, 3, setting.crop, setting.crop, device=setting.device),
        "mask_labels": [mask.to(setting.device) for mask in masks],
        "class_labels": [present.to(setting.device) for present in classes],
    }
    if (options := compile_options(setting)) is not None:
        # a graph in training is recorded for the forward and the backward pass
        compile_before_loss(model, **(options if setting.mode == "graph" else {}))

    def run():
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def loading_call(setting: Setting, model: PeftModel) -> Callable[[], object]:
    """Loads one more adapter with its head from a file, which the system has cached in memory."""
    folder, numbers = tempfile.TemporaryDirectory(), itertools.count()
    model.save_pretrained(folder.name, save_embedding_layers=False)
    return lambda: model.load_adapter(folder.name, f"loaded{next(numbers)}")


def switching_call(setting: Setting, model: PeftModel) -> Callable[[], object]:
    """Makes the other of two adapters the active one."""
    model.add_adapter("other", model.peft_config["default"])
    names = itertools.cycle(["other", "default"])
    return lambda: model.set_adapter(next(names))


VARIANTS: dict[str, dict[str, Variant]] = {
    "inference": {
        "backbone": Variant(lambda setting, build: feature_call(setting, build("frozen"))),
        "backbone + Rein": Variant(lambda setting, build: feature_call(setting, build("rein")), over="backbone"),
        "backbone + LoRA": Variant(lambda setting, build: feature_call(setting, build("lora")), over="backbone"),
        "Rein and head": Variant(lambda setting, build: label_call(setting, build("rein"))),
        "Rein and stock head": Variant(
            lambda setting, build: stock_label_call(setting, build("rein", stock=True)), over="Rein and head"
        ),
        "EoMT of transformers": Variant(
            lambda setting, build: eomt_label_call(setting, build_eomt(setting)), over="Rein and head"
        ),
        "Rein and head, image of 2:1": Variant(
            lambda setting, build: label_call(setting, build("rein"), width=2), over="Rein and head"
        ),
    },
    "training": {
        "frozen": Variant(lambda setting, build: training_call(setting, build("frozen"))),
        "Rein": Variant(lambda setting, build: training_call(setting, build("rein")), over="frozen"),
        "LoRA": Variant(lambda setting, build: training_call(setting, build("lora")), over="frozen"),
        "full": Variant(lambda setting, build: training_call(setting, build("full")), over="frozen"),
        "Rein, stock head and loss": Variant(
            lambda setting, build: training_call(setting, build("rein", stock=True)), over="Rein"
        ),
    },
    "adapters": {
        "load Rein": Variant(lambda setting, build: loading_call(setting, build_model(setting, "rein"))),
        "load LoRA": Variant(
            lambda setting, build: loading_call(setting, build_model(setting, "lora")), over="load Rein"
        ),
        "switch Rein": Variant(lambda setting, build: switching_call(setting, build_model(setting, "rein"))),
        "switch LoRA": Variant(
            lambda setting, build: switching_call(setting, build_model(setting, "lora")), over="switch Rein"
        ),
    },
}

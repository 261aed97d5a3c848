"""Measures memory and time of a training step: float32, bfloat16, checkpointing, a backbone in bfloat16.

    python -m tests.measure.memory_table [--vit small] [--crop 256] [--batch 2] [--rounds 3]

The model is a ViT with random weights and the paper's head. "Saved" is what autograd keeps for the backward pass: with
the inputs of checkpointed blocks, without parameters. "Peak" is the peak of resident memory during steps in a process
of their own, without the memory of the model. Times are medians; steps of all kinds run in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import Dinov2Config, Dinov2Model, HfArgumentParser

from rein_hf.backbone import ViTPyramidBackbone
from rein_hf.commands.benchmark_costs import peak_memory
from rein_hf.commands.train import build_model
from rein_hf.training import RecipeArguments


SIZES = {"tiny": (32, 4, 2), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


@dataclass
class MemoryArguments:
    vit: str = "small"
    crop: int = 256
    batch: int = 2
    rounds: int = 3


# kind of step: (autocast, checkpointing, dtype of the backbone)
KINDS = {
    "float32": (False, False, "float32"),
    "float32, checkpointing": (False, True, "float32"),
    "float32, backbone in bfloat16": (False, False, "bfloat16"),
    "bfloat16": (True, False, "float32"),
    "bfloat16, checkpointing": (True, True, "float32"),
    "bfloat16, backbone in bfloat16": (True, False, "bfloat16"),
    "bfloat16, checkpointing, backbone in bfloat16": (True, True, "bfloat16"),
}


def main(args: MemoryArguments) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        width, depth, heads = SIZES[args.vit]
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14
        )
        Dinov2Model(config).save_pretrained(folder)
        rows = {kind: {"peak": peak_memory(partial(make_step, folder, args, *KINDS[kind]))} for kind in KINDS}
        models = {
            kind: build_training_model(folder, args, checkpointing, dtype)
            for kind, (_, checkpointing, dtype) in KINDS.items()
        }
    seconds = {kind: [] for kind in KINDS}
    for kind, (autocast, *_) in KINDS.items():
        rows[kind] |= saved_for_backward(models[kind], args, autocast)
    for _ in range(args.rounds):
        for kind, (autocast, *_) in KINDS.items():
            start = time.perf_counter()
            step(models[kind], args, autocast)
            seconds[kind].append(time.perf_counter() - start)
    reference = statistics.median(seconds["float32"])
    print(f"ViT-{args.vit}, {args.crop}x{args.crop}, batch {args.batch}")
    print("| step | saved, MB | of it in the backbone | weights, MB | peak, MB | time |\n|---|---|---|---|---|---|")
    for kind, row in rows.items():
        row["time"] = statistics.median(seconds[kind]) / reference
        print(
            f"| {kind} | {row['saved'] / 1e6:.0f} | {row['in the backbone'] / 1e6:.1f} | {row['weights'] / 1e6:.0f} | "
            f"{row['peak'] / 1e6:.0f} | {row['time']:.2f} |"
        )
    return rows


def build_training_model(folder: str, args: MemoryArguments, checkpointing: bool, dtype: str) -> torch.nn.Module:
    torch.manual_seed(0)
    recipe = RecipeArguments(backbone=folder, train=[], crop=args.crop, backbone_dtype=dtype)
    model = build_model(recipe, {index: str(index) for index in range(19)}).train()
    if checkpointing:
        backbone_of(model).activation_checkpointing_enable()
    return model


def backbone_of(model: torch.nn.Module) -> ViTPyramidBackbone:
    return next(module for module in model.modules() if isinstance(module, ViTPyramidBackbone))


def step(model: torch.nn.Module, args: MemoryArguments, autocast: bool) -> torch.Tensor:
    """Runs forward and backward, and returns the loss."""
    torch.manual_seed(0)
    pixels = torch.randn(args.batch, 3, args.crop, args.crop)
    masks = torch.nn.functional.one_hot(torch.randint(8, (args.batch, args.crop, args.crop))).permute(0, 3, 1, 2)
    classes = [torch.arange(8)] * args.batch
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(pixel_values=pixels, mask_labels=list(masks.float()), class_labels=classes).loss
    loss.backward()
    model.zero_grad()
    return loss.detach()


def saved_for_backward(model: torch.nn.Module, args: MemoryArguments, autocast: bool) -> dict[str, float]:
    """The bytes that autograd keeps, in all and in the backbone, and those of the weights."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, kept_in_backbone, backbone = {}, {}, backbone_of(model)  # storage address -> bytes
    alive = []  # keeps the storages, so that no address is used twice

    def count_bytes(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            alive.append(storage)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    @contextmanager
    def inputs_counted():
        blocks = [block for block in backbone.modules() if getattr(block, "gradient_checkpointing", False)]
        functions = [block._gradient_checkpointing_func for block in blocks]
        for block, function in zip(blocks, functions, strict=True):

            def counting(forward, *inputs, function=function):
                for tensor in filter(torch.is_tensor, inputs):
                    count_bytes(tensor)
                return function(forward, *inputs)

            block._gradient_checkpointing_func = counting
        yield
        for block, function in zip(blocks, functions, strict=True):
            block._gradient_checkpointing_func = function

    hook = backbone.register_forward_hook(lambda *_: kept_in_backbone.update(kept))
    with inputs_counted(), torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
        step(model, args, autocast)
    hook.remove()
    return {
        "saved": sum(kept.values()),
        "in the backbone": sum(kept_in_backbone.values()),
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
    }


def make_step(folder: str, args: MemoryArguments, autocast: bool, checkpointing: bool, dtype: str) -> partial:
    return partial(step, build_training_model(folder, args, checkpointing, dtype), args, autocast)


if __name__ == "__main__":
    main(*HfArgumentParser(MemoryArguments).parse_args_into_dataclasses())

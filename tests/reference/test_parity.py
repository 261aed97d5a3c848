"""Our numbers against those recorded from the reference implementation.

A recording is a folder: the two checkpoint files, `settings.json`, `expected.safetensors`, `losses.json`,
`rein_grads.safetensors`, `optimizer_groups.json`. A part of it, below 1 MB, lies in `fixtures`; the whole one is used
where it is. `python -m tests.reference.test_parity` prints every comparison.

Errors are max |difference| / max |reference|. What is recorded in float64 is compared in float64: our sine positions
and reference points are float64 then and the reference's float32, which leaves a difference of 1e-7. What is recorded
in float32 is met by our float32 run or, since float32 can flip a pixel of an attention mask, by our float64 run;
losses and gradients by our float64 run on the recorded points, since float32 also flips which are most uncertain.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers.utils import logging as transformers_logging

import rein_hf
from rein_hf.commands import convert
from rein_hf.commands.convert_files import PEFT_PREFIX
from rein_hf.head.criterion import Points
from rein_hf.inference import predict_labels, semantic_scores, slide_inference
from rein_hf.reference import REIN_AND_HEAD_NAMES, Tensors, to_reference
from rein_hf.training import param_groups


FIXTURES = Path(__file__).parents[1] / "fixtures" / "micro_lora"
WHOLE = Path(__file__).parents[3] / "shared" / "parity" / "micro_lora"
IGNORE = 255
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

FEATURES, LOGITS, FLOAT64, LOSSES, GRADIENTS = 1e-5, 1e-4, 1e-6, 1e-5, 1e-4
TIE = 1e-4  # two best scores closer than this: either label is right
ROUNDING = 1e-6  # norms below this part of the largest: gradients that are zero (biases in front of a GroupNorm)
OUR_LOSSES = {"loss_cls": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}


class Row(NamedTuple):
    group: str
    name: str
    error: float
    limit: float


class Recording:
    """A folder of recorded values, and the model that they are of, loaded through the public path."""

    def __init__(self, folder: Path, converted: Path) -> None:
        self.settings = json.loads((folder / "settings.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.losses = json.loads((folder / "losses.json").read_text())
        self.gradients = load_file(folder / "rein_grads.safetensors")
        self.groups = json.loads((folder / "optimizer_groups.json").read_text())
        self.converted = converted / "adapter"
        convert.main(
            convert.ConversionArguments(
                checkpoint=str(folder / "rein_and_head.pth"),
                backbone=str(folder / "dinov2_converted.pth"),
                output_dir=str(self.converted),
                num_attention_heads=self.settings["num_heads"],
                out_indices=self.settings["out_indices"],
                decoder_attention_heads=self.settings["num_attention_heads"],
            )
        )

    def model(self, dtype: torch.dtype) -> PeftModel:
        return rein_hf.from_pretrained(self.converted).to(dtype).requires_grad_(False)

    def image(self, name: str) -> torch.Tensor | None:
        """A normalised image (1, 3, H, W) from recorded BGR bytes, if it is in this recording."""
        bgr = self.expected.get(f"inputs.{name}_u8_bgr")
        if bgr is None:
            return None
        return ((bgr.flip(0).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))[None]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    assert found.squeeze(0).shape == expected.squeeze(0).shape, f"{tuple(found.shape)}, not {tuple(expected.shape)}"
    difference = (found.squeeze(0) - expected.squeeze(0)).abs().max().item()
    return difference / (expected.abs().max().item() or 1.0)


def measure(folder: Path) -> list[Row]:
    """Every comparison with a recording."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    try:
        with tempfile.TemporaryDirectory() as converted:
            recording = Recording(folder, Path(converted))
            return [*forward_rows(recording), *loss_rows(recording), *optimizer_rows(recording)]
    finally:
        torch.set_num_threads(threads)


def forward_rows(recording: Recording) -> Iterator[Row]:
    runs = {dtype: run_cases(recording, dtype) for dtype in (torch.float32, torch.float64)}
    for name, expected in recording.expected.items():
        case, _, value = name.replace("_f64", "").partition(".")
        if case == "inputs" or value == "mask_feature_bias":
            continue
        if value.endswith("pred"):
            run = runs[torch.float64][case]
            best, second = run["scores"].topk(2, dim=1).values.unbind(1)
            wrong = (run["pred"] != expected) & (best - second >= TIE)
            yield Row(case, "labels that differ, ties aside", wrong.sum().item(), 0)
            continue
        error = {dtype: relative_error(run[case][value], expected) for dtype, run in runs.items()}
        is_feature = value.startswith(("block_out", "rein_out", "feats", "reins_query"))
        limit = 0 if value in ("input", "pos_embed_interp") else FEATURES if is_feature else LOGITS
        if "_f64" in name:
            yield Row(f"{case}, float64", value, error[torch.float64], FLOAT64)
            if is_feature:  # no attention mask was at work yet
                yield Row(f"{case}, float32", value, error[torch.float32], limit)
        elif error[torch.float32] <= limit:
            yield Row(case, value, error[torch.float32], limit)
        else:
            yield Row(case, f"{value} (of our float64 run)", error[torch.float64], limit)


def run_cases(recording: Recording, dtype: torch.dtype) -> dict[str, dict[str, torch.Tensor]]:
    """What is recorded of forward passes, computed by our model; by case and name."""
    model, settings, cases = recording.model(dtype), recording.settings, {}
    square, rect, slide = map(recording.image, ("img", "rect", "slide"))
    cases["square"] = forward(model, square)
    if rect is not None:
        cases["rect"] = forward(model, rect)
    if slide is not None:
        scores = slide_inference(model, slide.to(dtype), crop=settings["crop"], stride=settings["stride"])
        size = tuple(settings["ori_hw"])
        cases["slide"] = {
            "input": slide,
            "seg_logits_net": scores,
            "pred": predict_labels(scores, size),
            "scores": F.interpolate(scores, size=size, mode="bilinear", align_corners=False),
        }
    if "masked_rows.mask_feature_bias" in recording.expected:
        pixel_decoder = model.base_model.model.model.pixel_level_module.decoder
        pixel_decoder.mask_projection.bias.copy_(recording.expected["masked_rows.mask_feature_bias"])
        cases["masked_rows"] = forward(model, square)
    return cases


@torch.no_grad()
def forward(model: PeftModel, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """One image through the model: intermediate and final results by the names of the recording."""
    whole, size = model.base_model.model.model, tuple(image.shape[-2:])
    encoder, found = whole.pixel_level_module.encoder, {"input": image}

    def keep(prefix: str):
        return lambda module, args, output: found.update({prefix: output.clone()})

    for number, block in enumerate(encoder.vit.encoder.layer):
        # Rein is itself a hook of the block: one goes before it, one after it
        block.register_forward_hook(keep(f"block_out.{number}"), prepend=True)
        block.register_forward_hook(keep(f"rein_out.{number}"))
    output = model(pixel_values=image.to(model.dtype), output_hidden_states=True, output_auxiliary_logits=True)
    predictions = [*output.auxiliary_logits, output]
    found |= {f"feats.{i}": x for i, x in enumerate(output.encoder_hidden_states)}
    found |= {f"multi_scale.{i}": x for i, x in enumerate(output.pixel_decoder_hidden_states)}
    found |= {f"cls_preds.{i}": x["class_queries_logits"] for i, x in enumerate(predictions)}
    found |= {f"mask_preds.{i}": x["masks_queries_logits"] for i, x in enumerate(predictions)}
    scores = semantic_scores(output.class_queries_logits, output.masks_queries_logits, size)
    return found | {
        "mask_features": output.pixel_decoder_last_hidden_state,
        "reins_query": whole.transformer_module.queries_embedder.weight,
        "pos_embed_interp": encoder.vit.embeddings.interpolate_pos_encoding(None, *size),
        "scores": scores,
        "seg_logits": scores,
        "pred": predict_labels(scores, size),
        "whole_pred": predict_labels(scores, size),
    }


def loss_rows(recording: Recording) -> Iterator[Row]:
    for case, expected in recording.losses.items():
        losses, pairs, gradients = train_step(recording, case)
        for name, value in expected["losses"].items():
            *output, loss = name.removeprefix("decode.").split(".")  # d0.loss_cls; the last output's have no number
            found = losses[OUR_LOSSES[loss] + "".join(output).replace("d", "_")]
            yield Row(f"losses, {case}", name, abs(found - value) / (abs(value) or 1), LOSSES)
        total = sum(losses.values())
        yield Row(f"losses, {case}", "total", abs(total - expected["total"]) / expected["total"], LOSSES)
        wrong = sum(a != b for a, b in zip(pairs, expected["matching"], strict=True))
        yield Row(f"losses, {case}", f"matchings that differ, of {len(pairs)}", wrong, 0)

        for name, gradient in gradients.items():
            reference = recording.gradients.get(f"{case}.{name}")
            if reference is not None:
                yield Row(f"gradients, {case}", name, relative_error(gradient, reference), GRADIENTS)
        norms = expected["grad_norms"]
        assert set(norms) == set(gradients), set(norms) ^ set(gradients)
        found, largest = {name: gradient.norm().item() for name, gradient in gradients.items()}, max(norms.values())
        errors = {name: abs(found[name] - norm) / max(norm, ROUNDING * largest) for name, norm in norms.items()}
        for name, error in errors.items():
            if norms[name] > ROUNDING * largest:
                yield Row(f"gradient norms, {case}", name, error, GRADIENTS)
            else:
                yield Row(f"gradients that are zero, {case}", name, found[name] / largest, ROUNDING)


def train_step(recording: Recording, case: str) -> tuple[dict[str, float], list, Tensors]:
    """Losses, matched pairs and gradients (by the authors' names) of one recorded step."""
    model = recording.model(torch.float64).train()
    model.set_adapter("default")  # makes Rein and head trainable
    numbers = ["", "2"] if "_b2" in case else [""]
    images = torch.cat([recording.image(f"img{number}") for number in numbers])
    labels = torch.stack([recording.expected[f"inputs.label{number}"].long() for number in numbers])
    if "all_ignore" in case:
        labels[-1] = IGNORE
    if "padded" in case:
        images = recording.gradients[f"{case}.input"]
        labels[(images == 0).all(dim=1)] = IGNORE
    images = images.to(model.dtype)
    present = [[c for c in label.unique().tolist() if c != IGNORE] for label in labels]

    criterion, losses, pairs = model.base_model.model.criterion, {}, []
    criterion.matcher.register_forward_hook(lambda module, args, output: pairs.extend(output))
    # the model multiplies the weights into these very tensors
    criterion.register_forward_hook(lambda module, args, output: losses.update(output))
    with recorded_points(seed=7 if case.startswith("seeded") else None):
        output = model(
            pixel_values=images,
            mask_labels=[
                torch.stack([label == c for c in classes]).to(images) if classes else images.new_zeros(0, *label.shape)
                for label, classes in zip(labels, present, strict=True)
            ],
            class_labels=[torch.tensor(classes, dtype=torch.long) for classes in present],
        )
    output.loss.backward()
    gradients = {adapter_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients, unknown = to_reference(gradients, REIN_AND_HEAD_NAMES)
    assert not unknown
    matching = [{"rows": rows.tolist(), "cols": columns.tolist()} for rows, columns in pairs if len(rows)]
    return {name: loss.item() for name, loss in losses.items()}, matching, gradients


@contextmanager
def recorded_points(seed: int | None) -> Iterator[None]:
    """Points as the recording drew them: in float32, from one seed or, without it, from a fresh generator for every
    tensor."""
    rand, generator = torch.rand, torch.Generator().manual_seed(seed or 0)

    def draw_afresh(outputs: int, rows: tuple[int, ...], numbers: tuple[int, ...], device: torch.device) -> Points:
        (images, *others), drawn = rows, []
        for count, number in zip((1, *others), numbers, strict=True):
            generator.manual_seed(1234)
            drawn.append(rand(count, number, 2, generator=generator).expand(outputs, -1, -1, -1))
        return Points(drawn[0].expand(-1, images, -1, -1), *drawn[1:])

    with mock.patch.object(torch, "rand", lambda *size, device: rand(*size, generator=generator, device=device)):
        with mock.patch.object(Points, "draw", draw_afresh) if seed is None else nullcontext():
            yield


def optimizer_rows(recording: Recording) -> Iterator[Row]:
    model = recording.model(torch.float32)
    model.set_adapter("default")
    found = {"lr": {}, "weight_decay": {}}
    for group in param_groups(model, lr=1e-4, weight_decay=0.05):
        for name in group["names"]:
            for key in found:
                found[key][adapter_name(name)] = torch.tensor([group[key]], dtype=torch.float64)
    for key, ours in found.items():
        theirs, unknown = to_reference(ours, REIN_AND_HEAD_NAMES)
        assert not unknown
        expected = {name: group[key] for name, group in recording.groups.items()}
        wrong = [name for name in theirs.keys() & expected.keys() if (theirs[name] != expected[name]).any()]
        yield Row("optimizer", f"parameters of another {key}, of {len(expected)}", len(wrong), 0)
        yield Row("optimizer", "parameters without counterpart", len(theirs.keys() ^ expected.keys()), 0)


def adapter_name(name: str) -> str:
    """Name of a parameter in the model -> its name in the adapter's file, without peft's prefix."""
    name = name.removeprefix(PEFT_PREFIX)
    return name.replace(".modules_to_save.default", "").replace(".default", "")


@pytest.fixture(scope="module", params=[FIXTURES, WHOLE], ids=["fixtures", "whole"])
def rows(request) -> list[Row]:
    if not request.param.exists():
        pytest.skip("the whole recording, shared/parity/micro_lora beside the repository, is not here")
    return measure(request.param)


@pytest.mark.parametrize("group", ["square", "rect", "slide", "masked_rows", "losses", "gradient", "optimizer"])
def test_as_recorded(rows, group):
    found = [row for row in rows if row.group.startswith(group)]
    if not found:
        pytest.skip(f"{group} is not in the part of the recording in fixtures")
    assert [row for row in found if not row.error <= row.limit] == []


def test_the_whole_recording_is_compared(rows, request):
    if "whole" in request.node.callspec.id:
        assert len(rows) > 1000 and len({row.group for row in rows}) > 20


def main() -> int:
    """Prints all comparisons with the whole recording, or with the part in fixtures."""
    folder = WHOLE if WHOLE.exists() else FIXTURES
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rows = measure(folder)
    width = max(len(row.name) for row in rows)
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        print(f"\n{group}: {len(members)} comparisons, largest {max(row.error for row in members):.1e}")
        for row in members:
            verdict = "" if row.error <= row.limit else "   <-- MORE THAN ALLOWED"
            print(f"  {row.name:<{width}}  {row.error:8.1e}  of {row.limit:.0e}{verdict}")
    failed = sum(not row.error <= row.limit for row in rows)
    print(f"\n{len(rows)} comparisons, {failed} beyond their limit ({folder.parent.name}/{folder.name})")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

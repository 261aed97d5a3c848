"""Files of a traced segmenter, with what one has to know to use them, for `export.py`."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import rein_hf

from ..hub import is_hub_id
from ..labels import class_names_of, palette_of_model


# Names of the dimensions of `images` (B, H, W, 3) and `labels` (B, H, W).
AXES = ("batch", "height", "width")

METADATA = "metadata.json"


def metadata_of(
    model: nn.Module, processor, name: str, sides: tuple[int, int] | None, batch_size: int
) -> dict[str, str]:
    """What a file says of itself, by key: `names` and `colors` (R, G, B) of the classes by id, `sizes`, the rule for
    the sides of images, `normalization`, which is inside, as JSON; `version` of this package and `model` as text.

    Args:
        model: the segmenter.
        processor: its image processor.
        name (`str`): its folder or Hub id; of a folder only the last name is told.
        sides: shortest and longest side in pixels of images of any size; `None` for the model's crop alone.
        batch_size (`int`): images that go in together if `sides` are not given.
    """
    vit = model.config.backbone_config.backbone_config
    height = list(sides) if sides else vit.image_size
    sizes = {
        "batch": "any" if sides else batch_size,
        "height": height,
        "width": height,
        "multiple_of": 1,
        "padded_inside_to_multiples_of": vit.patch_size,
        "trained_at": vit.image_size,
    }
    normalization = {
        "input": "uint8 RGB, (batch, height, width, 3), upright, not normalised: it is done inside",
        "rescale": processor.rescale_factor,
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }
    values = {
        "names": list(class_names_of(model.config.id2label, "id2label")),
        "colors": [list(colour) for colour in palette_of_model(model.config)],
        "sizes": sizes,
        "normalization": normalization,
        "version": f"rein-hf {rein_hf.__version__}",
        "model": name if is_hub_id(name) else Path(name).resolve().name,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
    }


def save_exported(program: torch.export.ExportedProgram, output: Path, scores: bool, metadata: dict[str, str]) -> None:
    """Writes the traced graph, with its metadata: in ONNX as `metadata_props`, in a .pt2 as its extra file
    `metadata.json`."""
    if output.suffix == ".pt2":
        torch.export.save(program, output, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
        return
    names = ["labels", "scores"] if scores else ["labels"]
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    with quiet_onnx():
        found = torch.onnx.export(
            program, (), dynamo=True, verbose=False, optimize=False, input_names=["images"], output_names=names
        )
        simplify(found.model)
    found.model.metadata_props.update(metadata)
    found.model.producer_name, found.model.producer_version = "rein-hf", rein_hf.__version__
    name_axes(found.model.graph)
    # a file of ONNX holds 2 GB; weights beyond go into another beside it
    found.save(output, external_data=size > 1.9e9)


def simplify(model) -> None:
    """What torch's `optimize=True` does to a graph of ONNX, without its rewriting of patterns: for each pattern and
    node that goes through the whole graph again, which took most of an export. onnxruntime rewrites such patterns when
    it loads a file."""
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    fold_constants(model)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def name_axes(graph) -> None:
    """Gives the dimensions of images, labels and scores that are free the names of `AXES`, everywhere in a graph."""
    found = dict(zip(AXES, graph.inputs[0].shape, strict=False))
    symbols = {str(dim): name for name, dim in found.items() if not isinstance(dim, int)}
    for node in graph:
        for value in node.outputs:
            for index, dim in enumerate(value.shape or ()):
                if str(dim) in symbols:
                    value.shape[index] = symbols[str(dim)]
    for value in (graph.inputs[0], *graph.outputs):
        places = (0, 1, 2) if value.name == "images" else (0, -2, -1)
        for name, index in zip(AXES, places, strict=True):
            if str(found[name]) in symbols:
                value.shape[index] = name


@contextmanager
def quiet_onnx() -> Iterator[None]:
    """Silences what torch and onnxscript say of each operation that they leave as it is, and of torch's own calls of
    its functions that will go."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_exported(output: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """A function that runs the file on images."""
    if output.suffix == ".pt2":
        return torch.export.load(output).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]

"""`torch.compile` of a model in training, or CUDA graphs of it."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from ..head import head_of
from ..inference.compiled import GRAPH_ONLY, check_mode
from .graphed_step import GraphedSteps


def compile_before_loss(
    model: nn.Module, backend: str = "inductor", mode: str | None = None, fullgraph: bool = True
) -> None:
    """Compiles in place what a training step computes before its loss; parameters and their names stay.

    The loss stays as it is: its matching is on the host, and what it computes changes with the number of masks of a
    batch. Compiling the whole model instead would compile it anew for every such number.

    Args:
        model: a segmenter with or without adapter.
        backend (`str`): of `torch.compile`; or "cudagraphs", which compiles nothing and records the kernels of the
            second step, forward and backward, to launch them at once in later ones. Losses stay the same, gradients
            but for the order in which some sums are made. It needs a GPU, batches of few sizes, and one backward pass
            after each forward pass.
        mode, fullgraph: of `torch.compile` with a compiler.

    Raises:
        ValueError: `mode` is none of torch.compile, or is given with a backend that has none; CUDA graphs are asked
            for, and the model is not on a GPU.
    """
    check_mode(mode, backend)
    segmenter = model.get_base_model() if isinstance(model, PeftModel) else model
    # the loss of a head that classifies pixels is computed outside of the segmenter
    before_loss = segmenter.model if head_of(segmenter.config.model_type).classifies_masks else segmenter
    if backend == GRAPH_ONLY:
        before_loss._compiled_call_impl = GraphedSteps(before_loss, before_loss._call_impl)
    else:
        before_loss.compile(backend=backend, mode=mode, fullgraph=fullgraph)

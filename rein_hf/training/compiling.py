"""`torch.compile` of a model in training."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from ..head import head_of


def compile_before_loss(
    model: nn.Module, backend: str = "inductor", mode: str | None = None, fullgraph: bool = True
) -> None:
    """Compiles in place what a training step computes before its loss; parameters and their names stay.

    The loss stays as it is: its matching is on the host, and what it computes changes with the number of masks of a
    batch. Compiling the whole model instead would compile it anew for every such number.

    Args:
        model: a segmenter with or without adapter.
        backend, mode, fullgraph: of `torch.compile`.
    """
    segmenter = model.get_base_model() if isinstance(model, PeftModel) else model
    # the loss of a head that classifies pixels is computed outside of the segmenter
    before_loss = segmenter.model if head_of(segmenter.config.model_type).classifies_masks else segmenter
    before_loss.compile(backend=backend, mode=mode, fullgraph=fullgraph)

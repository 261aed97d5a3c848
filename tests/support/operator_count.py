"""Counts the operators that would each launch a kernel on a GPU, without a GPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rein_hf.backbone import residual_norms
from rein_hf.head import cast_weights, criterion, decoder_attention, transformer_decoder
from rein_hf.inference import class_scores
from rein_hf.tuner import layer


# Operators that only reserve memory or give out a tensor, a size or a number that is there already.
WITHOUT_KERNEL = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::lift_fresh",
    "aten::_local_scalar_dense",
    "aten::is_same_size",
    "aten::promote_types",
}


# Operators of this library count as what they launch on a GPU: this backward pass sets the sums to zero, runs a kernel
# and casts the sums; scores of classes are of masks that lie in memory with all queries of a pixel side by side.
LAUNCHES = {"rein_hf::sample_and_sum_backward": 3, "rein_hf::class_scores": 2}


class OperatorCount(TorchDispatchMode):
    """Counts operators while it is entered: those of torch's dispatcher, in the forward and the backward pass, without
    views and allocations.

    Attributes:
        names (`Counter[str]`): how often each operator was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if launches_kernel(function):
            self.names[function.name()] += LAUNCHES.get(function.name(), 1)
        return function(*args, **(kwargs or {}))


def launches_kernel(operator: torch._ops.OpOverload) -> bool:
    """Whether the operator computes something. A view returns an alias of its argument that it did not write to."""
    if operator.name().partition(".")[0] in WITHOUT_KERNEL:
        return False
    return not any(one.alias_info is not None and not one.alias_info.is_write for one in operator._schema.returns)


@contextmanager
def path_of_cuda() -> Iterator[None]:
    """Lets Rein and the head take the path that they take on a GPU, on a CPU."""

    def mask_logits(embeddings, pixels):
        numbers = [one.shape[1] for one in embeddings]
        return torch.einsum("bmc,bchw->bmhw", torch.cat(embeddings, dim=1), pixels).split(numbers, dim=1)

    def attend(query, key, value, dropout):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)

    with (
        mock.patch.object(transformer_decoder, "mask_logits", mask_logits),
        mock.patch.object(decoder_attention, "attend", attend),
        mock.patch.object(cast_weights, "saves_time", lambda device: True),
        mock.patch.object(layer, "saves_time", lambda device: True),
        mock.patch.object(residual_norms, "saves_time", lambda device: True),
        mock.patch.object(class_scores, "saves_time", lambda device: True),
        mock.patch.object(criterion, "outputs_at_once", lambda outputs, device: outputs),
    ):
        yield

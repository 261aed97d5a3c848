"""Tensors that say they are on a GPU, on a machine without one: they have shapes and types, and no values."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.operator_count import launches_kernel


class FakeCuda(TorchDispatchMode):
    """Modules and tensors on a GPU that is not there.

    Attributes:
        on_host (`list[str]`): what a CUDA graph cannot record: operators that compute with tensors of the CPU, copy
            from or to it, or ask the device for values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode = FakeTensorMode()
        self.on_host: list[str] = []

    def tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return FakeTensor(self.mode, torch.empty_like(tensor, device="meta"), torch.device("cuda:0"))

    def move(self, model: torch.nn.Module) -> torch.nn.Module:
        """A model's parameters and buffers, moved in place."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = torch.nn.Parameter(self.tensor(parameter), parameter.requires_grad)
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return model

    @contextmanager
    def running(self) -> Iterator[None]:
        """Operators go to the GPU that is not there, and what they do on the host is noted."""
        with ExitStack() as stack:
            # a torch without CUDA refuses these methods of such tensors, though not the operators that they stand for
            stack.enter_context(mock.patch.object(torch.Tensor, "__getitem__", get_item))
            stack.enter_context(mock.patch.object(torch.Tensor, "__setitem__", set_item))
            stack.enter_context(mock.patch.object(torch.Tensor, "contiguous", contiguous))
            # nor does autocast, where there is no CUDA
            stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
            stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_: True))
            for question, answer in (
                ("mem_get_info", (2**36, 2**36)),
                ("memory_reserved", 0),
                ("memory_allocated", 0),
            ):
                stack.enter_context(mock.patch(f"torch.cuda.{question}", lambda *_, answer=answer: answer))
            stack.enter_context(self.mode)
            yield stack.enter_context(self)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name.partition(".")[0] in ("aten::_local_scalar_dense", "aten::nonzero"):
            self.on_host.append(name)
        if name == "aten::upsample_bilinear2d":  # what torch has for fake tensors uses brackets in C++
            result = args[0].new_empty(*args[0].shape[:2], *args[1])
        else:
            result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        computes = name != "prim::device" and launches_kernel(function)
        # a number of the CPU, of no dimension, goes to a kernel as an argument
        if computes and any(one.device.type == "cpu" and one.dim() for one in tensors):
            self.on_host.append(name)
        return result


def get_item(tensor: torch.Tensor, index) -> torch.Tensor:
    """`tensor[index]` by the operators that it stands for."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [one for one in index if not isinstance(one, torch.Tensor)]:
        place = next(number for number, one in enumerate(index) if one is Ellipsis)
        given = sum(one is not None and one is not Ellipsis for one in index)
        index = (*index[:place], *[slice(None)] * (tensor.dim() - given), *index[place + 1 :])
    at, tensors = 0, []
    for one in index:
        if one is None:
            tensor, at = tensor.unsqueeze(at), at + 1
        elif isinstance(one, slice):
            if one != slice(None):
                tensor = torch.ops.aten.slice.Tensor(tensor, at, one.start, one.stop, one.step or 1)
            at += 1
        elif isinstance(one, torch.Tensor):
            tensors.append((at, one))
            at += 1
        else:
            tensor = tensor.select(at, one)
    if tensors:
        indices = [None] * (tensors[-1][0] + 1)
        for place, one in tensors:
            indices[place] = one
        tensor = torch.ops.aten.index.Tensor(tensor, indices)
    return tensor


def set_item(tensor: torch.Tensor, index, value) -> None:
    """`tensor[index] = value` for indices without tensors."""
    view = get_item(tensor, index)
    if isinstance(value, torch.Tensor):
        torch.ops.aten.copy_.default(view, value)
    else:
        torch.ops.aten.fill_.Scalar(view, value)


def contiguous(tensor: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return tensor.clone(memory_format=memory_format)

"""What tests do to models and ask of them: built once, moved weights, names of parameters, layers, hooks."""

import copy
import pickle
from collections.abc import Callable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer


class BuiltOnce:
    """Calls `make` with seed 0, once for equal arguments, and returns a new copy of the model each time. A copy takes
    a tenth of the time, and leaves the random generator as building leaves it.

    Args:
        make: the function that builds a model.
        *arguments: what it is always called with.
    """

    def __init__(self, make: Callable[..., torch.nn.Module], *arguments):
        self.make, self.arguments = make, arguments
        self.built: dict[bytes, tuple[torch.nn.Module, torch.Tensor]] = {}

    def __call__(self, **kwargs) -> torch.nn.Module:
        key = pickle.dumps(kwargs)  # equal arguments of different types are different
        if key not in self.built:
            torch.manual_seed(0)
            self.built[key] = self.make(*self.arguments, **kwargs), torch.get_rng_state()
        model, random_state = self.built[key]
        torch.set_rng_state(random_state)
        return copy.deepcopy(model)


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Changes every trainable weight, so that a tensor that is not saved or loaded makes a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def make_decided(model) -> None:
    """Enlarge some weights: with small random ones a model finds the same class everywhere."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.requires_grad
                and ("class_predictor" in name or "mask_embedder" in name)
                and "bias" not in name
            ):
                parameter.mul_(100)


def trainable_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_parameters(model: torch.nn.Module, *adapters: str) -> set[str]:
    """Names of the parameters of these adapters, their copies of the head included."""
    return {name for name, _ in model.named_parameters() if set(adapters) & set(name.split("."))}


def tuner_layers(model: torch.nn.Module) -> list[BaseTunerLayer]:
    """The layers that peft has put into a model."""
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def hook_counts(model: torch.nn.Module) -> list[int]:
    """Number of forward hooks of each module."""
    return [len(module._forward_hooks) for module in model.modules()]

"""What tests do with models: change their weights, and select names of parameters."""

import torch


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Changes every trainable weight, so that a tensor that is not saved or loaded makes a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def trainable_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_parameters(model: torch.nn.Module, *adapters: str) -> set[str]:
    """Names of the parameters of these adapters, their copies of the head included."""
    return {name for name, _ in model.named_parameters() if set(adapters) & set(name.split("."))}

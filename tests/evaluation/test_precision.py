"""rein_hf.evaluation.precision: several precisions in one process, weights cast once."""

import copy

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from rein_hf.evaluation import accelerator_for, move_to
from rein_hf.inference import slide_inference


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_precisions_in_turn():
    """What accelerate itself refuses; the processes and their device stay as they are."""
    Accelerator(cpu=True, mixed_precision="no")
    with pytest.raises(ValueError, match="has already been initialized"):
        Accelerator(mixed_precision="bf16")
    state = dict(PartialState().__dict__)
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32), ("no", torch.float32)):
        accelerator = accelerator_for(precision)
        with accelerator.autocast():
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert PartialState().__dict__ == state


def test_weights_are_cast_once_and_predictions_stay(rein_model, pixel_values):
    """Bit for bit, and only in mixed precision."""
    cast = copy.deepcopy(rein_model)
    assert move_to(accelerator_for("no"), cast) is cast
    assert all(parameter.dtype == torch.float32 for parameter in cast.parameters())
    accelerator = accelerator_for("bf16")
    move_to(accelerator, cast)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.float32, torch.bfloat16}
    with accelerator.autocast():
        found, expected = (slide_inference(model, pixel_values) for model in (cast, rein_model))
    assert torch.equal(found, expected)

"""rein_hf.evaluation.accelerator_for: one process, several precisions in turn."""

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from rein_hf.evaluation import accelerator_for


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

"""`torch_compile` of a recipe: one graph before the loss, and the same run."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters

from tests.support.runs import run_recipe


@pytest.fixture(autouse=True)
def no_compiled_code():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_a_compiled_run_has_one_graph_and_the_same_losses(recipe, tmp_path):
    """The number of masks differs from batch to batch; the graph does not depend on it."""
    losses = []
    for name, words in (("eager", ()), ("compiled", ("--torch_compile_backend", "aot_eager"))):
        arguments = ("--output_dir", str(tmp_path / name), "--max_steps", "3", "--logging_steps", "1")
        trainer = run_recipe(recipe, *arguments, *words)
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.args.torch_compile == (name == "compiled")
        assert counters["stats"]["unique_graphs"] == (name == "compiled")
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert not [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO")]
    assert (tmp_path / "compiled" / "adapter_model.safetensors").is_file()

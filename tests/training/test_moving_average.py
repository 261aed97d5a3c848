"""The moving average of the trained weights: what it is, and that it is what is evaluated and saved."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rein_hf.training import SegmentationTrainer, checkpoints
from rein_hf.training.moving_average import UNAVERAGED_WEIGHTS, MovingAverage
from rein_hf.training.optimizer_keys import ema_start_step
from tests.support.processes import Weights, watching
from tests.support.runs import adapter_weights, equal_adapters, run_recipe


EMA = ("--ema_decay", "0.75", "--ema_start", "1", "--learning_rate", "1e-2")
EVERY_STEP = ("--save_steps", "1", "--save_total_limit", "9")


def averages(seen: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """The average after a step of weights seen after each step, in float64, by the names of an adapter's file."""
    found = {}
    for name in (name for name in seen if name.startswith("1.")):
        average = seen[name].double()
        for later in range(2, step + 1):
            average = 0.75 * average + 0.25 * seen[f"{later}{name[1:]}"]
        found[name[2:].replace(".modules_to_save", "").replace(".default", "")] = average
    return found


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-7)


def test_start_is_a_step_or_a_share():
    assert [ema_start_step(start, 40_000) for start in (None, 0, 12_000.0, 0.3)] == [0, 0, 12_000, 12_000]
    assert ema_start_step(0.3, 4) == 1


def test_the_average_is_what_is_saved(recipe, tmp_path, capsys):
    """Of each checkpoint, and of the final model; the weights themselves lie beside it."""
    weights = Weights()
    with watching(weights):
        trainer = run_recipe(recipe, *EMA, *EVERY_STEP)
    out = tmp_path / "out"
    for step in (1, 2, 3, 4):
        assert_close(adapter_weights(out / f"checkpoint-{step}"), averages(weights.found, step))
    assert not equal_adapters(out / "checkpoint-3", out / "checkpoint-4")
    beside = load_file(out / "checkpoint-3" / UNAVERAGED_WEIGHTS)
    expected = {name[2:]: tensor for name, tensor in weights.found.items() if name.startswith("3.")}
    assert beside.keys() == expected.keys() and all(torch.equal(beside[name], expected[name]) for name in beside)
    assert equal_adapters(out, out / "checkpoint-4") and not (out / UNAVERAGED_WEIGHTS).exists()
    left = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    saved = adapter_weights(out)
    for name, parameter in left.items():  # and is left in the model
        assert torch.equal(parameter, saved[name.replace(".modules_to_save", "").replace(".default", "")])
    said = (
        "after step 1, what is evaluated and saved is the moving average of the trained weights, with ema_decay 0.75"
    )
    assert said in capsys.readouterr().out


def test_training_goes_on_as_without_it(recipe, tmp_path):
    with_average, without = Weights(), Weights()
    with watching(with_average):
        run_recipe(recipe, *EMA, "--eval_strategy", "steps", "--eval_steps", "1", "--eval_limit", "1")
    with watching(without):
        run_recipe(recipe, "--learning_rate", "1e-2", "--output_dir", str(tmp_path / "without"))
    assert with_average.found.keys() == without.found.keys()
    assert all(torch.equal(with_average.found[name], without.found[name]) for name in without.found)


def test_the_average_is_what_is_evaluated(recipe, monkeypatch):
    weights, evaluated = Weights(), {}

    class Metric:
        def compute(self):
            return {"mean_iou": 0.5, "per_class_iou": {"road": 0.5}}

    def evaluate(model, processor, domain, *args, **kwargs):
        evaluated[len(evaluated) + 1] = {
            name.replace(".modules_to_save", "").replace(".default", ""): p.detach().clone()
            for name, p in model.named_parameters()
            if p.requires_grad
        }
        return {domain.name: Metric()}

    monkeypatch.setattr("rein_hf.training.trainer.evaluate_domain", evaluate)
    with watching(weights):
        run_recipe(recipe, *EMA, "--eval_strategy", "steps", "--eval_steps", "1")
    assert len(evaluated) == 4
    for step, found in evaluated.items():
        assert_close(found, averages(weights.found, step))


@pytest.mark.parametrize(("start", "ends_in"), [("0", 3), ("2", 2), ("2", 3)])
def test_an_interrupted_run_ends_with_the_same_average(recipe, tmp_path, monkeypatch, start, ends_in):
    values = ("--ema_decay", "0.75", "--ema_start", start, "--weight_decay_end", "0.5", *EVERY_STEP)
    run_recipe(recipe, *values, "--output_dir", str(tmp_path / "straight"))
    step, calls = SegmentationTrainer.training_step, []

    def ends(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == ends_in:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTrainer, "training_step", ends)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, *values)
    trainer = run_recipe(recipe, *values)
    assert trainer._initial_global_step == ends_in - 1
    assert equal_adapters(tmp_path / "out", tmp_path / "straight")
    assert equal_adapters(tmp_path / "out" / "checkpoint-4", tmp_path / "straight" / "checkpoint-4")


def test_the_final_model_of_a_run_that_was_killed_after_its_last_step(recipe, tmp_path):
    run_recipe(recipe, *EMA)
    shutil.copytree(tmp_path / "out", tmp_path / "straight")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    run_recipe(recipe, *EMA)
    assert equal_adapters(tmp_path / "out", tmp_path / "straight")


def test_the_best_average_can_be_the_final_one(recipe, tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.3, 0.1])

    class Metric:
        def compute(self):
            return {"mean_iou": (score := next(scores)), "per_class_iou": {"road": score}}

    monkeypatch.setattr("rein_hf.training.trainer.evaluate_domain", lambda *args, **kwargs: {"seen": Metric()})
    best = ("--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "true")
    best += ("--metric_for_best_model", "miou")
    run_recipe(recipe, *EMA, *EVERY_STEP, *best)
    assert equal_adapters(tmp_path / "out", tmp_path / "out" / "checkpoint-2")


def test_a_loss_that_is_not_finite_leaves_the_weights_that_made_it(recipe, tmp_path, monkeypatch):
    weights, compute_loss = Weights(), SegmentationTrainer.compute_loss

    def poisoned(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 3:
            inputs["pixel_values"][0] = float("nan")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SegmentationTrainer, "compute_loss", poisoned)
    with watching(weights), pytest.raises(FloatingPointError, match="The loss of step 4 is nan"):
        run_recipe(recipe, *EMA)
    saved = adapter_weights(tmp_path / "out" / "non-finite-loss-4")
    for name in (name for name in weights.found if name.startswith("3.")):
        assert torch.equal(
            saved[name[2:].replace(".modules_to_save", "").replace(".default", "")], weights.found[name]
        )


def test_full_fine_tuning_has_one(recipe, tmp_path):
    weights = Weights()
    with watching(weights):
        run_recipe(recipe, *EMA, "--tuning", "full", "--rein", "null")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.pop("criterion.empty_weight").shape == (20,)  # a buffer
    assert_close(found, averages(weights.found, 4))


def test_another_decay_does_not_go_on(recipe, tmp_path):
    run_recipe(recipe, *EMA)
    with pytest.raises(ValueError, match="ema_decay was 0.75, is 0.5"):
        run_recipe(recipe, *EMA, "--ema_decay", "0.5")


def test_weights_of_another_model_are_refused(recipe, tmp_path):
    run_recipe(recipe, *EMA)
    folder = tmp_path / "out" / "checkpoint-4"
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    shutil.copy(folder / "adapter_model.safetensors", folder / UNAVERAGED_WEIGHTS)
    (folder / checkpoints.MANIFEST).unlink()
    checkpoints.write_manifest(folder)
    with pytest.raises(ValueError, match=f"{UNAVERAGED_WEIGHTS} holds other weights than those that are trained"):
        run_recipe(recipe, *EMA)


def test_weights_that_are_not_in_float32_are_refused(segmenter):
    class State:
        global_step, max_steps, is_world_process_zero = 0, 4, True

    with pytest.raises(TypeError, match="weights of torch.bfloat16 are trained; a moving average needs float32"):
        MovingAverage(0.9).on_train_begin(None, State, None, model=segmenter.to(torch.bfloat16))
    assert isinstance(MovingAverage(0.9), TrainerCallback)


def test_running_statistics_are_not_averaged(recipe, tmp_path):
    """Of a head with batch norms: what is saved are the statistics of the last step, as without an average."""
    upernet = ("--head", "{model_type: upernet, hidden_size: 16}", "--rein", "{num_tokens: 8}")
    run_recipe(recipe, *EMA, *upernet)
    run_recipe(recipe, "--learning_rate", "1e-2", *upernet, "--output_dir", str(tmp_path / "without"))
    found, expected = adapter_weights(tmp_path / "out"), adapter_weights(tmp_path / "without")
    statistics = [name for name in found if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(found[name], expected[name]) for name in statistics)
    assert not any(torch.equal(found[name], expected[name]) for name in found if name.endswith("conv.weight"))

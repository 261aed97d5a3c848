"""The trainer, through recipes/train.py: what it saves, how a run continues, and what stops it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import rein_hf
from rein_hf.training import SegmentationTrainer, checkpoints
from rein_hf.training.divergence import LossGuard
from tests.support.runs import adapter_weights, equal_adapters, run_recipe, write_recipe


EVERY_STEP = ("--save_steps", "1", "--save_total_limit", "3")


class Killed(BaseException):
    """Ends a run like a signal: no handler may catch it."""


def kill(monkeypatch, owner, name: str, call: int, after: bool = False) -> None:
    """Ends the run in the given call of a function, counted from 1. Later calls, of the next run, are not affected."""
    function, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(1)
        result = function(*args, **kwargs) if after or len(calls) != call else None
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killed)


@pytest.fixture(scope="module")
def straight(vit_folder, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted. All recipes have the same data, so they give the same weights."""
    folder = tmp_path_factory.mktemp("straight")
    run_recipe(write_recipe(folder, vit_folder))
    return folder / "out"


@pytest.fixture
def finished(recipe, straight, tmp_path) -> Path:
    """A copy of that folder, as if `recipe` had made it."""
    shutil.copytree(straight, tmp_path / "out")
    values = checkpoints.read_json(straight / "recipe.json") | {"train": [str(tmp_path / "data")]}
    checkpoints.write_json(tmp_path / "out" / "recipe.json", values)
    return tmp_path / "out"


MOMENTS = {
    "in a step": (SegmentationTrainer, "training_step", 4, 3),
    "before the optimizer of a checkpoint": (torch, "save", 6, 1),
    "with half of its files": (SegmentationTrainer, "_save_rng_state", 3, 2),
    "with all files but no manifest": (checkpoints, "write_manifest", 3, 2),
    "with a manifest but no name": (checkpoints, "publish", 3, 2),
    "while an old one is deleted": (checkpoints.shutil, "rmtree", 10, None),
    "before the last checkpoint": (checkpoints, "write_manifest", 4, 3),
    "while the final model is written": (SegmentationTrainer, "_save", 5, 4),
    "before the final model has its place": (checkpoints, "publish_files", 1, 4),
    "with half of the final model in place": (checkpoints.os, "replace", 28, 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(recipe, tmp_path, straight, monkeypatch, moment):
    owner, name, call, step = MOMENTS[moment]
    with monkeypatch.context() as patch:
        kill(patch, owner, name, call)
        with pytest.raises(Killed):
            run_recipe(recipe, *EVERY_STEP)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    begun = []
    training_step = SegmentationTrainer.training_step
    monkeypatch.setattr(
        SegmentationTrainer,
        "training_step",
        lambda self, *a, **k: (begun.append(self.state.global_step), training_step(self, *a, **k))[1],
    )
    run_recipe(recipe, *EVERY_STEP)
    if step is not None:
        assert begun == list(range(step, 4))
    assert equal_adapters(straight, tmp_path / "out") and not (tmp_path / "out" / ".partial").exists()


@pytest.mark.slow
def test_a_killed_process(recipe, tmp_path, straight):
    """The command itself, killed as soon as it saves; `python -m tests.measure.kill_runs` kills at more moments."""
    command = [sys.executable, "recipes/train.py", str(recipe), *EVERY_STEP]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    for sign in ("out/.partial/checkpoint-1", "out/checkpoint-2"):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / sign).exists():
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    run_recipe(recipe, *EVERY_STEP)
    assert equal_adapters(straight, tmp_path / "out")


def test_a_damaged_checkpoint_is_skipped(recipe, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, SegmentationTrainer, "training_step", 4)
        with pytest.raises(Killed):
            run_recipe(recipe, *EVERY_STEP)
    with open(tmp_path / "out" / "checkpoint-3" / "optimizer.pt", "r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match=r"checkpoint-3 is damaged: .*optimizer.pt has 1000 bytes; .* checkpoint-2"):
        run_recipe(recipe, *EVERY_STEP)
    assert equal_adapters(straight, tmp_path / "out") and (tmp_path / "out" / "damaged-checkpoint-3").is_dir()
    shutil.rmtree(tmp_path / "out" / "damaged-checkpoint-3")
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    for folder in checkpoints.list_checkpoints(tmp_path / "out"):
        (folder / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="All checkpoints in .* are damaged"):
        run_recipe(recipe, *EVERY_STEP)


def test_a_full_disk_leaves_the_checkpoints_before(recipe, tmp_path, straight, monkeypatch):
    save, calls = torch.save, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:  # the last of four files of the second checkpoint that go through it
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            OSError, match="checkpoint-2 could not be written .*No space left.*before it: checkpoint-1"
        ):
            run_recipe(recipe, *EVERY_STEP)
    assert checkpoints.latest_valid(tmp_path / "out").name == "checkpoint-1"
    assert not (tmp_path / "out" / ".partial").exists()
    run_recipe(recipe, *EVERY_STEP)
    assert equal_adapters(straight, tmp_path / "out")


def test_a_full_disk_at_the_end(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "publish_files", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(
        OSError, match="The final model could not be written in .*checkpoints before it: checkpoint-2, checkpoint-4"
    ):
        run_recipe(recipe)
    monkeypatch.undo()
    run_recipe(recipe)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_finished_run_is_left_alone(recipe, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert run_recipe(recipe) is None
    assert "holds the finished run of this recipe, 4 steps; nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--max_steps", "6"], "max_steps was 4, is 6"),
        (["--total_batch_size", "1"], "total_batch_size was 2, is 1"),
        (["--seed", "1", "--learning_rate", "1e-3"], "learning_rate was 0.0001, is 0.001; seed was 42, is 1"),
        (["--rein.r", "2"], "rein was {'r': 4}, is {'r': 2}"),
    ],
)
def test_another_recipe_does_not_go_on(recipe, finished, overrides, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe, *overrides)


def test_what_may_change_does(recipe, finished, straight):
    (finished / "adapter_model.safetensors").unlink()
    shutil.rmtree(finished / "checkpoint-4")
    trainer = run_recipe(recipe, "--save_steps", "3", "--logging_steps", "1", "--evaluate", "[]")
    assert trainer.state.global_step == 4 and equal_adapters(straight, finished)


@pytest.mark.parametrize(
    "options",
    [
        ("--load_best_model_at_end", "true", "--metric_for_best_model", "miou"),
        ("--lr_scheduler_type", "greedy"),
    ],
)
def test_where_scores_decide_all_are_of_the_same_data(recipe, tmp_path, monkeypatch, options):
    """The best step would be one of an easier target; the learning rate would fall by a jump between two targets."""
    options = ("--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1", *options)
    kill(monkeypatch, SegmentationTrainer, "training_step", 4)
    with pytest.raises(Killed):
        run_recipe(recipe, *options)
    for change, message in (
        (["--evaluate", f"[other={tmp_path / 'data'}]"], "evaluate was .*seen=.*, is .*other="),
        (["--eval_limit", "1"], "eval_limit was None, is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run_recipe(recipe, *options, *change)
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / "data" / kind / "0.png", tmp_path / "data" / kind / "9.png")
    with pytest.raises(ValueError, match="is {'data': 7}; images_evaluated was {'seen': 6}, is {'seen': 7}"):
        run_recipe(recipe, *options)


def test_more_data_does_not_go_on(recipe, finished, tmp_path):
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / "data" / kind / "0.png", tmp_path / "data" / kind / "9.png")
    with pytest.raises(ValueError, match="images was {'data': 6}, is {'data': 7}"):
        run_recipe(recipe)


def test_a_run_without_its_recipe_is_refused(recipe, finished):
    (finished / "recipe.json").unlink()
    with pytest.raises(ValueError, match="holds a run, but no recipe.json"):
        run_recipe(recipe)


def test_a_run_that_saved_nothing_may_be_corrected(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, SegmentationTrainer, "training_step", 1)
        with pytest.raises(Killed):
            run_recipe(recipe)
    assert run_recipe(recipe, "--learning_rate", "1e-3").state.global_step == 4


def test_the_best_checkpoint_stays_beside_the_newest(recipe, tmp_path, monkeypatch):
    """Evaluations at the steps 1 to 6 have these scores; every third step is saved, and the newest one kept."""
    scores = [10.0, 40.0, 30.0, 20.0, 40.0, float("nan")]

    class Metric:
        def __init__(self, score):
            self.score = score

        def compute(self):
            return {"mean_iou": self.score / 100, "per_class_iou": {}}

    found = iter(scores)
    monkeypatch.setattr(
        "rein_hf.training.trainer.evaluate_domain",
        lambda model, processor, domain, *a, **k: {domain.name: Metric(next(found))},
    )
    often = ("--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "3")
    often = (*often, "--metric_for_best_model", "miou", "--eval_pictures", "0")
    with monkeypatch.context() as patch:
        kill(patch, SegmentationTrainer, "training_step", 5)
        with pytest.raises(Killed):
            run_recipe(recipe, *often, "--save_total_limit", "1")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "out")] == ["checkpoint-2", "checkpoint-3"]
    found = iter(scores[3:])
    trainer = run_recipe(recipe, *often, "--save_total_limit", "2")
    assert trainer.state.best_metric == 40.0 and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    names = [path.name for path in checkpoints.list_checkpoints(tmp_path / "out")]
    assert names == ["checkpoint-2", "checkpoint-3", "checkpoint-6"]
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-2")


def test_the_best_weights_can_be_the_final_ones(recipe, tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.3, 0.1])

    class Metric:
        def compute(self):
            return {"mean_iou": next(scores), "per_class_iou": {}}

    monkeypatch.setattr("rein_hf.training.trainer.evaluate_domain", lambda *args, **kwargs: {"seen": Metric()})
    evaluated = ("--eval_strategy", "steps", "--eval_steps", "1", "--metric_for_best_model", "miou")
    run_recipe(recipe, *EVERY_STEP, *evaluated, "--load_best_model_at_end", "true", "--eval_pictures", "0")
    assert equal_adapters(tmp_path / "out", tmp_path / "out" / "checkpoint-2")
    assert not equal_adapters(tmp_path / "out", tmp_path / "out" / "checkpoint-4")


def test_nothing_that_is_saved_is_pickled_code(straight):
    """Optimizer, schedule and random states load with weights_only; there are no pickled arguments."""
    assert not list(straight.rglob("training_args.bin")) and not list(straight.rglob("*.pkl"))
    files = [path for path in straight.rglob("*") if path.suffix in (".pt", ".pth", ".bin")]
    assert {path.name for path in files} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        for path in files:
            torch.load(path, weights_only=True)


# ---- devices ----


def test_one_process_trains_on_one_of_several_gpus(recipe, straight, tmp_path, monkeypatch):
    """The stock Trainer would wrap the model in `DataParallel` and take twice the recipe's batch."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.warns(
        UserWarning, match="2 GPUs are visible, and one process trains on one of them.*--num_processes 2"
    ):
        trainer = run_recipe(recipe, "--use_cpu", "false")
    assert trainer.args.n_gpu == 1 and trainer._train_batch_size == 2
    assert trainer.model_wrapped is trainer.model and equal_adapters(straight, tmp_path / "out")


# ---- evaluation ----


def test_a_trainer_without_domains_does_not_evaluate(recipe):
    trainer = run_recipe(recipe, "--evaluate", "[]", "--max_steps", "1")
    with pytest.raises(ValueError, match="There is no domain to evaluate on"):
        trainer.evaluate()


# ---- divergence ----


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_changes_a_weight(recipe, tmp_path, monkeypatch, accumulate):
    """The third step has an image with a NaN; with accumulation, only the micro-batch of that image is named."""
    out = tmp_path / "out"
    collate = rein_hf.data.samples.Collator.__call__
    seen = []

    def poisoned(self, samples):
        batch = collate(self, samples)
        seen.extend(batch["samples"])
        if 4 < len(seen) <= 4 + len(samples):
            batch["pixel_values"][0, 0, 3, 3] = float("nan")
        return batch

    monkeypatch.setattr(rein_hf.data.samples.Collator, "__call__", poisoned)
    with pytest.raises(FloatingPointError, match="The loss of step 3 is nan for data/") as error:
        run_recipe(recipe, *EVERY_STEP, "--per_device_train_batch_size", "1" if accumulate else "2")
    guilty = seen[4:5] if accumulate else seen[4:6]
    assert f"for {', '.join(guilty)} (batch-0-0.safetensors)." in str(error.value)
    saved = out / "non-finite-loss-3"
    assert equal_adapters(saved, out / "checkpoint-2") and checkpoints.verify(saved) is None
    assert checkpoints.latest_valid(out).name == "checkpoint-2" and not (out / "adapter_model.safetensors").exists()
    with safe_open(saved / "batch-0-0.safetensors", "pt") as file:
        assert file.metadata() == {"samples": "\n".join(guilty), "loss": "nan"}
    batch = load_file(saved / "batch-0-0.safetensors")
    lists = {
        name: [batch[key] for key in sorted(batch) if key.startswith(name)] for name in ("mask_labels", "class_labels")
    }
    model = rein_hf.from_pretrained(saved)
    assert model(pixel_values=batch["pixel_values"], **lists).loss.isnan()
    clean = batch["pixel_values"].nan_to_num()
    assert model(pixel_values=clean, **lists).loss.isfinite()


def test_no_checkpoint_of_weights_that_are_not_finite(recipe, tmp_path, monkeypatch):
    """A gradient may be infinite where the loss is not."""
    step = SegmentationTrainer.training_step

    def infinite(self, model, inputs, num_items_in_batch=None):
        loss = step(self, model, inputs, num_items_in_batch)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.requires_grad).grad.view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(SegmentationTrainer, "training_step", infinite)
    with pytest.raises(FloatingPointError, match=r"After step 2 the weights \[.* are not finite; no checkpoint"):
        run_recipe(recipe, *EVERY_STEP)
    assert checkpoints.latest_valid(tmp_path / "out").name == "checkpoint-1"
    assert all(tensor.isfinite().all() for tensor in adapter_weights(tmp_path / "out" / "checkpoint-1").values())


def test_images_without_a_labelled_pixel_are_counted_over_interruptions(recipe, tmp_path, monkeypatch):
    """Of the eight samples of the run, those of images 1 and 4."""
    for name in ("1", "4"):
        Image.fromarray(np.full((72, 96), 255, np.uint8)).save(tmp_path / "data" / "labels" / f"{name}.png")
    seen, collate = [], rein_hf.data.samples.Collator.__call__
    monkeypatch.setattr(
        rein_hf.data.samples.Collator,
        "__call__",
        lambda self, s: (seen.extend(x["name"] for x in s), collate(self, s))[1],
    )
    with monkeypatch.context() as patch:
        kill(patch, SegmentationTrainer, "training_step", 4)
        with pytest.raises(Killed):
            run_recipe(recipe, *EVERY_STEP, "--logging_steps", "50")
    trainer = run_recipe(recipe, *EVERY_STEP, "--logging_steps", "50")
    once = rein_hf.data.samples.TrainingSamples(
        [rein_hf.data.load_domain(str(tmp_path / "data")).dataset], 8, lambda i, x, _: (i, x), 42
    )
    expected = sum(once[k]["name"] in ("1", "4") for k in range(8))
    assert expected > 1 and trainer.state.log_history[-1]["unlabelled_images"] == expected


def test_another_number_of_processes_is_announced(recipe, tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch:
        kill(patch, SegmentationTrainer, "training_step", 4)
        with pytest.raises(Killed):
            run_recipe(recipe, *EVERY_STEP)
    folder = tmp_path / "out" / "checkpoint-3"
    for rank in (0, 1):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{rank}.pth")
    (folder / "rng_state.pth").unlink()
    (folder / checkpoints.MANIFEST).unlink()
    checkpoints.write_manifest(folder)
    with pytest.warns(UserWarning, match=r"checkpoint-3 was saved by 2 process\(es\); 1 go on, at the same sample"):
        run_recipe(recipe, *EVERY_STEP)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_batches_of_a_step_that_is_over_are_let_go():
    """They would stay on a GPU during the next forward pass."""
    guard, images = LossGuard(Accelerator()), torch.zeros(1)
    guard.watch(torch.tensor(1.0), ["a"], {"pixel_values": images})
    assert not guard.found() and not guard.losses
    guard.watch(torch.tensor(float("nan")), ["b"], {"pixel_values": images})
    assert guard.found() and [names for _, names, _ in guard.losses] == [["b"]]

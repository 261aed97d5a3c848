"""What one sees of a run while it trains: when it is evaluated, pictures, curves, trackers, what is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import rein_hf
from rein_hf.commands import train
from rein_hf.training import progress, read_recipe
from rein_hf.training.progress import curves_of
from tests.support.runs import equal_adapters, run_recipe


@pytest.fixture
def split_recipe(recipe, tmp_path) -> Path:
    """The tiny recipe without a word on when to evaluate: four images to train on, two held out."""
    rows = [f"{index},{'val' if index > 3 else 'train'}" for index in range(6)]
    (tmp_path / "data" / "index.csv").write_text("\n".join(["stem,split", *rows]))
    values = yaml.safe_load(recipe.read_text())
    values["train"], values["evaluate"] = [f"{tmp_path / 'data'}@train"], [f"val={tmp_path / 'data'}@val"]
    del values["eval_strategy"]
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def events_of(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = (folder / "runs").iterdir()
    return EventAccumulator(str(run), size_guidance={"images": 0}).Reload()


# ---- when ----


@pytest.mark.parametrize(("steps", "every"), [(40_000, 4_000), (400, 200), (4, 200)])
def test_a_recipe_that_names_domains_is_evaluated(split_recipe, steps, every):
    recipe, args = read_recipe(split_recipe, ["--max_steps", str(steps)])
    assert (args.eval_strategy, args.eval_steps, recipe.eval_limit, args.save_steps) == ("steps", every, 50, 2)


def test_what_is_said_of_evaluation_counts(split_recipe):
    assert read_recipe(split_recipe, ["--eval_strategy", "'no'"])[1].eval_strategy == "no"
    assert read_recipe(split_recipe, ["--evaluate", "[]"])[1].eval_strategy == "no"
    recipe, args = read_recipe(split_recipe, ["--eval_steps", "3", "--eval_limit", "7"])
    assert (args.eval_strategy, args.eval_steps, recipe.eval_limit) == ("steps", 3, 7)
    recipe, args = read_recipe(split_recipe, ["--eval_strategy", "epoch"])
    assert (args.eval_strategy, recipe.eval_limit) == ("epoch", None)
    best = ["--load_best_model_at_end", "true", "--max_steps", "4000"]
    values = yaml.safe_load(split_recipe.read_text())
    del values["save_steps"]
    split_recipe.write_text(yaml.safe_dump(values))
    assert read_recipe(split_recipe, best)[1].save_steps == 400
    with pytest.raises(ValueError, match="eval_pictures is -1; expected 0 at least"):
        read_recipe(split_recipe, ["--eval_pictures", "-1"])


# ---- by which domain the best checkpoint is chosen ----


@pytest.mark.parametrize(
    ("evaluate", "metric"),
    [
        (["seen={}"], None),  # the images that it trains on are among them
        (["seen={}@train"], None),
        (["night={}-night"], None),
        (["night={}-night", "val={}@val"], "val_miou"),
        (["half={}#every=4"], None),  # image 0 is trained on
        (["five={}#exclude=0+1+2+3"], "five_miou"),
    ],
)
def test_a_split_of_the_source_chooses_and_no_other_target(split_recipe, tmp_path, evaluate, metric):
    night = tmp_path / "data-night"
    night.symlink_to(tmp_path / "data")
    specs = [spec.format(tmp_path / "data") for spec in evaluate]
    recipe, args = train.parse([str(split_recipe), "--evaluate", json.dumps(specs)])
    sources, targets = ([rein_hf.data.load_domain(spec) for spec in group] for group in (recipe.train, specs))
    assert train.best_metric(recipe, args, sources, targets) == metric
    args.metric_for_best_model = "eval_miou"
    assert train.best_metric(recipe, args, sources, targets) == "eval_miou"


def test_the_best_of_what_is_not_chosen_is_refused(split_recipe, tmp_path):
    with pytest.raises(
        ValueError, match="load_best_model_at_end needs a score: none of seen=.* is a split of a source"
    ):
        run_recipe(
            *(split_recipe, "--evaluate", f"[seen={tmp_path / 'data'}]"),
            *("--load_best_model_at_end", "true", "--save_steps", "200"),
        )


# ---- what there is to see ----


def test_a_run_shows_what_it_does(split_recipe, tmp_path, capsys):
    trainer = run_recipe(split_recipe, "--report_to", "tensorboard", "--eval_steps", "2", "--logging_steps", "1")
    out = tmp_path / "out"
    assert sorted(path.name for path in (out / "validation").iterdir()) == ["step_000002.png", "step_000004.png"]
    (sample, _), sizes = rein_hf.data.load_domain(f"{tmp_path / 'data'}@val").dataset, []
    for name in ("step_000002.png", "step_000004.png"):
        with Image.open(out / "validation" / name) as sheet:
            sizes.append(sheet.size)
            shown = np.asarray(sheet.crop((0, 48, 320, 48 + 240)), float)
    assert sizes == [sizes[0]] * 2 and sizes[0][0] == 3 * 320 and sizes[0][1] >= 24 + 2 * (24 + 240) + 24
    expected = np.asarray(sample["image"].resize((320, 240), Image.Resampling.LANCZOS), float)
    assert np.abs(shown - expected).max() == 0  # the same image at each evaluation
    assert Image.open(out / "curves.png").format == "PNG"
    losses, scores = curves_of(trainer.state.log_history)
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert list(scores) == ["val"] and [step for step, _ in scores["val"]] == [2, 4]
    events = events_of(out)
    last = trainer.state.log_history[-2]
    assert [event.step for event in events.Scalars("eval/val_miou")] == [2, 4]
    assert events.Scalars("eval/val_miou")[-1].value == pytest.approx(last["eval_val_miou"])
    assert events.Scalars("train/loss")[0].value == pytest.approx(losses[0][1])
    classes = {tag for tag in events.Tags()["scalars"] if tag.startswith("eval/val_iou/")}
    assert {"eval/val_iou/road", "eval/val_iou/sky", "eval/val_iou/car"} <= classes
    assert len(classes) < 19  # those that are absent are not 0
    found = [events.Scalars(tag)[-1].value for tag in classes]
    assert np.mean(found) == pytest.approx(last["eval_val_miou"], rel=1e-5)
    assert [event.step for event in events.Images("validation")] == [2, 4]
    assert not any("iou/" in key for entry in trainer.state.log_history for key in entry)
    said = capsys.readouterr().out
    data = tmp_path / "data"
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    best = trainer.state.best_global_step
    for line in (
        f"  on data: 4 images, {data}@train\n",
        f"Evaluates every 2 steps and at the end, 50 images of each at most:\n  on val: 2 images, val={data}@val\n",
        "Keeps the checkpoint that is best by the mIoU of val beside the last ones.\n",
        f"Trained {trained:,} of ",
        f"mIoU in percent at step 4 (50 images of each at most): val {last['eval_val_miou']:.2f}.\n",
        f"Best step by the mIoU of val: {best} ({trainer.state.best_metric:.2f}), kept in {out}/checkpoint-{best}.\n",
        f"The weights of the last step lie in {out} (",
        f"Curves and pictures: {out}/curves.png, {out}/validation.\n",
        f"Next: rein-hf evaluate --model {out} --domains val={data}@val --output_dir {out}/evaluation\n",
        f"Or: rein-hf predict --model {out} --input PHOTOS --output_dir {out}/photos\n",
    ):
        assert line in said, line


@pytest.mark.parametrize(
    ("options", "steps", "said"),
    [
        (["--max_steps", "5", "--eval_steps", "0.5"], [3, 5], "every 3 steps and at the end"),
        (["--max_steps", "3", "--eval_steps", "0.1"], [1, 2, 3], "every 1 steps and at the end"),
        (
            ["--max_steps", "5", "--eval_steps", "2", "--eval_delay", "3"],
            [4, 5],
            "every 2 steps from step 4 on and at the end",
        ),
        (["--max_steps", "2", "--eval_steps", "1", "--eval_delay", "2"], [2], "at the end"),
        (["--max_steps", "2", "--eval_steps", "99"], [2], "at the end"),
        (["--max_steps", "2", "--eval_strategy", "epoch", "--eval_delay", "1"], [2], "at the end"),
    ],
)
def test_it_says_when_it_is_evaluated(split_recipe, capsys, options, steps, said):
    trainer = run_recipe(split_recipe, *options, "--eval_limit", "1", "--eval_pictures", "0")
    assert [entry["step"] for entry in trainer.state.log_history if "eval_miou" in entry] == steps
    assert f"\nEvaluates {said}, 1 images of each at most:\n" in capsys.readouterr().out


def test_without_a_best_step_the_weights_are_the_last_ones(split_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rein_hf.training.SegmentationTrainer._determine_best_metric", lambda *a, **k: False)
    best = ("--load_best_model_at_end", "true", "--eval_steps", "1", "--save_steps", "1", "--eval_pictures", "0")
    run_recipe(split_recipe, *best, "--max_steps", "2")
    assert equal_adapters(tmp_path / "out", tmp_path / "out" / "checkpoint-2")
    said = capsys.readouterr().out
    assert "Best step" not in said and "The weights of the last step lie in" in said


def test_a_run_without_domains(recipe, tmp_path, capsys):
    run_recipe(recipe, "--evaluate", "[]", "--logging_steps", "2")
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").is_file() and not (tmp_path / "out" / "validation").exists()
    assert "Evaluates" not in said and "Next: rein-hf predict --model" in said


def test_pictures_and_evaluations_change_no_weight(split_recipe, tmp_path):
    run_recipe(split_recipe, "--output_dir", str(tmp_path / "seen"), "--eval_steps", "3")
    run_recipe(split_recipe, "--eval_strategy", "no")
    assert equal_adapters(tmp_path / "seen", tmp_path / "out")


def test_the_best_step_is_the_adapter_of_a_recipe_that_says_so(split_recipe, tmp_path, monkeypatch, capsys):
    scores = iter([0.2, 0.5, 0.3, 0.1])

    class Metric:
        def compute(self):
            return {"mean_iou": next(scores), "per_class_iou": {"road": float("nan")}}

    monkeypatch.setattr("rein_hf.training.trainer.evaluate_domain", lambda *args, **kwargs: {"val": Metric()})
    best = ("--load_best_model_at_end", "true", "--eval_steps", "1", "--save_steps", "1", "--eval_pictures", "0")
    run_recipe(split_recipe, *best)
    assert equal_adapters(tmp_path / "out", tmp_path / "out" / "checkpoint-2")
    said = capsys.readouterr().out
    assert "Best step by the mIoU of val: 2 (50.00), kept in" in said and "The weights of the best step lie in" in said
    assert not (tmp_path / "out" / "validation").exists()


def test_pictures_are_shared_out():
    assert [progress.picture_counts(*pair) for pair in [(1, 4), (5, 4), (2, 0)]] == [[4], [1, 1, 1, 1, 0], [0, 0]]


# ---- trackers ----


def test_tensorboard_is_used_where_it_is_installed(split_recipe, monkeypatch):
    values = yaml.safe_load(split_recipe.read_text())
    del values["report_to"]
    split_recipe.write_text(yaml.safe_dump(values))
    assert read_recipe(split_recipe)[1].report_to == ["tensorboard"]
    from rein_hf.training import recipe_defaults

    monkeypatch.setattr(recipe_defaults, "is_tensorboard_available", lambda: False)
    assert recipe_defaults.report_default() == "none"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_missing_is_said_before_anything_is_loaded(split_recipe, monkeypatch, name):
    monkeypatch.setitem(progress.TRACKERS, name, lambda: False)
    with pytest.raises(ValueError, match=f"report_to is '{name}', which is not installed: pip install {name}"):
        run_recipe(split_recipe, "--report_to", name, "--backbone", "nobody/nothing")


def test_wandb_offline(split_recipe, tmp_path, monkeypatch):
    """Scalars of classes and the sheet reach wandb's own run, which writes to the disk alone."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda self, data, *a, **k: (logged.append(data), log(self, data, *a, **k))[1]
    )
    run_recipe(split_recipe, "--report_to", "wandb", "--max_steps", "1")
    wandb.finish()
    keys = {key for data in logged for key in data}
    assert {"eval/val_iou/road", "eval/val_miou", "eval/validation"} <= keys
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_trackio(split_recipe, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    logged = []
    monkeypatch.setattr(trackio, "init", lambda **kwargs: logged.append(kwargs))
    monkeypatch.setattr(trackio, "log", logged.append)
    monkeypatch.setattr(trackio, "finish", lambda: None)
    run_recipe(split_recipe, "--report_to", "trackio", "--max_steps", "1", "--project", "rein")
    assert {"eval/val_iou/road", "eval/val_miou"} <= {key for data in logged for key in data}

"""recipes/train.py: from a recipe's file to a saved adapter; interrupted runs and mistakes in recipes."""

import dataclasses
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import rein_hf
from rein_hf.commands import evaluate, train
from rein_hf.training import SegmentationTrainer
from tests.support import vision_encoders
from tests.support.miniatures import write_miniature
from tests.support.runs import adapter_weights, run_recipe


def test_a_run_leaves_an_adapter_that_loads_and_scores(recipe, tmp_path):
    trainer = run_recipe(recipe, "--eval_strategy", "steps", "--eval_steps", "4", "--learning_rate", "1e-3")
    assert trainer.state.global_step == 4
    scores = [entry for entry in trainer.state.log_history if "eval_miou" in entry]
    assert len(scores) == 1 and scores[0]["eval_miou"] == scores[0]["eval_seen_miou"] and 0 <= scores[0]["eval_miou"]
    model = rein_hf.from_pretrained(tmp_path / "out")
    assert model.config.id2label[13] == "car" and model.peft_config["default"].r == 4
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    trained = dict(trainer.model.named_parameters())
    for name, parameter in model.named_parameters():
        if ".rein_" in name or ".modules_to_save." in name:
            assert torch.equal(parameter, trained[name]), name


def test_schedule_and_optimizer_are_the_papers(recipe):
    _, args = train.parse([str(recipe), "--max_steps", "40000"])
    assert (args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2) == (1e-4, 0.05, 0.9, 0.999)
    assert (args.adam_epsilon, args.max_grad_norm, args.warmup_steps) == (1e-8, 0.0, 0)
    trainer = run_recipe(recipe, "--logging_steps", "1")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-4 * (1 - step / 4) ** 0.9 for step in range(4)])
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.05}


def test_an_interrupted_run_resumes_and_ends_with_the_same_weights(recipe, tmp_path, monkeypatch):
    run_recipe(recipe, "--output_dir", str(tmp_path / "straight"))
    step, calls = SegmentationTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SegmentationTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    trainer = run_recipe(recipe)
    assert len(calls) == 4 + 2 and trainer.state.global_step == 4  # from checkpoint-2 on
    straight, resumed = adapter_weights(tmp_path / "straight"), adapter_weights(tmp_path / "out")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


@pytest.mark.parametrize(
    ("tuning", "section", "shapes"),
    [
        ("adaptformer", "{bottleneck_size: 4}", {(4, 32), (4,), (32, 4), (32,)}),
        ("vpt", "{num_prompts: 5}", {(4, 5, 32)}),
    ],
)
def test_other_methods_train_save_and_load_like_rein(recipe, tmp_path, pixel_values, tuning, section, shapes):
    """Two steps, then all from the run's own folder: outputs, description."""
    trainer = run_recipe(recipe, "--tuning", tuning, f"--{tuning}", section, "--max_steps", "2")
    (group,) = {
        (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        if any(f".{tuning}_" in name for name in group.get("names", []))
    }
    assert group == (0.0, 0.05)  # after the last step
    trained, loaded = trainer.model.eval(), rein_hf.from_pretrained(tmp_path / "out")
    of_method = {name: p for name, p in trained.named_parameters() if f".{tuning}_" in name}
    assert {tuple(p.shape) for p in of_method.values()} == shapes
    fresh = train.build_model(train.parse([str(recipe), "--tuning", tuning, f"--{tuning}", section])[0], {0: "road"})
    zero = {name for name, p in fresh.named_parameters() if not p.any()}
    assert all(of_method[name].any() for name in zero & of_method.keys())  # Up has left zero
    with torch.no_grad():
        expected, found = (model.requires_grad_(False)(pixel_values=pixel_values) for model in (trained, loaded))
    assert torch.equal(found.masks_queries_logits, expected.masks_queries_logits)
    assert torch.equal(found.class_queries_logits, expected.class_queries_logits)
    described = rein_hf.describe(tmp_path / "out")
    assert described.method.lower() == tuning
    assert described.rein_parameters == sum(p.numel() for p in of_method.values())
    head = sum(p.numel() for name, p in trained.named_parameters() if ".modules_to_save." in name)
    assert described.head_parameters == head


def test_vpt_where_no_prompt_has_a_place_says_what_to_use(recipe, tmp_path):
    backbone = vision_encoders.write_encoder("sam2 hiera", tmp_path / "hiera")
    with pytest.raises(ValueError, match="VPT cannot tune a sam2_hiera_det_model: .* Use Rein, AdaptFormer or LoRA"):
        run_recipe(recipe, "--tuning", "vpt", "--backbone", backbone)


@pytest.mark.parametrize(("tuning", "trained"), [("frozen", False), ("full", True)])
def test_baselines_train_the_head_alike(recipe, tmp_path, vit_folder, tuning, trained):
    run_recipe(recipe, "--tuning", tuning)
    model = rein_hf.from_pretrained(tmp_path / "out")
    _, pretrained = rein_hf.backbone.load_vit(vit_folder, 64, 16, dtype=torch.float32)
    name = "encoder.layer.0.mlp.fc1.weight"
    found = model.model.pixel_level_module.encoder.vit.state_dict()[name]
    assert torch.equal(found, pretrained[name]) != trained


def test_lora_is_a_baseline_that_loads_like_rein(recipe, tmp_path):
    """It has the full learning rate, records its base model, and loads from its own folder alone."""
    trainer = run_recipe(recipe, "--tuning", "lora", "--lora", "{r: 2}")
    rates = {name: group["lr"] for group in trainer.optimizer.param_groups for name in group.get("names", [])}
    lora = [name for name in rates if ".lora_" in name]
    assert (
        len(lora) == 4 * 2 * 2 and len({rates[name] for name in rates}) == 1
    )  # four blocks, query and value, A and B
    model = rein_hf.from_pretrained(tmp_path / "out")
    assert model.peft_config["default"].r == 2
    trained = dict(trainer.model.named_parameters())
    loaded = dict(model.named_parameters())
    names = [name for name in trained if ".lora_" in name or ".modules_to_save." in name]
    assert lora and all(torch.equal(loaded[name], trained[name]) for name in names)
    assert any("queries_features.modules_to_save" in name for name in names)
    model.save_pretrained(tmp_path / "again")
    again = dict(rein_hf.from_pretrained(tmp_path / "again").named_parameters())
    assert all(torch.equal(again[name], trained[name]) for name in names)


def test_bad_data_stops_training_with_the_file_and_the_reason(recipe, tmp_path):
    label = tmp_path / "data" / "labels" / "3.png"
    Image.new("RGB", (96, 72)).save(label)
    with pytest.raises(ValueError, match=f"{label} is of mode RGB; expected one channel of 8 bits"):
        run_recipe(recipe)
    label.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{label} cannot be read as an image"):
        run_recipe(recipe)


def test_fewer_images_at_once_are_accumulated_to_the_same_batch(recipe):
    recipe_args, args = train.parse([str(recipe), "--per_device_train_batch_size", "1"])
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 2)
    assert recipe_args.total_batch_size == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--max_stepz", "3"], r"tiny.yaml: unknown key 'max_stepz', did you mean 'max_steps'\?"),
        (["--tuning", "bitfit"], "tuning is 'bitfit'; expected one of rein, lora, adaptformer, vpt, soma, "),
        (["--max_steps"], "tiny.yaml: --max_steps has no value"),
        (["--per_device_train_batch_size", "3"], "total_batch_size 2 is not a multiple of 3 images on each of 1 proc"),
        (["--rein.rank", "3"], "tiny.yaml: unknown key 'rein.rank'"),
        (["--rein.num_tokens", "9"], "num_tokens is 9, but the model has 8 object queries"),
        (["--crop", "-16"], "tiny.yaml: crop is -16; expected 1 at least"),
        (["--max_steps", "0"], "tiny.yaml: max_steps is 0; expected 1 at least"),
        (["--train", "[/nowhere]"], "nowhere.*holds no image"),
        (
            ["--eval_strategy", "steps", "--metric_for_best_model", "unseen_miou"],
            "metric_for_best_model is 'unseen_miou'; expected one of miou, seen_miou",
        ),
        (["--weights", "{daat: 1}"], r"weights names \['daat'\]; expected the sources \['data'\]"),
    ],
)
def test_mistakes_in_a_recipe_are_refused(recipe, overrides, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        run_recipe(recipe, *overrides)


def test_yaml_traps(recipe):
    """YAML reads 1e-4 as text and no as false."""
    _, args = train.parse([str(recipe), "--learning_rate", "1e-4", "--save_strategy", "no"])
    assert args.learning_rate == 1e-4 and args.save_strategy == "no"


def test_what_was_assumed_and_what_is_odd_is_said_at_the_start(recipe, tmp_path, capsys):
    run_recipe(recipe, "--max_steps", "1")
    assert capsys.readouterr().out.count(f"Note: {tmp_path / 'data'} has no classes.json") == 1
    names = ["road", "car"]
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"names": names, "ignore_id": 255}))
    for path in (tmp_path / "data" / "labels").iterdir():
        Image.new("L", (96, 72), 255 * (path.stem > "2")).save(path)
    run_recipe(recipe, "--max_steps", "1", "--output_dir", str(tmp_path / "masks"))
    said = capsys.readouterr().out
    assert "no classes.json" not in said
    assert "Note: data: the labels hold nothing but 0 (road) and 255" in said
    assert said.count("nothing but 0 (road)") == 2  # of the source `data` and of the target `seen`


def test_one_class_says_nothing(recipe, tmp_path):
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"names": ["road"], "ignore_id": 255}))
    for path in (tmp_path / "data" / "labels").iterdir():
        Image.new("L", (96, 72)).save(path)
    with pytest.warns(UserWarning, match="There is one class, 'road': every pixel is taken for it"):
        trainer = run_recipe(recipe, "--max_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1")
    assert trainer.state.log_history[0]["eval_miou"] == 100


def test_evaluation_in_another_precision_follows_in_the_same_process(recipe, tmp_path):
    run_recipe(recipe, "--bf16", "true", "--max_steps", "1")
    arguments = evaluate.EvaluationArguments([str(tmp_path / "out")], [f"seen={tmp_path / 'data'}"], str(tmp_path))
    for bf16 in (False, True):
        found = evaluate.main(dataclasses.replace(arguments, bf16=bf16, limit=1, sheet_rows=0))
        assert 0 <= found[str(tmp_path / "out")]["seen"]["mean_iou"] <= 1


def test_domains_of_one_name_are_refused(recipe, tmp_path):
    """Classes, weights and scores go by the name: those of the first would silently be the second's."""
    other = shutil.copytree(tmp_path / "data", tmp_path / "other" / "data")
    both = f"[{tmp_path / 'data'}, {other}]"
    for key in ("train", "evaluate"):
        with pytest.raises(ValueError, match=f"{key} has several domains of the name 'data': .*/data, .*other/data"):
            run_recipe(recipe, f"--{key}", both)
    domain = rein_hf.data.load_domain(str(other))
    with pytest.raises(ValueError, match="domains has several domains of the name 'data'. Expected different names"):
        SegmentationTrainer(None, None, domains=[domain, domain])


def test_sources_of_different_classes_are_refused(recipe, tmp_path):
    names = [str(index) for index in range(19)]
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"names": names, "ignore_id": 255}))
    domain = rein_hf.data.load_domain(str(tmp_path / "data"))
    cityscapes = rein_hf.data.Domain("cityscapes", domain.dataset)
    with pytest.raises(ValueError, match="The sources have different classes"):
        train.common_classes([domain, cityscapes])


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
def test_targets_that_cannot_be_evaluated_are_refused_before_training(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build_trainer", lambda *args: pytest.fail("a model was built"))
    other = shutil.copytree(tmp_path / "data", tmp_path / "other")
    (other / "classes.json").write_text(json.dumps({"names": ["road", "car"], "ignore_id": 255}))
    with pytest.raises(ValueError, match="other has the classes road, car; found a model of road, sidewalk"):
        run_recipe(recipe, "--evaluate", f"[{other}]")
    write_miniature("cityscapes", tmp_path / "cityscapes", [np.zeros((8, 8), np.uint8)], "test")
    with pytest.raises(ValueError, match="evaluate has cityscapes, whose labels are not public"):
        run_recipe(recipe, "--evaluate", f"[cityscapes:{tmp_path / 'cityscapes'}@test]")


def test_a_run_of_other_classes_is_another(recipe, tmp_path):
    """Names that were mended would not be those of the adapter that lies there."""
    run_recipe(recipe, "--evaluate", "[]", "--max_steps", "1")
    names = [f"class {index}" for index in range(19)]
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"names": names, "ignore_id": 255}))
    with pytest.raises(ValueError, match="holds a run of another recipe: classes was .*'road'.*, is .*'class 0'"):
        run_recipe(recipe, "--evaluate", "[]", "--max_steps", "1")


def test_one_worker_reads_a_stream(recipe, tmp_path, capsys):
    """On a GPU there are several by default, and of several each would see a part of the files."""
    domain = rein_hf.data.load_domain(str(tmp_path / "data"))
    columns = {"image": domain.dataset["image"], "label": domain.dataset["label"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    (tmp_path / "stream").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "stream" / "train.parquet"))
    spec = f"stream=hub:{tmp_path / 'stream'}@train#streaming=true"
    for workers, used in (("4", 1), ("0", 0)):
        output = ("--output_dir", str(tmp_path / f"out{workers}"))
        run_recipe(recipe, "--train", f"[{spec}]", "--dataloader_num_workers", workers, *output)
        assert f"(dataloader_num_workers): {used}\n" in capsys.readouterr().out
    one, none = adapter_weights(tmp_path / "out4"), adapter_weights(tmp_path / "out0")
    assert all(torch.equal(one[name], none[name]) for name in one)

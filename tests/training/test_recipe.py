"""rein_hf.training.recipe: every key has an effect, or is refused with the reason before anything is loaded."""

import copy
import dataclasses

import pytest
import torch
import yaml
from transformers import TrainingArguments, training_args

import rein_hf.data
from rein_hf.commands import train
from rein_hf.training import read_recipe, recipe_keys
from rein_hf.training import recipe as recipe_module
from rein_hf.training.recipe_keys import COMPUTED, NEEDS, REFUSED, USABLE


FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def load(*args, **kwargs):
        pytest.fail("something was loaded")

    monkeypatch.setattr(train, "load_domains", load)
    monkeypatch.setattr(train, "build_segmenter", load)


@pytest.fixture
def file(tmp_path):
    """A function that writes a recipe file of the given values."""

    def write(**values):
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"backbone": "vit", "train": ["data"], "use_cpu": True, **values}))
        return path

    return write


def refusal(path, *overrides) -> str:
    with pytest.raises(ValueError) as error:
        read_recipe(path, overrides)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_every_field_of_transformers_is_decided_once():
    decided = [*USABLE, *REFUSED, *COMPUTED]
    assert len(decided) == len(set(decided)) and set(decided) == FIELDS
    known = FIELDS | {field.name for field in dataclasses.fields(rein_hf.training.RecipeArguments)}
    assert NEEDS.keys() <= known - REFUSED.keys() - COMPUTED.keys()


# another value than the default of its type, for each refused key
OTHER_VALUES = {
    "optim": "sgd",
    "label_smoothing_factor": 0.1,
    "eval_accumulation_steps": 2,
    "per_device_eval_batch_size": 2,
    "neftune_noise_alpha": 0.1,
    "include_num_input_tokens_seen": "all",
    "length_column_name": "size",
    "hub_strategy": "every_save",
    "hub_token": "hf_x",
    "data_seed": 3,
    "train_sampling_strategy": "random",
    "optim_args": "x=1",
    "debug": "underflow_overflow",
    "optim_target_modules": "all",
    "liger_kernel_config": {"rope": True},
    "include_for_metrics": ["loss"],
    "label_names": ["labels"],
    "fsdp": "full_shard",
    "fsdp_config": "fsdp.json",
    "deepspeed": "zero2.json",
    "resume_from_checkpoint": "checkpoint-2",
    "local_rank": 0,
}


@pytest.mark.parametrize("key", sorted(REFUSED.keys() - {"parallelism_config"}))
def test_keys_that_would_have_no_effect_are_refused_with_the_reason(file, key):
    value = OTHER_VALUES.get(key, key != "greater_is_better")
    default = {**recipe_module._defaults(TrainingArguments), **recipe_module.DEFAULTS}[key]
    if value == default:
        value = not value
    message = refusal(file(**{key: value}))
    assert message.startswith(f"{key} is ") and message.endswith(f"cannot be set in a recipe: {REFUSED[key]}.")
    assert "hf_x" not in message
    assert refusal(file(), f"--{key}", yaml.safe_dump(value)) == message
    if default is not None:  # to say what holds anyway is no mistake
        read_recipe(file(**{key: default}))


@pytest.mark.parametrize("key", COMPUTED)
def test_keys_that_follow_from_others_are_refused(file, key):
    assert f"{key} is 1" in refusal(file(**{key: 1})) and COMPUTED[key] in refusal(file(**{key: 1}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": {"hidden": 8}}, r"unknown key 'head.hidden', did you mean 'head.hidden_dim'?"),
        ({"head": {"zzz": 8}}, "unknown key 'head.zzz'."),
        ({"head": {"model_type": "segformer"}}, "head.model_type is 'segformer'; expected one of mask"),
        ({"head": {"model_type": "upernet", "hidden_dim": 8}}, "unknown key 'head.hidden_dim', did you mean 'head.hi"),
        ({"head": {"num_queries": 8}}, "head.num_queries cannot be set in a recipe: use num_queries of the recipe"),
        ({"head": {"common_stride": 8}}, "head.common_stride cannot be set in a recipe: image processors know masks"),
        ({"head": {"id2label": {0: "a"}}}, "head.id2label cannot be set in a recipe: the sources name"),
        ({"head": {"num_labels": 3}}, "head.num_labels cannot be set in a recipe: the sources name"),
        ({"head": {"backbone_config": {}}}, "head.backbone_config cannot be set in a recipe: use backbone"),
        ({"head": {"model_type": "upernet", "use_auxiliary_head": True}}, "head.use_auxiliary_head cannot be set"),
        ({"head": {"hidden_dim": 8.5}}, "head: Validation error for field 'hidden_dim':"),
        ({"head": 8}, "Validation error for field 'head'"),
        ({"rein": {"rank": 8}}, "unknown key 'rein.rank'."),
        ({"rein": {"num_token": 8}}, "unknown key 'rein.num_token', did you mean 'rein.num_tokens'?"),
        ({"rein": {"inference_mode": True}}, "rein.inference_mode cannot be set in a recipe: it would freeze"),
        ({"rein": {"base_config": {}}}, "rein.base_config cannot be set in a recipe: it is recorded"),
        ({"rein": {"r": -1}}, "rein: ReinConfig.r is -1; expected a rank of at least 1"),
        ({"rein": {"num_prefix_tokens": -1}}, "rein: ReinConfig.num_prefix_tokens is -1; expected the number"),
        ({"rein": {"layers_to_transform": [3, 1]}}, "rein: ReinConfig.layers_to_transform is [3, 1]; expected one or"),
        ({"rein": {"r": "four"}}, "rein: Validation error for field 'r'"),
        ({"rein": {"num_tokens": 9}}, "rein.num_tokens is 9, but the model has 100 object queries"),
        ({"rein": {"zero_init": True, "init_scale": 0.1}}, "rein.init_scale has no effect with rein.zero_init true"),
        (
            {"rein": {"link_queries": True}, "head": {"model_type": "upernet"}},
            "rein.link_queries is true, but a head of upernet has no object queries to link.",
        ),
        ({"tuning": "lora", "lora": {"rank": 8}}, "unknown key 'lora.rank'"),
        ({"tuning": "adaptformer", "adaptformer": {"bottleneck": 8}}, "unknown key 'adaptformer.bottleneck', did you"),
        ({"tuning": "adaptformer", "adaptformer": {"scale": 0}}, "adaptformer: AdaptFormerConfig.scale is 0"),
        ({"tuning": "adaptformer", "adaptformer": {"hidden_size": 8}}, "adaptformer.hidden_size cannot be set in a"),
        ({"tuning": "vpt", "vpt": {"num_tokens": 8}}, "unknown key 'vpt.num_tokens'"),
        ({"tuning": "vpt", "vpt": {"num_prompts": 0}}, "vpt: VPTConfig.num_prompts is 0; expected at least 1"),
        ({"tuning": "vpt", "vpt": {"base_config": {}}}, "vpt.base_config cannot be set in a recipe: it is recorded"),
        ({"vpt": {"num_prompts": 8}}, "vpt has no effect: tuning is 'rein'; it needs vpt."),
        ({"tuning": "lora", "lora": {"r": 0}}, "lora.r is 0; expected a rank of at least 1."),
        ({"tuning": "lora", "lora": {"bias": "some"}}, "lora: Validation error for field 'bias'"),
        ({"tuning": "lora", "lora": {"task_type": "SEQ_CLS"}}, "lora.task_type cannot be set in a recipe"),
        (
            {"lr_scheduler_kwargs": {"powr": 1}},
            "unknown key 'lr_scheduler_kwargs.powr' of lr_scheduler_type polynomial, "
            "did you mean 'lr_scheduler_kwargs.power'?",
        ),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 1}}, "unknown key 'lr_scheduler"),
        ({"lr_scheduler_kwargs": {"lr_end": 1}}, "lr_scheduler_type polynomial with lr"),
        ({"lr_scheduler_type": "cosin"}, "cosin is not a valid SchedulerType"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type warmup_stable_decay with"),
        ({"fp16": True}, "fp16 is given, but has no effect on a CPU; use bf16."),
        ({"learning_rate": -1.0}, "Invalid learning rate: -1.0"),
        ({"adam_beta1": 1.5}, "Invalid beta parameter at index 0: 1.5"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config is {'split_batches': True}; expected a"),
        ({"backbone_dtype": "float16"}, "backbone_dtype is 'float16' with tuning 'rein'; expected"),
        ({"backbone_dtype": "bfloat16", "tuning": "full"}, "backbone_dtype is 'bfloat16' with tuning 'full'"),
        ({"weights": {"data": "much"}}, "weights are {'data': 'much'}; expected a positive number for each source."),
        ({"weights": {"data": 0}}, "weights are {'data': 0}; expected a positive number for each source."),
        ({"train": []}, "['train'] missing."),
        ({"eval_strategy": "steps"}, "eval_strategy is 'steps', but evaluate names no domain to evaluate on."),
        ({"eval_on_start": True}, "eval_on_start is True, but evaluate names no domain to evaluate on."),
        ({"save_strategy": "best"}, "save_strategy is 'best', but eval_strategy is 'no': no checkpoint"),
        (
            {"evaluate": ["data"], "max_steps": 2, "eval_strategy": "steps", "eval_delay": 3},
            "eval_delay is 3, but the run has 2 step(s): nothing would be evaluated. Expected 2 at most, or",
        ),
        (
            {"evaluate": ["data"], "eval_on_start": True, "eval_strategy": "epoch", "eval_delay": 1.5},
            "eval_delay is 1.5, but the run has 1 epoch: nothing would be evaluated. Expected 1 at most, or",
        ),
        ({"tuning": "lora", "rein": {"r": 8}}, "rein has no effect: tuning is 'lora'; it needs rein."),
        ({"lora": {"r": 8}}, "lora has no effect: tuning is 'rein'; it needs lora."),
        (
            {"evaluate": ["data"], "eval_strategy": "no", "eval_limit": 3},
            "eval_limit has no effect: eval_strategy is 'no'; it needs",
        ),
        ({"eval_steps": 3}, "eval_steps has no effect: eval_strategy is 'no'; it needs steps."),
        ({"save_strategy": "no", "save_steps": 3}, "save_steps has no effect: save_strategy is 'no'; it needs steps."),
        ({"hub_model_id": "a/b"}, "hub_model_id has no effect: push_to_hub is False; it needs true."),
        ({"report_to": "none", "run_name": "a"}, "run_name has no effect: report_to is 'none'; it needs a tracker."),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            "warmup_steps has no effect: lr_scheduler_type is 'constant'; it needs another than constant",
        ),
        (
            {"num_queries": 50, "tuning": "lora", "head": {"model_type": "upernet"}},
            "num_queries has no effect: head.model_type; it needs mask2former, or tuning rein.",
        ),
        ({"backbone_lr_factor": 0.5}, "backbone_lr_factor has no effect: tuning is 'rein'; it needs full."),
        (
            {"tuning": "frozen", "adapter_lr_factor": 2},
            "adapter_lr_factor has no effect: tuning is 'frozen'; it needs",
        ),
        (
            {"tuning": "full", "adapter_weight_decay_factor": 0},
            "adapter_weight_decay_factor has no effect: tuning is 'full'; it needs a method with an adapter.",
        ),
        (
            {"weight_decay": 0, "adapter_weight_decay_factor": 2},
            "adapter_weight_decay_factor has no effect: weight_decay is 0.",
        ),
        ({"head_lr_factor": 0}, "head_lr_factor is 0.0; expected a number above 0."),
        ({"adapter_lr_factor": -1}, "adapter_lr_factor is -1.0; expected a number above 0."),
        ({"weight_decay_end": -1e-5}, "weight_decay_end is -1e-05; expected 0 at least."),
        ({"weight_decay_end": 0.05}, "weight_decay_end has no effect: weight_decay is 0.05 already."),
        ({"ema_start": 10}, "ema_start has no effect: ema_decay is None; it needs a number."),
        ({"ema_decay": 1}, "ema_decay is 1.0; expected a number between 0 and 1, such as 0.9998."),
        ({"ema_decay": 0}, "ema_decay is 0.0; expected a number between 0 and 1"),
        ({"ema_decay": 0.9, "ema_start": -1}, "ema_start is -1.0; expected a number of steps, or a share"),
        ({"ema_decay": 0.9, "ema_start": 10.5}, "ema_start is 10.5; expected a number of steps, or a share"),
        (
            {"ema_decay": 0.9, "ema_start": 50, "max_steps": 50},
            "ema_start is 50, but the run ends after max_steps 50: there would be nothing to average.",
        ),
        ({"ema_decay": 0.9, "ema_start": 0.9, "max_steps": 4}, "ema_start is 0.9, but the run ends after max_steps 4"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; expected a finite number."),
        ({"warmup_steps": float("nan")}, "warmup_steps is nan; expected a finite number."),
        ({"rein": {"init_scale": float("inf")}}, "rein.init_scale is inf; expected a finite number."),
        ({"activation_checkpointing_kwargs": {"every_n_layers": 2}}, "activation_checkpointing_kwargs has no"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(file, values, message):
    assert refusal(file(**values)).startswith(message)
    overrides = [part for key, value in values.items() for part in (f"--{key}", yaml.safe_dump(value))]
    assert refusal(file(), *overrides).startswith(message)


def test_a_recipes_sections_outlive_another_tuning_on_the_command_line(file):
    """As in the comparison of tunings by one recipe; what the command line itself says has to have an effect."""
    path = file(rein={"r": 4}, save_steps=5)
    recipe, args = read_recipe(path, ["--tuning", "lora", "--save_strategy", "no"])
    assert recipe.tuning == "lora" and recipe.rein == {"r": 4} and args.save_strategy == "no"
    assert refusal(path, "--tuning", "lora", "--rein.r", "8") == "rein has no effect: tuning is 'lora'; it needs rein."
    assert read_recipe(file(tuning="frozen", rein={"r": 4}), ["--tuning", "rein"])[0].rein == {"r": 4}


def test_numbers_that_yaml_reads_otherwise_than_meant(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "{backbone: vit, train: [data], use_cpu: true, learning_rate: 1e-3, "
        "rein: {init_scale: 1e-2}, head: {class_weight: 2}}"
    )
    recipe, args = read_recipe(path, ["--adam_epsilon", "1e-6"])
    assert (args.learning_rate, args.adam_epsilon) == (1e-3, 1e-6)
    assert recipe.rein == {"init_scale": 1e-2} and recipe.head == {"class_weight": 2.0}


def test_a_short_run_has_settings_of_its_own_which_the_recipe_may_change(file):
    paper, _ = read_recipe(file())
    assert paper.rein is None and paper.adapter_lr_factor is None
    short, _ = read_recipe(file(short_run=True, rein={"r": 8}))
    assert short.rein == {"zero_init": True, "link_queries": False, "r": 8} and short.adapter_lr_factor == 0.2
    path = file(short_run=True, rein={"link_queries": True}, adapter_lr_factor=1.0)
    changed, _ = read_recipe(path)
    assert changed.rein == {"zero_init": True, "link_queries": True} and changed.adapter_lr_factor == 1.0
    lora, _ = read_recipe(file(short_run=True), ["--tuning", "lora"])
    assert lora.rein is None and lora.adapter_lr_factor is None
    assert "short_run has no effect: tuning is 'lora'" in refusal(file(tuning="lora"), "--short_run", "true")


def test_schedules(file):
    """What a recipe leaves out of the paper's schedule is the paper's; another one gets nothing of it."""
    defaults = copy.deepcopy(recipe_module.DEFAULTS)
    assert read_recipe(file())[1].lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0}
    args = read_recipe(file(), ["--lr_scheduler_kwargs.power", "1.0"])[1]
    assert args.lr_scheduler_kwargs == {"power": 1.0, "lr_end": 0.0}
    assert recipe_module.DEFAULTS == defaults
    assert not read_recipe(file(), ["--lr_scheduler_type", "cosine"])[1].lr_scheduler_kwargs
    # transformers' default would lower the rate whenever the mIoU rises
    plateau = file(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", evaluate=["data"])
    assert read_recipe(plateau)[1].lr_scheduler_kwargs == {"mode": "max"}
    assert "lr_scheduler_kwargs.mode is 'min'; expected 'max'" in refusal(plateau, "--lr_scheduler_kwargs.mode", "min")


def test_workers_read_the_samples_beside_a_gpu(monkeypatch):
    """As many as there are cores for; a recipe's own number counts, 0 too."""
    monkeypatch.setattr(recipe_keys, "default_workers", lambda device, processes: (device, processes))
    assert recipe_keys.data_workers({"use_cpu": True}) == {"dataloader_num_workers": ("cpu", 1)}
    assert recipe_keys.data_workers({"use_cpu": False}) == {"dataloader_num_workers": ("cuda", 1)}
    assert recipe_keys.data_workers({"dataloader_num_workers": 0, "use_cpu": False}) == {}
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert recipe_keys.data_workers({"use_cpu": False}) == {"dataloader_num_workers": ("cuda", 16)}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # of two machines
    assert recipe_keys.data_workers({"use_cpu": False}) == {"dataloader_num_workers": ("cuda", 8)}


def test_a_recipe_on_a_cpu_has_no_workers(file, monkeypatch):
    assert read_recipe(file())[1].dataloader_num_workers == 0
    assert read_recipe(file(), ["--dataloader_num_workers", "2"])[1].dataloader_num_workers == 2
    monkeypatch.setattr(recipe_module, "data_workers", lambda values: {"dataloader_num_workers": 3})
    assert read_recipe(file(), ["--dataloader_prefetch_factor", "4"])[1].dataloader_num_workers == 3


@pytest.mark.parametrize(("words", "expected"), [((), "none"), (("--tf32", "true"), "tf32")])
def test_a_compiled_run_computes_in_the_precision_of_others(recipe, monkeypatch, words, expected):
    """For a run that compiles, transformers switches TF32 on where a GPU has it."""
    before = torch.backends.fp32_precision
    seen = []
    monkeypatch.setattr(training_args, "is_torch_tf32_available", lambda: seen.append(1) or True)
    try:
        read_recipe(recipe, ["--torch_compile", "true", *words])
        assert seen and torch.backends.fp32_precision == expected
    finally:
        torch.backends.fp32_precision = before

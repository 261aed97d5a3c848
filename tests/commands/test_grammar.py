"""One grammar for all verbs: how keys are written, what `--help` lists, and mistakes that are told in one line."""

import dataclasses
import importlib
from typing import get_type_hints

import pytest
import torch
from transformers import TrainingArguments

from rein_hf.commands import cli, train, train_help
from rein_hf.commands.grammar import CommandParser
from rein_hf.training import RecipeArguments
from rein_hf.training.recipe_keys import USABLE


OTHERS = [verb for verb in cli.VERBS if verb != "train"]
# the keys that a verb cannot do without
NEEDED = {
    "evaluate": "--model A B --domains D E --output_dir O",
    "predict": "--model A --input P Q --output_dir O",
    "inspect": "--domains D E --output_dir O",
    "assess": "--assessment A --output_dir O",
    "submit": "--model A --domains D --output_dir O",
    "publish": "--model A --repo U/R --facts F --sample S",
    "export": "--model A --output_dir O",
    "convert": "--checkpoint C --output_dir O",
    "benchmark": "--output_dir O",
    "describe": "--model A",
    "demo": "--model A B",
}


def kind_of(verb: str) -> type:
    """The dataclass that a verb's `main` takes."""
    return get_type_hints(importlib.import_module(f"rein_hf.commands.{verb}").main)["args"]


def parsed(verb: str, line: str):
    return CommandParser(verb, kind_of(verb)).parse(line.split())[0]


@pytest.mark.parametrize("verb", OTHERS)
def test_hyphens_and_equals_signs_are_the_same_key(verb):
    expected = parsed(verb, NEEDED[verb])
    assert {key for key, value in vars(expected).items() if value in ("A", "O", ["A", "B"], ["D", "E"], ["P", "Q"])}
    hyphens = " ".join(word.replace("_", "-") for word in NEEDED[verb].split())
    assert parsed(verb, hyphens) == expected
    words = NEEDED[verb].split()
    single = [i for i in range(0, len(words) - 1) if words[i].startswith("--") and words[i + 2 : i + 3] != ["B"]]
    single = [i for i in single if i + 2 >= len(words) or words[i + 2].startswith("--")]
    joined = [f"{words[i].replace('_', '-')}={words[i + 1]}" for i in single]
    rest = [word for i, word in enumerate(words) if i not in single and i - 1 not in single]
    assert parsed(verb, " ".join(rest + joined)) == expected


@pytest.mark.parametrize("verb", OTHERS)
def test_a_boolean_may_stand_alone(verb):
    flags = [field.name for field in dataclasses.fields(kind_of(verb)) if field.type in (bool, "bool")]
    for flag in flags:
        assert getattr(parsed(verb, f"--{flag} {NEEDED[verb]}"), flag) is True
        assert getattr(parsed(verb, f"{NEEDED[verb]} --{flag.replace('_', '-')} true"), flag) is True
        assert getattr(parsed(verb, f"{NEEDED[verb]} --{flag}=false"), flag) is False


def test_some_verbs_have_booleans():
    assert parsed("predict", f"{NEEDED['predict']} --bf16 --resume").bf16


@pytest.mark.parametrize("verb", OTHERS)
def test_help_lists_every_key_with_its_default(verb, capsys):
    assert cli.main([verb, "--nonsense", "x", "--help"]) == 0
    text = capsys.readouterr().out
    keys = text.partition("\noptions:\n")[2]
    for field in dataclasses.fields(kind_of(verb)):
        entry = keys.partition(f"\n  --{field.name} ")[2] or keys.partition(f"\n  --{field.name}, ")[2]
        said = " ".join(entry.partition("\n  --")[0].split())
        assert "(required)" in said or "default" in said, field.name
    assert max(map(len, text.splitlines())) <= 119


@pytest.mark.parametrize("verb", cli.VERBS)
def test_mistakes_are_one_line_and_status_2(verb, recipe, capsys):
    line = [str(recipe)] if verb == "train" else NEEDED[verb].split()
    key = "--max_stepz" if verb == "train" else f"{next(word for word in line if word.startswith('--'))}l"
    assert cli.main([verb, *line, key, "3"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"rein-hf {verb}: ") and output.err.count("\n") == 1
    assert "id you mean" in output.err and key.removeprefix("--") in output.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate --modle A", "unknown key --modle. Did you mean --model?"),
        ("describe A", "'A' has no key before it. These keys are required: --model; --help explains them."),
        ("predict --model A --input P", "these keys are required: --output_dir; --help explains them."),
        ("predict --model A --input P --output_dir O --crop wide", "argument --crop: invalid int value: 'wide'"),
        ("predict --model A --input P --output_dir O --opacity 3", "--opacity is 3.0; expected 0 to 1."),
        ("predict A --model A --input P --output_dir O", "unexpected 'A'; expected --KEY VALUE"),
        ("submit --model A --domain D E --output_dir O", "unexpected 'E'"),
        ("describe --model /nowhere", "/nowhere"),
        ("evaluate --model /nowhere --domains /nowhere --output_dir O", "/nowhere"),
        ("train", "expected a recipe first"),
        ("train gtav_dinov2-large_512 --train {a:1}", "Field 'train' expected a list, got dict"),
        ("train gtav_dinov2-large_512 --train [a", "is no plain YAML"),
        ("train gtav_dinov2-large_512 --crop", "gtav_dinov2-large_512.yaml: --crop has no value."),
        ("publish --repo U/R --facts F --sample S", "these keys are required: --model; --help explains them."),
        ("train gtav_dinov2-huge_512", "Did you mean the shipped gtav_dinov2-large_512?"),
        ("train recipes/gtav_dinov2-large_512.yaml", "Did you mean the shipped gtav_dinov2-large_512?"),
        ("assess --assessment streetz --output_dir O", "Did you mean the shipped streets?"),
        ("predit", "there is no verb 'predit'"),
    ],
)
def test_what_is_wrong_is_said(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(train, "main", lambda *args: {}["bug"])
    monkeypatch.setattr(train, "parse", lambda argv: ())
    with pytest.raises(KeyError, match="bug"):
        cli.main(["train", "any"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(train, "main", fail)
    monkeypatch.setattr(train, "parse", lambda argv: ())
    assert cli.main(["train", "any"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("rein-hf train: there is not enough memory.") and printed.count("\n") == 1


def test_former_names_of_keys():
    assert parsed("evaluate", "--models A B --domains D --output_dir O").model == ["A", "B"]
    assert parsed("submit", "--model A --domain D --output_dir O").domains == "D"
    assert parsed("export", "--model A --output x.onnx").output_dir == "x.onnx"


def test_the_keys_of_recipes(recipe):
    words = "--max-steps=3 --lr 2e-4 --batch-size=2 --bf16 --out_indices 1 2 3 4 --rein.num-tokens 8 --rein.zero_init"
    found, args = train.parse([str(recipe), *words.split()])
    assert (args.max_steps, args.learning_rate, found.total_batch_size, args.bf16) == (3, 2e-4, 2, True)
    assert found.out_indices == [1, 2, 3, 4] and found.rein == {"r": 4, "num_tokens": 8, "zero_init": True}
    assert train.parse([str(recipe), "--steps", "7"])[1].max_steps == 7


def test_lists_of_a_recipe_are_words(recipe):
    for words, expected in (("a b", ["a", "b"]), ("a", ["a"]), ("[a]", ["a"]), ("x=gta5:DATA@a", ["x=gta5:DATA@a"])):
        assert train.parse([str(recipe), "--train", *words.split()])[0].train == expected
    with pytest.raises(ValueError, match="--crop has the values 64 65; expected one"):
        train.parse([str(recipe), "--crop", "64", "65"])
    with pytest.raises(ValueError, match="unexpected '64' before the first --KEY"):
        train.parse([str(recipe), "64"])


def test_a_backbone_of_the_clone_is_missed_in_other_folders(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "streets_demo-vit_256", "--use-cpu"]) == 2
    assert "backbone is recipes/demo/vit: no such folder here" in capsys.readouterr().err


def test_epochs_are_answered_in_steps(recipe):
    with pytest.raises(ValueError, match="For 2.5 epochs of 6 images give --max_steps 8[.]$"):
        train.parse([str(recipe), "--epochs", "2.5"])
    with pytest.raises(ValueError, match="For 4 epochs of 6 images give --max_steps 8[.]$"):
        train.parse([str(recipe), "--num-train-epochs=4", "--batch-size", "3"])
    with pytest.raises(ValueError, match="epochs x images / total_batch_size .2 here.. There is no --epochs"):
        train.parse([str(recipe), "--epochs", "4", "--train", "/nowhere"])


def test_the_keys_of_a_recipe_are_listed_with_its_values(recipe, capsys):
    assert cli.main(["train", "--help"]) == 0
    general = capsys.readouterr().out
    assert cli.main(["train", str(recipe), "--help"]) == 0
    of_recipe = capsys.readouterr().out
    keys = [*USABLE, *RecipeArguments.__dataclass_fields__]
    for text in (general, of_recipe):
        assert [key for key in keys if f"  --{key} " not in text] == []
        assert not [key for key in TrainingArguments.__dataclass_fields__ if key not in keys and f"  --{key} " in text]
        assert "--no_" not in text
    assert "(required)" in general and "(required)" not in of_recipe
    assert "--crop N                  Side of the training crops in pixels. (default: 512)" in general
    assert "--crop N                  Side of the training crops in pixels. (default: 64)" in of_recipe
    for text, rank in ((general, 16), (of_recipe, 4)):
        assert f"(default: {rank})" in text.partition("  --rein.r ")[2].splitlines()[0]
    headings = [line.rstrip(":") for line in general.splitlines() if line.rstrip(":") in train_help.GROUPS]
    assert headings == list(train_help.GROUPS)


def test_recipes_are_listed_and_found_by_name(capsys):
    assert cli.main(["train", "--list"]) == 0
    text = capsys.readouterr().out
    assert "\n  gtav_dinov2-large_512\n      GTAV -> Cityscapes" in text and "fsdp2.yaml" in text
    found, args = train.parse(["gtav_dinov2-large_512", "--use_cpu"])
    assert found.train == ["gta5:data/GTA5"] and args.output_dir == "outputs/gtav_dinov2-large_512"


def test_the_verbs_are_listed(capsys):
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out.startswith("rein-hf 0.")


def test_a_run_from_the_command_line(recipe, tmp_path):
    assert cli.main(["train", str(recipe), "--max-steps", "1", f"--output-dir={tmp_path}/run", "--use-cpu"]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()

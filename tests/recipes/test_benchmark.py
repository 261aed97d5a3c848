"""recipes/benchmark.py: every variant runs, and the files hold what was measured."""

import json
from functools import partial

import pytest
import torch
from PIL import Image
from transformers import HfArgumentParser, Mask2FormerConfig

from rein_hf.commands import benchmark, benchmark_plan, benchmark_variants
from rein_hf.commands import benchmark_costs as costs
from rein_hf.commands.benchmark_variants import SIZES, VARIANTS, Setting, build_model
from rein_hf.head import ReinCriterion
from rein_hf.head.mask2former import FAST_MODULES
from rein_hf.views.plots import plot_benchmark
from tests.support.operator_count import path_of_cuda
from tests.support.recorded_operators import recording_on
from tests.support.runs import HEAD


TINY = Setting("small", 64, 1, "float32", "eager", "cpu")


@pytest.fixture(autouse=True)
def small_is_tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "small", (32, 4, 2))
    monkeypatch.setattr(benchmark_variants, "Mask2FormerConfig", partial(Mask2FormerConfig, **HEAD))


def run(out, *argv: str) -> dict:
    arguments = ["--output_dir", str(out), "--repeats", "5", *([] if "--plan" in argv else ["--crops", "64"]), *argv]
    return benchmark.main(*HfArgumentParser(benchmark.BenchmarkArguments).parse_args_into_dataclasses(arguments))


@pytest.fixture
def no_process(monkeypatch):
    """A fixed peak: the process that measures it would not have the tiny backbone."""
    monkeypatch.setattr(benchmark, "peak_memory", lambda make: 7_000_000)


@pytest.mark.slow
def test_every_variant(tmp_path, no_process, capsys):
    found = run(tmp_path, "--dtypes", "bfloat16")
    assert json.loads((tmp_path / "benchmark.json").read_text()) == found
    assert {kind: list(next(iter(by_setting.values()))["variants"]) for kind, by_setting in found.items()} == {
        kind: list(variants) for kind, variants in VARIANTS.items()
    }
    for kind, by_setting in found.items():
        (setting,) = by_setting
        dtype = "float32" if kind == "adapters" else "bfloat16"
        assert setting == f"ViT-small, 64x64, batch 1, {dtype}, eager, cpu"
        assert by_setting[setting]["run"]["versions"]["torch"] == torch.__version__
        for variant in by_setting[setting]["variants"].values():
            assert len(variant["wall"]) == len(variant["cpu"]) == 5 and min(variant["wall"]) > 0
            assert variant["over"] is None or variant["over"] in by_setting[setting]["variants"]
            assert variant["peak"] == (None if kind == "adapters" else 7_000_000)
    tunings = next(iter(found["adapters"].values()))["tunings"]
    assert tunings["frozen"]["in the backbone"] == 0 < tunings["lora"]["in the backbone"]
    full, rein = (build_model(TINY, tuning) for tuning in ("full", "rein"))
    assert tunings["full"]["in the backbone"] == sum(
        parameter.numel() for parameter in full.model.pixel_level_module.encoder.parameters()
    )
    trained = sum(parameter.numel() for parameter in rein.parameters() if parameter.requires_grad)
    assert tunings["rein"]["trained"] == trained
    assert 4 * trained < tunings["rein"]["saved"] < 4 * trained + 200_000  # and the names of its tensors
    text = (tmp_path / "benchmark.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert all(f"| {name} | " in text for variants in VARIANTS.values() for name in variants)
    assert f"| rein | {trained:,} |" in text
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.format == "PNG" and picture.height > 500


@pytest.mark.slow
def test_a_later_call_adds_to_the_folder(tmp_path, no_process):
    names = ("--kinds", "inference", "--variants", "backbone + Rein", "backbone")
    run(tmp_path, *names)
    found = run(tmp_path, *names, "--batches", "2", "--crops", "32", "64")
    assert [(setting, entry["batch"]) for setting, entry in found["inference"].items()] == [
        ("ViT-small, 64x64, batch 1, float32, eager, cpu", 1),
        ("ViT-small, 32x32, batch 2, float32, eager, cpu", 2),
        ("ViT-small, 64x64, batch 2, float32, eager, cpu", 2),
    ]
    assert all(list(entry["variants"]) == ["backbone", "backbone + Rein"] for entry in found["inference"].values())


def test_stock_is_transformers_own():
    """The variants with the stock head and loss have none of this library's modules."""
    ours, stock = (build_model(TINY, "rein", stock=stock) for stock in (False, True))
    replaced = {ReinCriterion, *FAST_MODULES.values()}
    assert replaced & {type(module) for module in ours.modules()} == replaced
    assert not replaced & {type(module) for module in stock.modules()}
    assert [name for name, _ in stock.named_parameters()] == [name for name, _ in ours.named_parameters()]


def test_the_step_trains_and_inference_does_not(monkeypatch):
    for kind, name, moves in (("training", "Rein", True), ("inference", "Rein and head", False)):
        model = build_model(TINY, "rein")
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        VARIANTS[kind][name].make(TINY, lambda tuning, model=model: model)()
        moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert any("rein_tokens_a" in name for name in moved) == moves
        assert not any(".vit." in name and ".rein_" not in name for name in moved)


def test_ratios_are_of_each_turn():
    """A variant that takes twice the other's time in every turn has the ratio 2, however long the turns were."""
    other = [1.0, 9.0, 2.0, 30.0, 4.0]
    found = {
        "batch": 4,
        "variants": {
            "backbone": {"over": None, "wall": other, "cpu": [1.0] * 5, "peak": None},
            "backbone + Rein": {
                "over": "backbone",
                "wall": [2 * value for value in other],
                "cpu": [1.0, 1.1, 1.2, 1.3, 1.4],
                "peak": 2_400_000,
                "weights": 5_000_000,
                "launches": 726,
                "work": 0.0047,
            },
        },
    }
    ratios = "backbone | 2.00 (2.00 - 2.00) | 1.20 (1.10 - 1.30)"
    row = benchmark.report_row("backbone + Rein", "inference", found)
    assert row == f"| backbone + Rein | 8000.0 (4000.0 - 18000.0) | 0.5 | {ratios} | 2 | 7 | 726 | 4.7 |"
    assert (
        benchmark.report_row("backbone", "inference", found)
        == "| backbone | 4000.0 (2000.0 - 9000.0) | 1 |  |  |  |  |  |  |  |"
    )
    del found["variants"]["backbone"]
    assert benchmark.report_row("backbone + Rein", "inference", found).endswith("| 0.5 |  |  |  | 2 | 7 | 726 | 4.7 |")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sizes", "huge"], r"sizes is \['huge'\]; expected some of \['small', 'base', 'large'\]"),
        (["--dtypes", "float16"], r"dtypes is \['float16'\]"),
        (["--variants", "LoRA", "--kinds", "inference"], r"variants is \['LoRA'\]; expected, of each kind, some of"),
        (["--variants", "backbone", "Lora", "--kinds", "inference"], r"variants is \['backbone', 'Lora'\]"),
        (["--device", "tpu"], "device is 'tpu'; expected cpu"),
        (["--crops", "64", "0"], "--crops is 64 0; expected 1 at least"),
        (["--batches", "0"], "--batches is 0; expected 1 at least"),
        (["--threads", "0"], "--threads is 0; expected 1 at least"),
        (["--repeats", "4"], "repeats is 4; expected at least 5"),
        (["--plan", "tpu"], "plan is 'tpu'; expected gpu, gpu-compile, or none"),
        (["--plan", "gpu", "--batches", "4"], "--batches has no effect with --plan gpu"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *argv)
    assert not (tmp_path / "benchmark.json").exists()


def allocating(megabytes: int):
    """A call that needs less memory than its preparation."""
    torch.ones(2 * megabytes * 2**20, dtype=torch.uint8)
    return lambda: torch.ones(megabytes * 2**20, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "mode"), [("gpu", "graph"), ("gpu-compile", "compile")])
def test_the_plan_of_a_gpu_names_variants_that_there_are(name, mode):
    arguments = benchmark.BenchmarkArguments("out", plan=name, sizes=["small", "large"])
    plan = benchmark_plan.plan_of(arguments)
    assert len(plan) == 2 * len(benchmark_plan.PLANS[name])
    for kind, setting, names in plan:
        assert names and set(names) <= set(VARIANTS[kind]) and setting.size in SIZES
    expected = {"Rein", "EoMT of transformers"} | ({"LoRA", "full"} if name == "gpu" else set())
    assert expected <= {name for *_, names in plan for name in names}
    wanted = Setting("large", 512, 1, "bfloat16", mode, "cpu")
    assert any(kind == "inference" and setting == wanted and "Rein and head" in names for kind, setting, names in plan)


def test_graphs_and_plans_need_a_gpu(tmp_path):
    with pytest.raises(ValueError, match=r"modes is \['graph'\] and device 'cpu'; expected --device cuda"):
        run(tmp_path, "--modes", "graph")
    with pytest.raises(ValueError, match=r"plan is 'gpu-compile' and device 'cpu'; expected --device cuda"):
        run(tmp_path, "--plan", "gpu-compile")


GRAPHED = {
    (part.kind, name): part for part in benchmark_plan.PLANS["gpu"] if part.mode == "graph" for name in part.variants
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), GRAPHED)
def test_what_the_plan_has_as_a_graph_can_be_recorded(monkeypatch, kind, name):
    """And predicts the same."""
    setting, found = TINY._replace(dtype="bfloat16"), []
    _, calls = recording_on("cpu", monkeypatch)
    for mode in ("eager", "graph"):
        setting = setting._replace(mode=mode)
        torch.manual_seed(0)
        with path_of_cuda():
            call = VARIANTS[kind][name].make(setting, partial(build_model, setting))
            torch.manual_seed(0)
            found.append([call() for _ in range(4)][-1])
        assert len(calls) == (0 if mode == "eager" else 2 if kind == "training" else 1)
    for one, other in zip(*found, strict=True) if kind == "inference" else ():
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_compiled_variant_is_the_compiled_model(monkeypatch):
    compiled = []
    monkeypatch.setattr(benchmark_variants, "compile_segmenter", compiled.append)
    setting = TINY._replace(mode="compile")
    VARIANTS["inference"]["Rein and head"].make(setting, partial(build_model, setting))
    assert len(compiled) == 1 and not compiled[0].training


def failing():
    raise SystemExit(3)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_calls_alone():
    found = [costs.peak_memory(partial(allocating, megabytes)) / 2**20 for megabytes in (100, 300)]
    assert found[0] == pytest.approx(100, abs=20) and found[1] == pytest.approx(300, abs=20)
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        costs.peak_memory(failing)


def test_seconds_and_quartiles():
    assert costs.seconds(lambda: sum(range(300_000)))["cpu"] > 1e-3
    assert costs.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert costs.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_plot_has_a_bar_for_each(tmp_path):
    path = tmp_path / "plot.png"
    plot_benchmark({"one": {"a": (1.0, 2.0, 3.0), "b": (2.0, 2.5, 4.0)}, "other": {"a": (10.0, 11.0, 12.0)}}, path)
    with Image.open(path) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours and (44, 160, 44) not in colours

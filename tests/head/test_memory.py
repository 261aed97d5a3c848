"""What a training step keeps in memory, and that it computes the same with less."""

import pytest
import torch

import rein_hf
from tests.measure import memory_table
from tests.support.runs import adapter_weights, equal_adapters, run_recipe


ARGS = memory_table.MemoryArguments(vit="tiny", crop=64, batch=2)


def gradients(model, autocast=False):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "zero_grad", lambda: None)
        loss = memory_table.step(model, ARGS, autocast)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss, found


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_repeats_the_same_numbers(vit_folder, autocast):
    plain, checkpointed = (
        memory_table.build_training_model(vit_folder, ARGS, kind, "float32") for kind in (False, True)
    )
    expected_loss, expected = gradients(plain, autocast)
    loss, found = gradients(checkpointed, autocast)
    assert torch.equal(loss, expected_loss) and found.keys() == expected.keys()
    assert any(".rein_tokens_a" in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpointing_keeps_two_maps_per_block(vit_folder):
    """A block's input and its output, which Rein refines: 4 blocks of 17 tokens of width 32, batch 2; then the maps
    that are made of them, and the factors of all blocks: 100 tokens of rank 16."""
    plain, checkpointed = (
        memory_table.build_training_model(vit_folder, ARGS, kind, "float32") for kind in (False, True)
    )
    before, after = (
        memory_table.saved_for_backward(model, ARGS, False)["in the backbone"] for model in (plain, checkpointed)
    )
    block = 2 * 17 * 32 * 4
    factors = 4 * (4 * (16 * 100 + 100 * 17 + 17 * 32) + 32 * 32 + 32)
    assert after - factors < (before - factors) / 3 and after - factors <= 2 * 4 * block + 4 * block, (before, after)


def test_rein_is_covered_beside_the_blocks(vit_folder):
    """transformers' checkpointing ends with a block's forward; Rein, a hook, would keep its activations."""
    covered, bare = (memory_table.build_training_model(vit_folder, ARGS, True, "float32") for _ in range(2))
    for block in memory_table.backbone_of(bare).vit.encoder.layer:
        checkpoint = block._gradient_checkpointing_func
        block._gradient_checkpointing_func = lambda function, *args, checkpoint=checkpoint: (
            function(*args) if "_refined" in str(function.func) else checkpoint(function, *args)
        )
    kept = [memory_table.saved_for_backward(model, ARGS, False)["in the backbone"] for model in (covered, bare)]
    assert kept[1] > 1.3 * kept[0]


def test_a_recipe_with_checkpointing_ends_with_the_same_weights(recipe, tmp_path):
    run_recipe(recipe, "--output_dir", str(tmp_path / "plain"))
    trainer = run_recipe(recipe, "--activation_checkpointing", "true")
    assert all(block.gradient_checkpointing for block in memory_table.backbone_of(trainer.model).vit.encoder.layer)
    assert equal_adapters(tmp_path / "plain", tmp_path / "out")


def test_a_frozen_backbone_in_bfloat16(recipe, tmp_path):
    """Rein, the head and all that is saved stay in float32; the loss is near that of float32."""
    plain = run_recipe(recipe, "--output_dir", str(tmp_path / "plain"), "--logging_steps", "1")
    expected = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    trainer = run_recipe(recipe, "--backbone_dtype", "bfloat16", "--logging_steps", "1")
    for name, parameter in trainer.model.named_parameters():
        of_backbone = ".encoder.vit." in name and ".rein_" not in name
        assert parameter.dtype == (torch.bfloat16 if of_backbone else torch.float32), name
    assert {tensor.dtype for tensor in adapter_weights(tmp_path / "out").values()} == {torch.float32}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected, rel=0.02) and losses != expected
    rein_hf.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("tuning, dtype", [("full", "bfloat16"), ("rein", "float16")])
def test_a_backbone_that_trains_stays_in_float32(recipe, tuning, dtype):
    with pytest.raises(ValueError, match=f"backbone_dtype is '{dtype}' with tuning '{tuning}'; expected float32, or"):
        run_recipe(recipe, "--tuning", tuning, "--backbone_dtype", dtype)


def test_dropout_is_nowhere_in_the_backbone(vit_folder):
    """So training mode, which checkpointing asks for, changes nothing in it."""
    model = memory_table.build_training_model(vit_folder, ARGS, False, "float32")
    pixels = torch.randn(1, 3, 64, 64)
    backbone = memory_table.backbone_of(model)
    with torch.no_grad():
        maps = [backbone.train(mode)(pixels).feature_maps for mode in (True, False)]
    assert all(torch.equal(one, other) for one, other in zip(*maps, strict=True))

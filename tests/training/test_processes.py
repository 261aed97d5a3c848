"""The same run in one process, in two, in micro-batches and sharded. `tests.support.processes` is the program of the
two processes.

All masks have the same random points here, since the order of drawing would decide which mask gets which. Tolerances
are relative to the largest value, in float32: 1e-6 for losses, 3e-4 for gradients. Adam's epsilon is 1e-3: with 1e-8
its first steps are the signs of the gradients, also of gradients that are nothing but rounding errors.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import rein_hf
from tests.support.processes import confusion, trained
from tests.support.runs import adapter_weights, equal_adapters, write_recipe


EPSILON = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def recipe(folder, vit_folder):
    """One image has no labelled pixel and one a single class, so that batches have different numbers of masks."""
    path = write_recipe(folder, vit_folder, adam_epsilon=EPSILON, learning_rate=1e-2)
    for index, value in ((1, 255), (4, 10)):
        Image.fromarray(np.full((72, 96), value, np.uint8)).save(folder / "data" / "labels" / f"{index}.png")
    return path


@pytest.fixture(scope="module")
def whole(recipe, folder):
    """The run of one process with four images at once."""
    return trained(recipe, folder / "whole")


def two_processes(kind, recipe, folder):
    """Runs two processes, and returns the folder with their files."""
    # the address, for machines that cannot resolve their own name: the two would wait for each other
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    command += ["--nproc_per_node", "2", "-m", "tests.support.processes", kind, str(recipe), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with open(folder / f"{kind}.log", "w+") as log:
        launcher = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            ended = launcher.wait(timeout=300)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # not killed: it ends the two processes first
            launcher.wait()
            ended = "no end within 300 s"
        if ended:  # said here, since output of a fixture is folded away: without progress bars
            log.seek(0)
            said = [line for line in re.split(r"[\r\n]+", log.read()) if "it/s]" not in line]
            pytest.fail(f"{kind}: {ended}\n" + "\n".join(said[-120:]), pytrace=False)
    return folder


@pytest.fixture(scope="module")
def ddp(recipe, folder):
    return two_processes("ddp", recipe, folder)


@pytest.fixture(scope="module")
def fsdp2(recipe, folder):
    return two_processes("fsdp2", recipe, folder)


def assert_same_run(folder, other):
    """Compares losses and gradients of five steps and the final weights with those of one process."""
    seen, expected = load_file(other / "seen.safetensors"), load_file(folder / "whole" / "seen.safetensors")
    assert seen.keys() == expected.keys() and len(expected["losses"]) == 5
    torch.testing.assert_close(seen["losses"], expected["losses"], rtol=1e-6, atol=0)
    for name in expected.keys() - {"losses"}:
        largest = max(expected[other].abs().max() for other in expected if other.startswith(name[:2]))
        # rounding may move a pixel across the threshold of an attention mask: 1.3e-4 was seen
        assert (seen[name] - expected[name]).abs().max() <= 3e-4 * largest, name
    found, expected = adapter_weights(other), adapter_weights(folder / "whole")
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-4 * max(1, expected[name].abs().max()), name


def test_micro_batches_are_the_whole_batch(recipe, folder, whole):
    trained(recipe, folder / "accumulated", "--per_device_train_batch_size", "1")
    assert_same_run(folder, folder / "accumulated")


def test_two_processes_are_one(ddp, folder, whole):
    assert_same_run(folder, folder / "ddp")


def test_two_processes_count_what_one_does(ddp, folder, whole):
    expected = confusion(whole)
    trainer_of_two = load_file(folder / "found-0.safetensors")["confusion"]
    assert torch.equal(trainer_of_two, load_file(folder / "found-1.safetensors")["confusion"])
    assert trainer_of_two.sum() == expected.sum() > 0
    # the same weights, bit for bit, in one process
    model = rein_hf.from_pretrained(folder / "ddp")
    whole.model.load_state_dict(model.state_dict())
    assert torch.equal(confusion(whole), trainer_of_two)


def test_shards_are_one_model(fsdp2, ddp, folder, whole):
    """FSDP2: what it saves is not sharded and loads without it."""
    assert_same_run(folder, folder / "fsdp2")
    assert {name: t.shape for name, t in adapter_weights(folder / "fsdp2").items()} == {
        name: t.shape for name, t in adapter_weights(folder / "ddp").items()
    }
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sharded, plain = (rein_hf.from_pretrained(folder / kind)(pixels) for kind in ("fsdp2", "ddp"))
    torch.testing.assert_close(sharded.masks_queries_logits, plain.masks_queries_logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_go_on_to_the_same_weights(request, folder, kind):
    """With a moving average, and whether they evaluate it in between or not."""
    request.getfixturevalue(kind)
    assert equal_adapters(folder / f"{kind}-interrupted", folder / f"{kind}-interrupted-straight")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_average_what_they_train(request, folder, kind):
    request.getfixturevalue(kind)
    found = adapter_weights(folder / f"{kind}-interrupted-straight")
    seen = load_file(folder / f"{kind}-interrupted-straight" / "seen.safetensors")
    names = {name: re.sub(r"\.default$|\.default(?=\.)|\.modules_to_save", "", name[2:]) for name in seen}
    assert set(names.values()) == set(found)
    for name in (name for name in seen if name.startswith("1.")):
        average = seen[name].double()  # --ema_start 1
        for step in range(2, 6):
            average = 0.75 * average + 0.25 * seen[f"{step}{name[1:]}"]
        torch.testing.assert_close(found[names[name]].double(), average, rtol=1e-5, atol=1e-7)
        assert not torch.equal(found[names[name]], seen[f"5{name[1:]}"])


def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one(ddp, folder):
    said = [(folder / f"said-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "The loss of step 3 is nan for data/" in said[0] and "(batch-1-0.safe" in said[0]
    saved = folder / "poisoned" / "non-finite-loss-3"
    assert rein_hf.training.checkpoints.verify(saved) is None and (saved / "batch-1-0.safetensors").is_file()
    assert not (saved / "batch-0-0.safetensors").exists() and equal_adapters(
        saved, folder / "poisoned" / "checkpoint-2"
    )

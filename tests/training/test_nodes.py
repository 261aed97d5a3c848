"""A run of two machines: two launchers of one process each, which meet at an address as those of two machines do."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rein_hf.training import explain_lost_connection
from tests.support.runs import adapter_weights, write_recipe


CONFIG = "recipes/accelerate/nodes.yaml"
STEPS = "--max_steps 24 --total_batch_size 4 --save_steps 2 --use_cpu true".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def recipe(folder, vit_folder):
    return write_recipe(folder, vit_folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(rank: int, port: int, program: list[str], log: Path) -> subprocess.Popen:
    config = log.with_suffix(".yaml")
    config.write_text(Path(CONFIG).read_text() + "use_cpu: true\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "GLOO_SOCKET_IFNAME": "lo"}
    with open(log, "w") as file:
        return subprocess.Popen([*command, *program], env=environment, stdout=file, stderr=file)


def ended(launchers: list[subprocess.Popen], logs: list[Path], seconds: int = 240) -> list[int]:
    """The exit status of each launcher; kills all if one does not end."""
    try:
        return [launcher.wait(timeout=seconds) for launcher in launchers]
    except subprocess.TimeoutExpired:
        pytest.fail("no end\n" + "\n".join(log.read_text()[-2000:] for log in logs), pytrace=False)
    finally:
        for launcher in launchers:
            kill(launcher)


def kill(launcher: subprocess.Popen) -> None:
    """Ends a launcher and its process at once, as a power cut does."""
    if launcher.poll() is None:
        for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        launcher.wait()


def run(program: list[str], folder: Path, name: str) -> list[Path]:
    """Runs a program on both machines to its end."""
    port, logs = free_port(), [folder / f"{name}-{rank}.log" for rank in (0, 1)]
    status = ended([launch(rank, port, program, log) for rank, log in enumerate(logs)], logs)
    assert status == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    return logs


def train(recipe: Path, out: Path) -> list[str]:
    return ["-m", "rein_hf.commands.train", str(recipe), *STEPS, "--output_dir", str(out)]


@pytest.fixture(scope="module")
def straight(recipe, folder):
    """The weights of a run of two machines that nothing interrupts."""
    run(train(recipe, folder / "straight"), folder, "straight")
    return adapter_weights(folder / "straight")


def assert_equal_weights(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() and len(found) > 50
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_a_lost_machine_ends_the_run_which_goes_on_to_the_same_weights(recipe, folder, straight):
    out, port = folder / "lost", free_port()
    logs = [folder / f"lost-{rank}.log" for rank in (0, 1)]
    launchers = [launch(rank, port, train(recipe, out), log) for rank, log in enumerate(logs)]
    deadline = time.monotonic() + 240
    while not (out / "checkpoint-4").exists() and time.monotonic() < deadline:
        assert all(launcher.poll() is None for launcher in launchers), logs[0].read_text()[-2000:]
        time.sleep(0.02)
    kill(launchers[1])
    assert ended(launchers[:1], logs)[0] != 0
    said = re.sub(r"\s+", " ", logs[0].read_text())
    assert "rein-hf train: Process 0 of 2 has lost the connection to another one" in said
    assert not (out / "adapter_model.safetensors").exists()
    run(train(recipe, out), folder, "again")
    assert_equal_weights(adapter_weights(out), straight)


@pytest.mark.slow
def test_two_machines_are_two_processes(recipe, folder, straight):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1"]
    command += ["--nproc_per_node", "2", *train(recipe, folder / "one")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=240)
    assert_equal_weights(adapter_weights(folder / "one"), straight)


def test_only_lost_connections_are_explained():
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711\nmore")
    with pytest.raises(ConnectionError, match=r"Process 1 of 2 .*closed by peer \[127.0.0.1\]:4711\). .*same command"):
        with explain_lost_connection(1, 2):
            raise gloo
    with pytest.raises(ConnectionError, match="NCCL watchdog"), explain_lost_connection(0, 4):
        raise torch.distributed.DistBackendError("NCCL watchdog")
    for error, processes in ((gloo, 1), (RuntimeError("shapes do not fit"), 2)):
        with pytest.raises(RuntimeError) as found, explain_lost_connection(0, processes):
            raise error
        assert found.value is error

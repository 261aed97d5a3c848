"""Checkpoints are complete or absent."""

import errno
import json
import resource
import shutil
import signal

import pytest
import torch

from rein_hf.training import checkpoints


@pytest.fixture
def output_dir(tmp_path):
    """A run with the checkpoints 2, 9 and 10."""
    for step in (10, 2, 9):
        partial = checkpoints.partial_folder(tmp_path / f"checkpoint-{step}")
        (partial / "sub").mkdir(parents=True)
        (partial / "weights.bin").write_bytes(bytes(range(200)) * 9)
        (partial / "sub" / "state.json").write_text(json.dumps({"step": step}))
        checkpoints.publish(partial, tmp_path / f"checkpoint-{step}")
    return tmp_path


def names(folder):
    return [path.name for path in checkpoints.list_checkpoints(folder)]


def test_checkpoints_are_in_the_order_of_their_steps(output_dir):
    (output_dir / "checkpoint-3-old").mkdir()
    assert names(output_dir) == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert checkpoints.latest_valid(output_dir) == output_dir / "checkpoint-10"
    assert checkpoints.latest_valid(output_dir / "nowhere") is None


def truncate(folder):
    with open(folder / "weights.bin", "r+b") as file:
        file.truncate(100)


def flip_a_bit(folder):
    data = bytearray((folder / "weights.bin").read_bytes())
    data[700] ^= 1
    (folder / "weights.bin").write_bytes(data)


DAMAGES = {
    "truncated": (truncate, r"weights.bin has 100 bytes; expected 1800"),
    "other bytes": (flip_a_bit, r"weights.bin is not as it was written"),
    "missing": (lambda folder: (folder / "sub" / "state.json").unlink(), r"state.json is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest.json is missing"),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"files": {"we'), r"is no list of files \(JSOND"),
    "another manifest": (lambda f: (f / "manifest.json").write_text('{"files": [1]}'), r"is no list of files \(Attr"),
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), r"is no list of files \(Unicode"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_one_is_skipped_with_the_file_and_the_reason(output_dir, kind):
    harm, reason = DAMAGES[kind]
    harm(output_dir / "checkpoint-10")
    with pytest.warns(UserWarning, match=f"checkpoint-10 is damaged: .*{reason}.* Going on from checkpoint-9"):
        assert checkpoints.latest_valid(output_dir) == output_dir / "checkpoint-9"
    assert names(output_dir) == ["checkpoint-2", "checkpoint-9"] and (output_dir / "damaged-checkpoint-10").is_dir()


def test_if_all_are_damaged_nothing_is_touched(output_dir):
    for folder in checkpoints.list_checkpoints(output_dir):
        truncate(folder)
    with pytest.raises(
        ValueError, match="All checkpoints in .* are damaged: .*-10/weights.bin .*-2/weights.bin has 100"
    ):
        checkpoints.latest_valid(output_dir)
    assert len(names(output_dir)) == 3


def test_the_newest_are_kept_and_the_best(output_dir):
    checkpoints.delete_old(output_dir, None, None)
    assert len(names(output_dir)) == 3
    checkpoints.delete_old(output_dir, 1, output_dir / "checkpoint-2")
    assert names(output_dir) == ["checkpoint-2", "checkpoint-10"]
    checkpoints.delete_old(output_dir, 1, output_dir / "checkpoint-10")
    assert names(output_dir) == ["checkpoint-10"]


def test_a_deletion_that_is_interrupted_leaves_no_half_checkpoint(output_dir, monkeypatch):
    def killed(folder, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.delete_old(output_dir, 2, None)
    monkeypatch.undo()
    assert names(output_dir) == ["checkpoint-9", "checkpoint-10"]
    checkpoints.discard_partial(output_dir)
    assert sorted(path.name for path in output_dir.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_a_full_disk(output_dir):
    partial = checkpoints.partial_folder(output_dir / "checkpoint-11")
    with pytest.raises(OSError, match=r"checkpoint-11 could not be written .*No space left.*GB are free") as e:
        with checkpoints.explain_disk_errors(output_dir, "checkpoint-11"):
            partial.mkdir(parents=True)
            (partial / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device", "half")
    assert "checkpoints before it: checkpoint-2, checkpoint-9, checkpoint-10" in str(e.value)
    assert not partial.parent.exists() and checkpoints.latest_valid(output_dir) == output_dir / "checkpoint-10"


@pytest.mark.parametrize("limit", [0, 300, 5000])
def test_writes_that_fail_in_torch(output_dir, limit):
    """The system itself refuses to write more, at several points of torch.save; torch raises a RuntimeError."""
    folder = output_dir / "checkpoint-11"
    partial = checkpoints.partial_folder(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="checkpoint-11 could not be written"):
            with checkpoints.explain_disk_errors(output_dir, folder.name):
                partial.mkdir(parents=True)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                try:
                    torch.save({"state": torch.ones(50_000)}, partial / "optimizer.pt")
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert not partial.exists() and len(names(output_dir)) == 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
        RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
    ],
)
def test_what_is_no_fault_of_the_disk_is_not_called_one(output_dir, error):
    """Making room would help nobody; and others may still be writing."""
    partial = checkpoints.partial_folder(output_dir / "checkpoint-11")
    with pytest.raises(type(error)) as raised, checkpoints.explain_disk_errors(output_dir, "checkpoint-11"):
        partial.mkdir(parents=True)
        raise error
    assert raised.value is error and partial.exists()


def test_files_are_placed_in_order(tmp_path, monkeypatch):
    partial = checkpoints.partial_folder(tmp_path / "model")
    partial.mkdir(parents=True)
    for name in ("a.safetensors", "b.json", "z.json"):
        (partial / name).write_text(name)
    (tmp_path / "b.json").write_text("old")
    placed, replace = [], checkpoints.os.replace
    monkeypatch.setattr(checkpoints.os, "replace", lambda a, b: (placed.append(a.name), replace(a, b)))
    checkpoints.publish_files(partial, tmp_path, last=("a.safetensors",))
    assert placed[-1] == "a.safetensors" and sorted(placed) == ["a.safetensors", "b.json", "z.json"]
    assert (tmp_path / "b.json").read_text() == "b.json" and not partial.exists()

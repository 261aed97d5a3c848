"""rein_hf.images.workers: as many as there are cores for."""

import pytest

from rein_hf.images import default_workers, workers


@pytest.mark.parametrize(
    ("cores", "device", "processes", "expected"),
    [
        (16, "cuda", 1, 8),
        (8, "cuda", 1, 7),
        (2, "cuda", 1, 1),
        (1, "cuda", 1, 1),
        (16, "cuda", 4, 3),
        (4, "cuda", 8, 1),
        (10, "mps", 1, 8),
        (64, "cpu", 1, 0),
    ],
)
def test_default_workers(cores, device, processes, expected, monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    assert default_workers(device, processes) == expected


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert workers.available_cores() == 3
    monkeypatch.delattr(workers.os, "sched_getaffinity")
    monkeypatch.setattr(workers.os, "cpu_count", lambda: None)
    assert workers.available_cores() == 1

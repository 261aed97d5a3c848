"""The kernels for GPUs, called and compiled as for one where there is none. Their numbers are tested beside each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


pytest.importorskip("triton", reason="kernels for GPUs need Triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_they_compile_as_they_are_called(architecture, tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.support.call_kernels", str(architecture)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * 2 + 2 + 2 + 3 * 2

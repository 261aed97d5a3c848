"""The kernels for GPUs, called and compiled as for one where there is none. Their numbers are tested beside each."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from rein_hf import slide_inference
from rein_hf.backbone import residual_norms
from rein_hf.inference import class_scores, prepare_for_inference
from tests.support.operator_count import path_of_cuda


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU, not interpreted")
def test_a_segmenter_with_them_gives_the_same_scores(rein_model, pixel_values, monkeypatch):
    """Interpreted, in all places where a prepared model calls them."""
    prepare_for_inference(rein_model)
    calls = Counter()

    def scores() -> torch.Tensor:
        with torch.no_grad(), path_of_cuda():
            return slide_inference(rein_model, pixel_values[:1])

    def counted(kernel):
        def call(*arguments):
            calls[kernel.__name__] += 1
            return kernel(*arguments)

        return call

    expected = scores()
    monkeypatch.setattr(residual_norms, "sum_and_norm", counted(residual_norms.residual_norms_triton.sum_and_norm))
    monkeypatch.setattr(class_scores, "class_scores", counted(class_scores.class_scores_triton.class_scores))
    found = scores()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    blocks, layers = 4, len(rein_model.get_base_model().model.transformer_module.decoder.layers)
    # two of each block, two of the only layer of the pixel decoder, three of each decoder layer, one of each output
    assert calls == {"sum_and_norm": 2 * blocks + 2 + 3 * layers + layers + 1, "class_scores": 1}

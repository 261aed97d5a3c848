"""Where kernels for GPUs run in tests: interpreted on a CPU, unless there is a GPU and `TRITON_INTERPRET=0
CUDA_VISIBLE_DEVICES=0` is set. Then `-m gpu` has their tests, too."""

import pytest
import torch


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKS = [pytest.mark.gpu] if DEVICE == "cuda" else []

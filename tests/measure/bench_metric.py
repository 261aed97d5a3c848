"""Time that the metric takes for a label map of Cityscapes' size, beside a lower bound.

    python -m tests.measure.bench_metric  # OMP_NUM_THREADS=1 for one core

Printed are milliseconds for each map: the median and, in brackets, the smallest. The lower bound is numpy's bincount
of an index that was made before. All are measured in turns, so that other load on the machine affects all of them.
"""

import os
import time

import numpy as np
import torch

from rein_hf import MeanIoU
from tests.evaluation.test_metrics import mean_iou_of_evaluate


MAPS, CLASSES = 500, 19


def main() -> None:
    rng = np.random.default_rng(0)
    reference = np.kron(rng.integers(0, CLASSES, (16, 32)), np.ones((64, 64), int)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.9, reference, rng.integers(0, CLASSES, reference.shape))
    prediction = prediction.astype(np.uint8)
    reference[:100] = 255
    index = (256 * reference.astype(np.intp) + prediction).ravel()
    prediction_int64 = prediction.astype(np.int64)
    metric, metric_int64 = (MeanIoU([str(number) for number in range(CLASSES)]) for _ in range(2))
    functions = {
        "numpy.bincount alone": lambda: np.bincount(index, minlength=256**2),
        "MeanIoU.add, uint8": lambda: metric.add(prediction=prediction, reference=reference),
        "MeanIoU.add, int64 prediction": lambda: metric_int64.add(prediction=prediction_int64, reference=reference),
    }
    if torch.cuda.is_available():
        prediction_cuda = torch.from_numpy(prediction).cuda()
        metric_cuda = MeanIoU(metric.classes)
        functions["MeanIoU.add, uint8 on the GPU"] = lambda: metric_cuda.add(
            prediction=prediction_cuda, reference=reference
        )
    seconds = {name: [] for name in functions}
    for _ in range(MAPS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    start = time.perf_counter()
    expected = mean_iou_of_evaluate([prediction], [reference], CLASSES)
    seconds["arithmetic of evaluate's mean_iou, once"] = [time.perf_counter() - start]
    assert np.isclose(metric.compute()["mean_iou"], expected["mean_iou"], rtol=1e-12)

    height, width = reference.shape
    print(f"{MAPS} maps of {width}x{height}, {CLASSES} classes, {torch.get_num_threads()} of {os.cpu_count()} cores")
    for name, times in seconds.items():
        print(f"{1e3 * np.median(times):8.2f} ({1e3 * min(times):.2f})  {name}")


if __name__ == "__main__":
    main()

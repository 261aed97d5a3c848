"""How long the metric takes for label maps of Cityscapes' size, beside the least that counting them can take.

    python -m tests.measure.bench_metric  # OMP_NUM_THREADS=1 for one core

Milliseconds a map: the median and, in brackets, the fastest. The limit is numpy's bincount of an index that is there
already. All take turns, so that a busy machine is busy for each.
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
    wide = prediction.astype(np.int64)
    metric, as_int64 = (MeanIoU([str(number) for number in range(CLASSES)]) for _ in range(2))
    ways = {
        "numpy.bincount alone": lambda: np.bincount(index, minlength=256**2),
        "MeanIoU.add, uint8": lambda: metric.add(prediction=prediction, reference=reference),
        "MeanIoU.add, int64 prediction": lambda: as_int64.add(prediction=wide, reference=reference),
    }
    if torch.cuda.is_available():
        there = torch.from_numpy(prediction).cuda()
        on_device = MeanIoU(metric.classes)
        ways["MeanIoU.add, uint8 on the GPU"] = lambda: on_device.add(prediction=there, reference=reference)
    seconds = {name: [] for name in ways}
    for _ in range(MAPS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    start = time.perf_counter()
    theirs = mean_iou_of_evaluate([prediction], [reference], CLASSES)
    seconds["arithmetic of evaluate's mean_iou, once"] = [time.perf_counter() - start]
    assert np.isclose(metric.compute()["mean_iou"], theirs["mean_iou"], rtol=1e-12)

    height, width = reference.shape
    print(f"{MAPS} maps of {width}x{height}, {CLASSES} classes, {torch.get_num_threads()} of {os.cpu_count()} cores")
    for name, times in seconds.items():
        print(f"{1e3 * np.median(times):8.2f} ({1e3 * min(times):.2f})  {name}")


if __name__ == "__main__":
    main()

"""Chance: one of several options, and fractal noise."""

from collections.abc import Sequence
from functools import cache

import numpy as np


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, unconverted (rng.choice would turn tuples into arrays)."""
    return options[int(rng.integers(len(options)))]


@cache
def cloud_noise() -> np.ndarray:
    """Tileable fractal noise, float32 [512, 512] around 0.5, mostly within 0..1."""
    white = np.random.default_rng(7).standard_normal((512, 512))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    f[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(white) / f**1.25).real
    return (0.5 + 0.2 * noise / noise.std()).astype(np.float32)

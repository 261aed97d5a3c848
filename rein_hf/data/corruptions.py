"""The 15 corruptions of ImageNet-C at five severities. Applied to Cityscapes they give Cityscapes-C.

Hendrycks & Dietterich define them (https://arxiv.org/abs/1903.12261); Michaelis et al. extend them to images of any
size and introduce Cityscapes-C (https://arxiv.org/abs/1907.07484). They are computed by the package
`imagecorruptions-imaug`, the code of Michaelis et al. updated to current numpy and scikit-image. It draws from all six
pictures of frost, the original from five. Labels stay as they are, also for elastic_transform, which moves pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


CORRUPTIONS = {
    "gaussian_noise": "noise",
    "shot_noise": "noise",
    "impulse_noise": "noise",
    "defocus_blur": "blur",
    "glass_blur": "blur",
    "motion_blur": "blur",
    "zoom_blur": "blur",
    "snow": "weather",
    "frost": "weather",
    "fog": "weather",
    "brightness": "weather",
    "contrast": "digital",
    "elastic_transform": "digital",
    "pixelate": "digital",
    "jpeg_compression": "digital",
}
SEVERITIES = (1, 2, 3, 4, 5)
_MIN_SIDE = 32  # the package accepts no smaller image
# These two do not draw from numpy's global generator; they take a seed as an argument.
_SEEDED_BY_ARGUMENT = ("impulse_noise", "glass_blur")


def corrupt(image: Image.Image, name: str, severity: int, rng: np.random.Generator) -> Image.Image:
    """
    A corrupted copy of an image, of the same size.

    All randomness depends on one number drawn from `rng`: equal generators give equal images. The package draws from
    numpy's global generator. Its state is restored afterwards (numba's, which glass_blur uses, is not), so call this
    from several processes, not from several threads. The average time is 0.2 s for 960x540 pixels, and 1.1 s for
    2048x1024.

    Args:
        image (`PIL.Image.Image`): RGB, at least 32 pixels on each side.
        name (`str`): one of [`CORRUPTIONS`].
        severity (`int`): 1 to 5.
        rng (`np.random.Generator`): one number is drawn from it, also for a corruption that is not random.

    Raises:
        ValueError: an unknown corruption or severity, another mode, or too small an image.
        ImportError: the package is missing or does not load.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; expected a whole number from 1 to 5.")
    if image.mode != "RGB" or min(image.size) < _MIN_SIDE:
        raise ValueError(
            f"image is {image.mode}, {image.width}x{image.height}; "
            f"expected RGB of at least {_MIN_SIDE}x{_MIN_SIDE} pixels."
        )
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(
            f"corrupt() needs imagecorruptions-imaug: pip install 'rein-hf[corruptions]'. Importing it said: {error}. "
            "(If that is about libGL, install opencv-python-headless in the place of opencv-python; if about "
            "pkg_resources or scipy.ndimage.interpolation, the original imagecorruptions, of 2020, is in the way.)"
        ) from error

    seed = int(rng.integers(2**32))
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        corrupted = imagecorruptions.corrupt(
            np.asarray(image),
            severity=severity,
            corruption_name=name,
            **({"seed": seed} if name in _SEEDED_BY_ARGUMENT else {}),
        )
    finally:
        np.random.set_state(state)
    return Image.fromarray(corrupted)

"""The augmentation of the authors' configuration, on an image and its label together.

Resizing, cropping and flipping are one resampling, which computes only the pixels of the crop. Images are sampled
bilinearly without antialiasing, as the reference does with OpenCV (PIL's `resize` antialiases), labels by the nearest
pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..images import affine_sample
from ..labels import IGNORE
from .colour import HUES, change_saturation_and_hue


@dataclass(frozen=True)
class Augmentation:
    """
    Random short side, crop, flip and photometric distortion.

    Args:
        crop (`int`): side of the crop in pixels. Short sides are drawn from 0.5, 0.6, ... 2.0 times the crop, long
            sides are at most 4 times the crop.
        max_class_share (`float`): a crop in which one class has this share of the valid pixels, or more, is replaced
            by another random one.
        crop_tries (`int`): how often a crop is replaced at most.
        photometric (`bool`): whether to distort brightness, contrast, saturation and hue.

    Example:

    ```py
    >>> import numpy as np
    >>> from PIL import Image
    >>> from rein_hf.data import Augmentation
    >>> image, label = Image.new("RGB", (640, 360)), Image.new("L", (640, 360))
    >>> image, label = Augmentation(crop=256)(image, label, np.random.default_rng(0))
    >>> label.size
    (256, 256)

    ```
    """

    crop: int = 512
    max_class_share: float = 0.75
    crop_tries: int = 10
    photometric: bool = True

    def __call__(
        self, image: Image.Image, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Image.Image, Image.Image]:
        """
        Args:
            image (`RGB`), label (`L`): of one size.
            rng: the source of all randomness.

        Returns:
            The image, of at most `crop` x `crop` pixels: the image processor pads it after normalisation. The label,
            of `crop` x `crop` pixels, padded with 255 at the right and at the bottom.
        """
        short = int(self.crop * 0.1 * rng.integers(5, 21))
        factor = min(short / min(image.size), 4 * self.crop / max(image.size))
        scaled = tuple(max(1, round(side * factor)) for side in image.size)
        step = (image.width / scaled[0], image.height / scaled[1])
        size = tuple(min(side, self.crop) for side in scaled)
        for _ in range(self.crop_tries + 1):
            origin = tuple(int(rng.integers(0, side - cut + 1)) for side, cut in zip(scaled, size, strict=True))
            cropped = affine_sample(label, step, origin, size, False, Image.Resampling.NEAREST)
            if self._is_mixed(cropped):
                break
        flip = bool(rng.random() < 0.5)
        image = affine_sample(image, step, origin, size, flip, Image.Resampling.BILINEAR)
        if self.photometric:
            image = photometric_distortion(image, rng)
        padded = Image.new("L", (self.crop, self.crop), IGNORE)
        padded.paste(cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cropped)
        return image, padded

    def _is_mixed(self, label: Image.Image) -> bool:
        counts = label.histogram()[:IGNORE]
        return max(counts) < self.max_class_share * sum(counts)


def photometric_distortion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB image with random brightness (+-32 of 255), contrast and saturation (0.5 to 1.5 times) and hue (+-18 of
    180), each changed with probability one half. Contrast is changed before or after saturation and hue, at random."""

    def linear(image: Image.Image, factor: float, offset: float) -> Image.Image:
        table = np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)
        return image.point(np.tile(table, len(image.getbands())).tolist())

    def contrast(image: Image.Image) -> Image.Image:
        return linear(image, rng.uniform(0.5, 1.5), 0) if rng.random() < 0.5 else image

    if rng.random() < 0.5:
        image = linear(image, 1, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = contrast(image)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
    hue = int(rng.integers(-18, 18)) if rng.random() < 0.5 else None
    if saturation is not None or hue is not None:
        # PIL divides the hue circle into 255 steps, the reference into 180
        image = change_saturation_and_hue(image, saturation, None if hue is None else round(hue * HUES / 180))
    return image if contrast_first else contrast(image)

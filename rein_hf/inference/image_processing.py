"""The stock image processor, for whole photos and for semantic maps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from ..backbone import SCALES, ViTPyramidConfig
from ..labels import IGNORE
from .class_scores import semantic_scores


class ReinImageProcessor(Mask2FormerImageProcessorPil):
    """
    Mask2Former's image processor, changed in three points, so that transformers' `pipeline("image-segmentation", ...)`
    takes photos of any size and gives the same label maps as [`rein_hf.segment`]:

    - Images are not resized. They are padded at the bottom and on the right to multiples of the patch size.
    - Masks are upsampled to the size of the image. The stock class resizes them to 384x384 first.
    - Panoptic and instance segmentation are missing, because the model predicts one mask per class. A pipeline would
      choose them before semantic segmentation.

    A photo goes through the model as a whole, where [`rein_hf.segment`] uses sliding windows as in the paper's
    evaluation. Both give the same map for a photo that is not larger than a window. The processor is saved and loaded
    like any other after `import rein_hf`, and works without torchvision.

    Args:
        size_divisor (`int`, defaults to 16): the model's patch size in pixels.
        kwargs: as for `Mask2FormerImageProcessor`; pixels labelled `ignore_index`, 255 by default, are in no mask.

    Example:

    ```py
    >>> from PIL import Image
    >>> from rein_hf import ReinImageProcessor
    >>> ReinImageProcessor()(Image.new("RGB", (100, 60)), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 64, 112])

    ```
    """

    do_resize = False
    size_divisor = 16
    ignore_index = IGNORE

    def _preprocess(self, images, *args, pad_size=None, size_divisor=None, **kwargs) -> BatchFeature:
        if kwargs["do_normalize"] and not np.all(kwargs["image_std"]):
            raise ValueError(
                f"image_std is {kwargs['image_std']}; expected numbers other than 0, by which pixels are divided. "
                "Correct the image processor's preprocessor_config.json."
            )
        if pad_size is None and not kwargs["do_resize"]:
            # two patches at least, because the coarsest of the four maps halves the grid of patches
            sides = (max(image.shape[axis] for image in images) for axis in (-2, -1))
            height, width = (max(math.ceil(side / size_divisor), 2) * size_divisor for side in sides)
            pad_size = SizeDict(height=height, width=width)
        return super()._preprocess(images, *args, pad_size=pad_size, size_divisor=size_divisor, **kwargs)

    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """The class of every pixel.

        Args:
            outputs: what the model returned.
            target_sizes (`list[tuple[int, int]]`, *optional*): height and width of each image before it was padded.
                Each map is cropped to it. With `do_resize` the scores are resized to it instead. By default maps have
                the size of the model's input.

        Returns:
            A map (H, W) of class ids per image.

        Raises:
            ValueError: the number of sizes is not the number of images, or a size is larger than the model's input.
        """
        has_masks = "masks_queries_logits" in outputs
        logits = (outputs.class_queries_logits, outputs.masks_queries_logits) if has_masks else (outputs.logits,)
        logits = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in logits]
        height, width = logits[-1].shape[-2:]
        if has_masks:  # mask logits have the resolution of the finest map, four of whose pixels are a patch's side
            height, width = (round(side * self.size_divisor / SCALES[0]) for side in (height, width))
        count = len(logits[0])
        if target_sizes is not None and len(target_sizes) != count:
            raise ValueError(f"{len(target_sizes)} target_sizes for {count} images; expected one for each.")
        maps = []
        for index, (rows, columns) in enumerate(target_sizes or [(height, width)] * count):
            image_logits = [tensor[index : index + 1] for tensor in logits]
            scores = semantic_scores(*image_logits, (height, width)) if has_masks else image_logits[0]
            if self.do_resize:
                scores = F.interpolate(scores, size=(rows, columns), mode="bilinear", align_corners=False)
            elif rows > height or columns > width:
                raise ValueError(
                    f"target_sizes[{index}] is {rows}x{columns}, but the model's input was {height}x{width} pixels; "
                    "expected the size of the image before it was padded."
                )
            maps.append(scores[0, :, :rows, :columns].argmax(dim=0))
        return maps

    @property
    def post_process_panoptic_segmentation(self):
        # a pipeline tries panoptic, instance and semantic in this order, by `hasattr`
        raise AttributeError("The model gives semantic maps: use post_process_semantic_segmentation.")

    post_process_instance_segmentation = post_process_panoptic_segmentation


AutoImageProcessor.register(ViTPyramidConfig, image_processor_classes={"pil": ReinImageProcessor})

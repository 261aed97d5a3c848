"""Scores of classes from a Mask2Former's logits.

`rein_hf::class_scores` does for a GPU in one kernel (class_scores_triton.py) what torch's operations do for strips of
rows: without one mask in its full size, of which a hundred are in the memory for each image otherwise.
"""

from __future__ import annotations

import torch

from ..backbone.transforms import computes_values_alone
from ..tuner import without_autocast
from .strips import resized_strips


try:
    from . import class_scores_triton
except ImportError:  # a torch without Triton
    class_scores_triton = None

MOST_CLASSES = 256  # of which the kernel keeps the sums of its pixels in registers
MOST_PROGRAMS = 65_535  # that a GPU has in the second and third direction, here rows and images


def semantic_scores(
    class_queries_logits: torch.Tensor, masks_queries_logits: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Score of every class at every pixel: the sum over queries of softmax(class) * sigmoid(mask), without the
    no-object class.

    The stock `post_process_semantic_segmentation` is not used, because it resizes every mask to 384x384 first.

    Args:
        class_queries_logits (`(B, m, K + 1)`): a Mask2Former's class logits, no-object last.
        masks_queries_logits (`(B, m, h, w)`): its mask logits.
        size (`(int, int)`): height and width of the pixels asked for; mask logits are upsampled to it bilinearly.

    Returns:
        `torch.Tensor` of shape `(B, K, *size)`, each score at least 0, in memory channels last.
    """
    with without_autocast(masks_queries_logits.device.type):  # it would sum in bfloat16
        classes = class_queries_logits.softmax(dim=-1)[..., :-1]
        if _has_kernel_for(masks_queries_logits, classes, size[0]):
            scores = class_scores(masks_queries_logits, classes, *size)
        else:
            scores = class_scores_in_torch(masks_queries_logits, classes, *size)
    return scores.permute(0, 3, 1, 2)


def class_scores_in_torch(masks: torch.Tensor, classes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What the operator `rein_hf::class_scores` gives, in operations of torch: sums over queries of class probability
    and sigmoid of the resized mask.

    Args:
        masks (`(B, m, h, w)`): logits.
        classes (`(B, m, K)`): probabilities.
        height, width (`int`): what the masks are resized to.

    Returns:
        (B, height, width, K).
    """
    scores = classes.new_empty(len(classes), height, width, classes.shape[-1])
    for rows, strip in resized_strips(masks, (height, width)):
        scores[:, rows] = (strip.sigmoid().flatten(1, 2) @ classes).unflatten(1, strip.shape[1:3])
    return scores


_LIBRARY = torch.library.Library("rein_hf", "FRAGMENT")
_LIBRARY.define("class_scores(Tensor masks, Tensor classes, int height, int width) -> Tensor")
_LIBRARY.impl("class_scores", class_scores_in_torch, "CPU")
if class_scores_triton is not None:
    _LIBRARY.impl("class_scores", class_scores_triton.class_scores, "CUDA")
class_scores = torch.ops.rein_hf.class_scores.default


@torch.library.register_fake("rein_hf::class_scores", lib=_LIBRARY)
def _(masks, classes, height, width):
    return classes.new_empty(len(classes), height, width, classes.shape[-1])


def saves_time(device: torch.device) -> bool:
    """Whether the operator is faster on a device. On a CPU a strip of all masks fits into its cache."""
    return device.type == "cuda" and class_scores_triton is not None


def _has_kernel_for(masks: torch.Tensor, classes: torch.Tensor, height: int) -> bool:
    """Whether the operator can and should be computed."""
    return (
        saves_time(masks.device)
        and masks.dtype == classes.dtype == torch.float32
        and classes.shape[-1] <= MOST_CLASSES
        and computes_values_alone(masks, classes)
        and max(height, len(masks)) <= MOST_PROGRAMS
    )

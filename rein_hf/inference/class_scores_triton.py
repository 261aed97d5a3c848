"""Scores of classes on a GPU: one Triton kernel, of which each program goes through pixels of one row and, one block
of queries after the other, resizes their masks, takes the sigmoid and adds their share to the sums of all classes.

`TRITON_INTERPRET=1` runs it on a CPU, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


# Queries that one program adds at a time. Compiled for sm_80, a program needs 80 registers for 19 classes and 104 for
# 150, without spills. The number of queries is known to the compiler: it loads four masks at once where 4 divides it.
BLOCK_QUERIES = 16


@triton.jit
def _kernel(
    masks,
    classes,
    scores,
    mask_height,
    mask_width,
    width,
    step_y,
    step_x,
    QUERIES: tl.constexpr,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
):
    x, y, image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1), tl.program_id(2).to(tl.int64)
    number, of_class = tl.arange(0, BLOCK_QUERIES), tl.arange(0, BLOCK_CLASSES)
    # the four pixels of the mask around each pixel asked for, as `F.interpolate` with align_corners=False has them
    row = tl.maximum((y + 0.5) * step_y - 0.5, 0.0)
    upper = tl.minimum(row.to(tl.int32), mask_height - 1)
    lower = tl.minimum(upper + 1, mask_height - 1)
    below = row - upper
    column = tl.maximum((x + 0.5) * step_x - 0.5, 0.0)
    left = tl.minimum(column.to(tl.int32), mask_width - 1)
    right = tl.minimum(left + 1, mask_width - 1)
    right_of = (column - left)[:, None]
    masks += image * mask_height * mask_width * QUERIES
    upper, lower = masks + upper.to(tl.int64) * mask_width * QUERIES, masks + lower.to(tl.int64) * mask_width * QUERIES
    left, right = left[:, None] * QUERIES + number[None, :], right[:, None] * QUERIES + number[None, :]
    classes += image * QUERIES * CLASSES + number[:, None] * CLASSES + of_class[None, :]
    total = tl.zeros((BLOCK, BLOCK_CLASSES), tl.float32)
    for first in range(0, QUERIES, BLOCK_QUERIES):
        there = (number < QUERIES - first)[None, :]
        above_left, above_right = tl.load(upper + left, there, 0.0), tl.load(upper + right, there, 0.0)
        below_left, below_right = tl.load(lower + left, there, 0.0), tl.load(lower + right, there, 0.0)
        above = above_left + right_of * (above_right - above_left)
        logits = above + below * (below_left + right_of * (below_right - below_left) - above)
        of_queries = (number < QUERIES - first)[:, None] & (of_class < CLASSES)[None, :]
        share = tl.load(classes + first * CLASSES, of_queries, 0.0)  # none of queries that are not there
        total = tl.dot(tl.sigmoid(logits), share, total, input_precision="ieee")
        upper += BLOCK_QUERIES
        lower += BLOCK_QUERIES
    pixel = (image * tl.num_programs(1) + y) * width + x
    inside = (x < width)[:, None] & (of_class < CLASSES)[None, :]
    tl.store(scores + pixel[:, None] * CLASSES + of_class[None, :], total, inside)


def class_scores(masks: torch.Tensor, classes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As [`rein_hf.inference.class_scores.class_scores_in_torch`]."""
    batch, queries, mask_height, mask_width = masks.shape
    number = classes.shape[-1]
    masks, classes = masks.permute(0, 2, 3, 1).contiguous(), classes.contiguous()
    scores = classes.new_empty(batch, height, width, number)
    padded = max(triton.next_power_of_2(number), 16)
    block, warps = (64, 4) if padded <= 64 else (32, 8)
    with torch.cuda.device_of(masks):  # Triton launches on the current device, wherever the tensors are
        _kernel[(triton.cdiv(width, block), height, batch)](
            *(masks, classes, scores),
            mask_height,
            mask_width,
            width,
            mask_height / height,
            mask_width / width,
            QUERIES=queries,
            CLASSES=number,
            BLOCK=block,
            BLOCK_QUERIES=BLOCK_QUERIES,
            BLOCK_CLASSES=padded,
            num_warps=warps,
            num_stages=1,  # more of them keep what is loaded in 80 KB of shared memory
            enable_fp_fusion=True,
        )
    return scores

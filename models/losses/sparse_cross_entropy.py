"""Sigmoid cross-entropy of logits over sparse labels: the loss by default, with its own backward.

Shapes   B videos in the batch   C classes   L labels of the batch   R rated cells of the batch
The labels of video b are `label_indices[label_offsets[b]:label_offsets[b + 1]]`, each class at most once. Rated classes
are stored alike (each segment of 2019 is rated for a few classes); without them, all classes are rated.
No function here makes CUDA wait for the host or the host for CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.ragged import add_by_video, at_cells, rows_of


def sigmoid_cross_entropy(
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    rated_offsets: Tensor | None = None,
    rated_indices: Tensor | None = None,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c [w_c y softplus(-z) + (1 - y) softplus(z)], summed over the rated classes c.

    With y in {0, 1}, the sum over c is sum_c softplus(z_c) plus a correction for each label, so no dense target is
    needed. Half-precision logits are computed with in float32, float64 in float64; the gradient has the logits' dtype.

    Args:
        logits_BC: [B, C], B >= 1.
        label_offsets: [B + 1] int64.
        label_indices: [L] int64, among the rated classes.
        rated_offsets: [B + 1] int64; None: every class of every video is rated.
        rated_indices: [R] int64; a cell that is not rated costs 0 and has no gradient.
        pos_weights_C: w_c, weights of the positives of each class; None: 1.
        example_weights_B: e_b, for instance how often the bootstrap drew the video; None: 1. The sum is divided by B
            and not by the sum of the weights, as in lidalei/youtube-8m.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    loss: Tensor = _SigmoidCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BC, label_offsets, label_indices, rated_offsets, rated_indices, pos_weights_C, example_weights_B
    )
    return loss


class _SigmoidCrossEntropy(torch.autograd.Function):
    """Saves the logits, which the model's last layer holds anyway, and allocates one [B, C] buffer in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        rated_offsets: Tensor | None,
        rated_indices: Tensor | None,
        pos_weights_C: Tensor | None,
        example_weights_B: Tensor | None,
    ) -> Tensor:
        rows = rows_of(label_offsets, label_indices)
        dtype = torch.promote_types(logits_BC.dtype, torch.float32)
        logits_L = at_cells(logits_BC, rows, label_indices).to(dtype)
        if pos_weights_C is None:
            corrections_L = -logits_L  # softplus(-z) - softplus(z)
        else:
            corrections_L = pos_weights_C.to(dtype)[label_indices] * softplus(-logits_L) - softplus(logits_L)
        rated_rows = None
        if rated_offsets is None or rated_indices is None:
            losses_B = softplus_sums(logits_BC, dtype)
        else:
            rated_rows = rows_of(rated_offsets, rated_indices)
            losses_R = softplus(at_cells(logits_BC, rated_rows, rated_indices).to(dtype))
            losses_B = add_by_video(losses_R.new_zeros(len(logits_BC)), rated_rows, losses_R)
        losses_B = add_by_video(losses_B, rows, corrections_L)
        ctx.save_for_backward(
            logits_BC, rows, label_indices, rated_rows, rated_indices, pos_weights_C, example_weights_B
        )
        if example_weights_B is not None:
            losses_B *= example_weights_B
        return losses_B.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        logits_BC, rows, label_indices, rated_rows, rated_indices, pos_weights_C, example_weights_B = ctx.saved_tensors
        scale_B = (grad_loss / len(logits_BC)).expand(len(logits_BC))
        if example_weights_B is not None:
            scale_B = scale_B * example_weights_B
        logits_L = at_cells(logits_BC, rows, label_indices).to(grad_loss.dtype)
        residuals_L = -(-logits_L).sigmoid_()  # p - 1, without cancellation
        if pos_weights_C is not None:
            residuals_L *= pos_weights_C[label_indices]
        # The last row takes the entries of no video.
        shape, dtype = (len(logits_BC) + 1, logits_BC.shape[1]), grad_loss.dtype
        make = logits_BC.new_empty if rated_rows is None else logits_BC.new_zeros
        grads_BC = make(shape, dtype=dtype)
        grad_BC, scales_B = grads_BC[:-1], F.pad(scale_B, (0, 1))
        if rated_rows is None:
            grad_BC.copy_(logits_BC).sigmoid_().mul_(scale_B[:, None])
        else:
            probabilities_R = at_cells(logits_BC, rated_rows, rated_indices).to(grad_loss.dtype).sigmoid_()
            grads_BC[rated_rows, rated_indices] = probabilities_R * scales_B[rated_rows]
        grads_BC[rows, label_indices] = residuals_L * scales_B[rows]
        return grad_BC.to(logits_BC.dtype), None, None, None, None, None, None


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding; torch's default returns x above 20, which is visible in float64."""
    return F.softplus(x, threshold=40)


def softplus_sums(logits_BC: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] sum_c softplus(z_c), the cross-entropy of a video without labels, computed in `dtype`."""
    # On a CPU in pieces of 64 videos, so that the intermediate values stay in its cache.
    parts = [logits_BC] if logits_BC.is_cuda else torch.split(logits_BC, 64)
    return torch.cat([softplus(part.to(dtype)).sum(dim=1) for part in parts])

"""The training loss: sigmoid cross-entropy over sparse labels, class and example weights, l1 and l2.

Shapes   B videos in the batch   C classes   N training videos
Labels are sparse: those of video b are `label_indices[label_offsets[b]:label_offsets[b + 1]]`, each class at most once.
Nothing here makes CUDA wait for the host or the host for CUDA.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layers import tensor

Penalty = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Settings of the training loss; the validation loss is always the plain one."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    l1: float = 0.0  # times the mean (or sum) of |W| of every weight matrix
    l2: float = 0.0  # times half the mean (or sum) of W^2 of every weight matrix
    penalty: Penalty = "mean"  # the mean, as published, does not grow with the matrix
    pos_weight_power: float = 0.0  # positives of class c weigh (N / n_c - 1) ** power; 0 = unweighted, published: 0.5
    pos_weight_max: float | None = None  # the largest of these weights allowed
    bootstrap: Literal["none", "per_batch", "fixed"] = "none"  # draw videos with replacement: anew each batch, or once

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("l1", "l2", "pos_weight_power"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, but got {getattr(self, name)}")
        if self.pos_weight_max is not None and not self.pos_weight_max > 0:
            raise ValueError(f"pos_weight_max must be positive, but got {self.pos_weight_max}")


def sigmoid_cross_entropy(
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c [w_c y softplus(-z) + (1 - y) softplus(z)]: -log p of the labels, summed over classes.

    With y in {0, 1} that is sum_c softplus(z_c) plus a correction at the labels alone, so no dense target is made.
    Computed in float32 from half-precision logits (in float64 from float64); the gradient has the logits' dtype.

    Args:
        logits_BC: [B, C], B >= 1.
        label_offsets: [B + 1] int64.
        label_indices: [labels of the batch] int64.
        pos_weights_C: w_c, weights of the positives; None weighs them 1.
        example_weights_B: e_b, for instance how often the bootstrap drew the video. The sum is divided by B all the
            same, not by the weights' sum, as published.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    loss: Tensor = _SigmoidCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BC, label_offsets, label_indices, pos_weights_C, example_weights_B
    )
    return loss


class _SigmoidCrossEntropy(torch.autograd.Function):
    """Keeps the logits, which the model's last layer holds anyway, and makes one [B, C] buffer in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        pos_weights_C: Tensor | None,
        example_weights_B: Tensor | None,
    ) -> Tensor:
        rows = label_rows(label_offsets, label_indices)
        ctx.save_for_backward(logits_BC, rows, label_indices, pos_weights_C, example_weights_B)
        dtype = torch.promote_types(logits_BC.dtype, torch.float32)
        logits_L = logits_BC[rows, label_indices].to(dtype)  # L: labels of the batch
        if pos_weights_C is None:
            corrections_L = -logits_L  # softplus(-z) - softplus(z)
        else:
            corrections_L = pos_weights_C.to(dtype)[label_indices] * softplus(-logits_L) - softplus(logits_L)
        losses_B = softplus_sums(logits_BC, dtype).index_add_(0, rows, corrections_L)
        if example_weights_B is not None:
            losses_B *= example_weights_B
        return losses_B.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_BC, rows, label_indices, pos_weights_C, example_weights_B = ctx.saved_tensors
        scale_B = (grad_loss / len(logits_BC)).expand(len(logits_BC))
        if example_weights_B is not None:
            scale_B = scale_B * example_weights_B
        residuals_L = -(-logits_BC[rows, label_indices].to(grad_loss.dtype)).sigmoid_()  # p - 1, without cancellation
        if pos_weights_C is not None:
            residuals_L *= pos_weights_C[label_indices]
        grad_BC = logits_BC.to(grad_loss.dtype, copy=True).sigmoid_().mul_(scale_B[:, None])
        grad_BC[rows, label_indices] = residuals_L * scale_B[rows]
        return grad_BC.to(logits_BC.dtype), None, None, None, None


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding; torch's own default cuts over to x at 20, which float64 can tell."""
    return F.softplus(x, threshold=40)


def softplus_sums(logits_BC: Tensor, dtype: torch.dtype) -> Tensor:
    """[B] sum_c softplus(z_c): the cross-entropy of a video without labels, computed in `dtype`."""
    # A CPU takes piece by piece, so that the intermediate stays in its cache instead of in fresh pages.
    parts = [logits_BC] if logits_BC.is_cuda else torch.split(logits_BC, 64)
    return torch.cat([softplus(part.to(dtype)).sum(dim=1) for part in parts])


def label_rows(label_offsets: Tensor, label_indices: Tensor) -> Tensor:
    """The row of the batch that each label belongs to; the known output size spares CUDA a synchronisation."""
    return torch.repeat_interleave(label_offsets.diff(), output_size=len(label_indices))


def positive_weights(label_counts_C: Any, num_videos: int, power: float, maximum: float | None = None) -> Tensor:
    """w_c = (N / n_c - 1) ** power, the ratio of negatives to positives tempered; power 0.5 as published.

    n_c is clipped to [1, N - 1], so a class without a positive, or with nothing else, keeps a finite weight above 0.

    Args:
        label_counts_C: n_c, videos that carry each class.
        num_videos: N, at least 2.
        power: 0 makes every weight 1.
        maximum: larger weights are cut to it.

    Returns:
        [C] float32.
    """
    if num_videos < 2:
        raise ValueError(f"num_videos must be at least 2, but got {num_videos}")
    counts_C = tensor(label_counts_C).double().clamp(1, num_videos - 1)
    return ((num_videos / counts_C - 1) ** power).clamp(max=maximum if maximum is not None else np.inf).float()


def penalty(matrices: Iterable[Tensor], l1: float, l2: float, convention: Penalty = "mean") -> Tensor:
    """l1 * sum_W mean|W| + l2 * sum_W mean(W^2) / 2; with the convention `sum`, sums in place of the means.

    Returns:
        A scalar. For training, add_penalty_gradients is several times faster than the backward of this.
    """
    total = torch.zeros(())
    for matrix in matrices:
        share = 1 / matrix.numel() if convention == "mean" else 1.0
        if l1:
            total = total.to(matrix.device) + l1 * share * torch.linalg.vector_norm(matrix, 1)
        if l2:
            total = total.to(matrix.device) + l2 * share / 2 * matrix.square().sum()
    return total


@torch.no_grad()
def add_penalty_gradients(matrices: Iterable[Tensor], l1: float, l2: float, convention: Penalty = "mean") -> None:
    """Adds the gradient of `penalty` to every matrix's .grad in place: l1 sign(W) + l2 W, over W's size for `mean`.

    To be called between backward and clipping.
    """
    for matrix in matrices:
        share = 1 / matrix.numel() if convention == "mean" else 1.0
        if matrix.grad is None:
            raise ValueError("every matrix must have a gradient, but got one without: call backward first")
        if l1:
            matrix.grad.add_(matrix.sign(), alpha=l1 * share)
        if l2:
            matrix.grad.add_(matrix, alpha=l2 * share)


def per_batch_bootstrap_weights(
    batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """How often each video of a batch is drawn when batch_size are drawn with replacement; to be drawn anew each batch.

    Returns:
        [B] float32 on `device`, summing to B. Drawn on the generator's device (for CUDA make it one of CUDA's, and
        nothing is copied); the same generator state, the same weights.
    """
    draws = torch.randint(batch_size, (batch_size,), generator=generator, device=generator.device).to(device)
    return torch.zeros(batch_size, device=device).index_add_(0, draws, torch.ones(batch_size, device=device))


def fixed_bootstrap_weights(num_videos: int, seed: int) -> Tensor:
    """How often each training video is drawn when N are drawn with replacement: one bootstrap sample of the data set.

    Returns:
        [N] float32 in the cache's order, summing to N: multinomial counts of np.random.default_rng(seed).
    """
    counts = np.random.default_rng(seed).multinomial(num_videos, np.full(num_videos, 1 / num_videos))
    return torch.from_numpy(counts.astype(np.float32))

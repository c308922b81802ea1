"""What losses share: their arguments, and sums over the cells (video, class) of a batch without a dense target.

Shapes   B videos in the batch   C classes   L labels of the batch   R rated cells of the batch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from models.ragged import add_by_video, at_cells, rows_of
from models.tensors import upcast

Scores = Literal["logits", "probabilities"]


class Loss(Protocol):
    """A training loss of a batch."""

    def __call__(
        self,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        *,
        rated_offsets: Tensor | None = None,
        rated_indices: Tensor | None = None,
        pos_weights_C: Tensor | None = None,
        example_weights_B: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss.

        Args:
            logits_BC: [B, C] of any float dtype, B >= 1.
            label_offsets: [B + 1] int64; the labels of video b lie between its two offsets.
            label_indices: [L] int64, among the rated classes of the video, each class at most once.
            rated_offsets: [B + 1] int64; None: every class of every video is rated.
            rated_indices: [R] int64; a cell that is not rated costs 0 and has no gradient.
            pos_weights_C: weights of the positives of each class; None: 1.
            example_weights_B: weight of each video; None: 1. The sum is divided by B, not by the sum of the weights.

        Returns:
            A scalar in float32 (float64 for float64 logits).
        """


def scored(scores: Scores) -> Callable[[Tensor], Tensor]:
    """The function from logits to what a loss calls a score: the logits unchanged, or their sigmoid.

    The sources of hinge and softmax give them probabilities: with p in [0, 1], a negative of the hinge loss always
    costs at least its margin, and a softmax of numbers in [0, 1] is nearly flat. Logits have neither problem.
    """
    return torch.sigmoid if scores == "probabilities" else lambda z: z


def mean_over_videos(losses_B: Tensor, example_weights_B: Tensor | None) -> Tensor:
    """Weighted mean, divided by B and not by the sum of the weights, as in lidalei/youtube-8m."""
    return (losses_B if example_weights_B is None else losses_B * example_weights_B).mean()


def sum_of_cells(
    positive: Callable[[Tensor], Tensor],
    negative: Callable[[Tensor], Tensor],
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    rated_offsets: Tensor | None = None,
    rated_indices: Tensor | None = None,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c v_c [w_c y positive(z) + (1 - y) negative(z)], summed over the rated classes c.

    `functools.partial(sum_of_cells, positive, negative)` is a `Loss`, whose docstring describes the other arguments.

    Args:
        positive: logits of any shape -> the cost of each where the video has the label.
        negative: logits of any shape -> the cost of each where the video does not have the label.
        logits_BC: z.
        label_offsets: [B + 1].
        label_indices: [L].
        rated_offsets: [B + 1], or None.
        rated_indices: [R], or None.
        pos_weights_C: w_c.
        example_weights_B: e_b.
        class_weights_C: v_c; None: 1.
    """
    logits_BC = upcast(logits_BC)
    rows = rows_of(label_offsets, label_indices)
    logits_L = at_cells(logits_BC, rows, label_indices)
    corrections_L = positive(logits_L)
    if pos_weights_C is not None:
        corrections_L = pos_weights_C[label_indices] * corrections_L
    corrections_L = corrections_L - negative(logits_L)
    if class_weights_C is not None:
        corrections_L = class_weights_C[label_indices] * corrections_L
    if rated_offsets is None or rated_indices is None:
        costs_BC = negative(logits_BC)
        losses_B = costs_BC.sum(dim=1) if class_weights_C is None else costs_BC @ class_weights_C.to(costs_BC.dtype)
    else:
        rated_rows = rows_of(rated_offsets, rated_indices)
        costs_R = negative(at_cells(logits_BC, rated_rows, rated_indices))
        if class_weights_C is not None:
            costs_R = class_weights_C[rated_indices] * costs_R
        losses_B = add_by_video(logits_BC.new_zeros(len(logits_BC)), rated_rows, costs_R.to(logits_BC.dtype))
    losses_B = add_by_video(losses_B, rows, corrections_L.to(losses_B.dtype))
    return mean_over_videos(losses_B, example_weights_B)

"""Cross-entropy between the softmax of a video's scores and its labels.

Shapes   B videos in the batch   C classes   L labels of the batch
Source   google/youtube-8m, losses.py, SoftmaxLoss, which takes probabilities for scores
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.losses.cells import Loss, Scores, mean_over_videos, scored
from models.ragged import add_by_video, at_cells, cells_of, rows_of
from models.tensors import upcast


def softmax(*, scores: Scores) -> Loss:
    """The cross-entropy between the softmax of the scores s over the rated classes and the labels, 1 / n_b each.

    mean_b e_b sum_c -w_c y_c / n_b log softmax(s)_c, n_b the number of labels of video b. Without labels it costs 0.
    """
    return partial(_softmax, scored(scores))


def _softmax(
    score: Callable[[Tensor], Tensor],
    logits_BC: Tensor,
    label_offsets: Tensor,
    label_indices: Tensor,
    *,
    rated_offsets: Tensor | None = None,
    rated_indices: Tensor | None = None,
    pos_weights_C: Tensor | None = None,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    scores_BC = score(upcast(logits_BC))
    rows = rows_of(label_offsets, label_indices)
    if rated_offsets is not None and rated_indices is not None:
        rated_BC = cells_of(rated_offsets, rated_indices, scores_BC.shape[1])
        scores_BC = scores_BC.masked_fill(~rated_BC, -torch.inf)
    # logsumexp and not log_softmax: a video without a rated class has no label to look up, so no NaN enters the loss.
    totals_B = scores_BC.logsumexp(dim=1)
    videos = rows.clamp(max=len(scores_BC) - 1)  # an entry of no video has some video here, and is left out below
    costs_L = (totals_B[videos] - at_cells(scores_BC, rows, label_indices)) / label_offsets.diff().clamp(min=1)[videos]
    if pos_weights_C is not None:
        costs_L = pos_weights_C[label_indices] * costs_L
    losses_B = add_by_video(scores_BC.new_zeros(len(scores_BC)), rows, costs_L.to(scores_BC.dtype))
    return mean_over_videos(losses_B, example_weights_B)

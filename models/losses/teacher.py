"""Cross-entropy against the predictions of a teacher.

Shapes   B videos in the batch   C classes   K classes that the teacher predicts for a video
"""

from __future__ import annotations

from torch import Tensor

from models.losses.cells import mean_over_videos
from models.losses.sparse_cross_entropy import softplus_sums
from models.tensors import upcast


def distillation(
    logits_BC: Tensor,
    classes_BK: Tensor,
    probabilities_BK: Tensor,
    example_weights_B: Tensor | None = None,
) -> Tensor:
    """mean_b e_b sum_c [softplus(z) - q z]: cross-entropy against a teacher's probabilities q, summed over all classes.

    Args:
        logits_BC: z, of any float dtype.
        classes_BK: int64, each class at most once for a video; q of the other classes is 0.
        probabilities_BK: q of these classes.
        example_weights_B: e_b; None: 1.

    Returns:
        A scalar in float32 (float64 for float64 logits).
    """
    logits_BC = upcast(logits_BC)
    taught_B = (probabilities_BK.to(logits_BC.dtype) * logits_BC.gather(1, classes_BK)).sum(dim=1)
    losses_B = softplus_sums(logits_BC, logits_BC.dtype) - taught_B
    return mean_over_videos(losses_B, example_weights_B)

"""Cross-entropy of probabilities, with a small number inside the logarithm.

Source   google/youtube-8m, losses.py, CrossEntropyLoss
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from models.losses.cells import Loss, sum_of_cells


def cross_entropy(*, epsilon: float) -> Loss:
    """A cell costs -log(p + epsilon) where the video has the label, else -log(1 - p + epsilon); p = sigmoid(z)."""

    def positive(logits: Tensor) -> Tensor:
        return -(logits.sigmoid() + epsilon).log()

    return partial(sum_of_cells, positive, lambda z: positive(-z))

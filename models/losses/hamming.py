"""Cross-entropy of clipped probabilities, for all classes alike or with a weight for each class.

NOTE: the clipping, which is that of Keras, leaves no gradient in a cell that is wrong by more than 1 - epsilon.

Source   Kyle Chung's (weighted) hamming loss
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from models.losses.cells import Loss, sum_of_cells


def hamming(*, epsilon: float) -> Loss:
    """A cell costs -log(q) where the video has the label, else -log(1 - q); q: sigmoid(z) in [epsilon, 1 - epsilon]."""
    return _hamming(epsilon, None)


def weighted_hamming(*, epsilon: float, class_weights_C: Tensor | None) -> Loss:
    """The costs of `hamming` times the weight of the cell's class (models.losses.weights.class_weights).

    Raises:
        ValueError: class_weights_C is None.
    """
    if class_weights_C is None:
        raise ValueError("weighted_hamming needs class_weights_C, but got None")
    return _hamming(epsilon, class_weights_C)


def _hamming(epsilon: float, class_weights_C: Tensor | None) -> Loss:
    def positive(logits: Tensor) -> Tensor:
        return -logits.sigmoid().clamp(epsilon, 1 - epsilon).log()

    return partial(sum_of_cells, positive, lambda z: positive(-z), class_weights_C=class_weights_C)

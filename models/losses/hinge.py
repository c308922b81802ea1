"""Hinge loss.

Source   google/youtube-8m, losses.py, HingeLoss, which takes probabilities for scores
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from models.losses.cells import Loss, Scores, scored, sum_of_cells


def hinge(*, margin: float, scores: Scores) -> Loss:
    """A cell costs max(0, margin - s) where the video has the label, else max(0, margin + s); s is its score."""
    score = scored(scores)
    return partial(sum_of_cells, lambda z: F.relu(margin - score(z)), lambda z: F.relu(margin + score(z)))

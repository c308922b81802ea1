"""The closed-form probe: it measures an encoder in seconds, without training.

It is a ridge regression of the labels on the embeddings (models/ridge.py). Of several penalties it takes the one whose
leave-one-out scores have the best GAP, so the validation videos are not used.

Shapes   H units of the embedding   C classes   S labelled videos in the sample
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.metrics import Accumulator
from models.ridge import NormalEquations, Ridge, logistic_scale
from tuner.training.contrastive.embeddings import BATCH_SIZE, embedded
from tuner.training.dataset import Dataset
from tuner.training.evaluation import batch_size_of
from tuner.training.precision import Precision

# In units of the mean eigenvalue of the centred X'X.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# The largest number of labelled videos that the probe is fitted to; so many measure an encoder well enough.
MAX_VIDEOS = 1 << 18
# Leave-one-out scores are computed for the first batches, of about this many labelled videos together.
SAMPLE = 2 * BATCH_SIZE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbe:
    """One linear layer on embeddings, [H] -> logits [C]."""

    weight_CH: Tensor
    bias_C: Tensor
    penalty: float  # the one of PENALTIES that was chosen


def fit(
    encoder: nn.Module,
    data: Dataset,
    *,
    width: int,
    device: torch.device,
    precision: Precision,
    penalties: Sequence[float] = PENALTIES,
    max_videos: int | None = MAX_VIDEOS,
) -> LinearProbe:
    """Fit the probe to the labelled training videos; the encoder is not changed.

    Args:
        encoder: maps a batch's inputs to embeddings [B, H].
        data: the videos.
        width: H of the embeddings.
        device: where the encoder is.
        precision: of the encoder's matrix products.
        penalties: to choose from, in ascending order, in units of the mean eigenvalue of the centred X'X.
        max_videos: of more labelled videos, a seeded sample of so many is taken; None: all are taken.
    """
    equations = NormalEquations(width, data.sizes.num_classes, device)
    sample: list[tuple[Tensor, Tensor, Tensor]] = []
    batch_size = BATCH_SIZE if data.sizes.level == "video" else batch_size_of(data.train.schema)
    batches = data.labelled_batches(batch_size, device, max_videos=max_videos)
    for embeddings_BH, batch in embedded(encoder, batches, precision):
        equations.update(embeddings_BH, batch.label_offsets, batch.label_indices)
        if sum(len(rows) for rows, *_ in sample) < SAMPLE:
            sample.append((embeddings_BH.float(), batch.label_offsets, batch.label_indices))
    ridge = equations.decompose()
    embeddings_SH, offsets, indices = _joined(sample)

    def gap(penalty: float) -> float:
        return _gap(_scores(ridge, penalty, embeddings_SH, offsets, indices), offsets, indices)

    # Of equally good penalties the largest; a single one needs no comparison.
    penalty = max(reversed(penalties), key=gap) if len(penalties) > 1 else penalties[0]
    slope, shift = logistic_scale(_scores(ridge, penalty, embeddings_SH, offsets, indices), offsets, indices)
    weight_CH, bias_C = ridge.solve(penalty * ridge.scale)
    return LinearProbe(weight_CH=slope * weight_CH, bias_C=slope * bias_C + shift, penalty=penalty)


def _scores(ridge: Ridge, penalty: float, embeddings_SH: Tensor, offsets: Tensor, indices: Tensor) -> Tensor:
    return ridge.leave_one_out(embeddings_SH, offsets, indices, penalty * ridge.scale)


def _gap(scores_SC: Tensor, offsets: Tensor, indices: Tensor) -> float:
    scores = Accumulator(scores_SC.shape[1])
    scores.update(scores_SC, offsets, indices)
    return scores.compute()["gap"]


def _joined(batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the embeddings and ragged labels of several batches."""
    lengths = torch.cat([offsets.diff() for _, offsets, _ in batches])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return torch.cat([x for x, _, _ in batches]), offsets, torch.cat([indices for _, _, indices in batches])

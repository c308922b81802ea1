"""The closed-form probe: how good an encoder is, in seconds and without training.

Ridge regression of the labels on the embeddings (models/ridge.py). Its penalty is the best of a few by the GAP of
leave-one-out scores: validation has no part in it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models import FusedEncoder
from models.metrics import Accumulator
from models.ridge import NormalEquations, Ridge, logistic_scale
from tuner.dataset import Dataset
from tuner.embeddings import BATCH_SIZE, embedded
from tuner.precision import Precision

# In units of the mean eigenvalue of the centred X'X.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Labelled videos that the probe is fitted to, at the most: a quarter of a million tell what an encoder is worth.
MOST_VIDEOS = 1 << 18
# Labelled videos that leave-one-out scores are computed for, at the most.
SAMPLE = 2 * BATCH_SIZE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearProbe:
    """One linear layer on embeddings, [H] -> logits [C]."""

    weight_CH: Tensor
    bias_C: Tensor
    penalty: float  # that of PENALTIES which was chosen


def fit(encoder: FusedEncoder, data: Dataset, *, device: torch.device, precision: Precision) -> LinearProbe:
    """Fit the probe to the labelled training videos, or MOST_VIDEOS of them; the encoder stays as it is."""
    equations = NormalEquations(encoder.width, data.sizes.num_classes, device)
    sample: list[tuple[Tensor, Tensor, Tensor]] = []
    batches = data.labelled_batches(BATCH_SIZE, device, most=MOST_VIDEOS)
    for embeddings_BH, batch in embedded(encoder, batches, precision):
        equations.update(embeddings_BH, batch.label_offsets, batch.label_indices)
        if len(sample) * BATCH_SIZE < SAMPLE:
            sample.append((embeddings_BH.float(), batch.label_offsets, batch.label_indices))
    ridge = equations.decompose()
    embeddings_SH, offsets, indices = _joined(sample)

    def gap(penalty: float) -> float:
        return _gap(_scores(ridge, penalty, embeddings_SH, offsets, indices), offsets, indices)

    penalty = max(reversed(PENALTIES), key=gap)  # of equal ones the largest
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
    """Embeddings and ragged labels of several batches as those of one."""
    lengths = torch.cat([offsets.diff() for _, offsets, _ in batches])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    return torch.cat([x for x, _, _ in batches]), offsets, torch.cat([indices for _, _, indices in batches])

"""What the members of an ensemble predict for the validation videos, as the choice of their weights needs it.

Shapes   M members   N videos   B videos in the batch   U classes kept of a video   C classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from data.batches import Batch, Batches, sample_rows
from data.cache.store import Cache
from models.ragged import cells_of
from tuner.export.member_weights import TOP_K, MemberPredictions
from tuner.training.evaluation import batch_size_of
from tuner.training.precision import Precision, forward

# Videos that choose the weights; of a larger split, a seeded sample. More videos would not improve a few weights, but
# cost time and memory.
MAX_VIDEOS, SAMPLE_SEED = 20_000, 0


def predict_members(models: Sequence[nn.Module], cache: Cache, precision: Precision) -> MemberPredictions:
    """Score the videos of a split, or a sample of MAX_VIDEOS of them, with every model."""
    rows = None
    if cache.num_videos > MAX_VIDEOS:
        rows = sample_rows(cache.num_videos, MAX_VIDEOS / cache.num_videos, SAMPLE_SEED)
    batches = Batches(cache, batch_size=batch_size_of(cache.schema), shuffle=False, rows=rows)
    parts = [_keep([forward(model, batch, precision).float() for model in models], batch) for batch in batches.epoch(0)]
    width = max(part.hits_NU.shape[1] for part in parts)
    paddings = [width - part.hits_NU.shape[1] for part in parts]
    probabilities = [
        np.pad(part.probabilities_MNU, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
        for part, padding in zip(parts, paddings, strict=True)
    ]
    hits = [np.pad(part.hits_NU, ((0, 0), (0, padding))) for part, padding in zip(parts, paddings, strict=True)]
    return MemberPredictions(
        probabilities_MNU=np.concatenate(probabilities, axis=1),
        hits_NU=np.concatenate(hits),
        positives_N=np.concatenate([part.positives_N for part in parts]),
    )


def _keep(logits_MBC: Sequence[Tensor], batch: Batch) -> MemberPredictions:
    """Keep for each video the rated classes that are among the TOP_K best of some member."""
    num_videos, num_classes = logits_MBC[0].shape
    kept_BC = torch.zeros(num_videos, num_classes, dtype=torch.bool)
    for logits_BC in logits_MBC:
        kept_BC.scatter_(1, logits_BC.topk(min(TOP_K, num_classes), dim=1).indices, True)
    if batch.rated_offsets is not None and batch.rated_indices is not None:
        kept_BC &= cells_of(batch.rated_offsets, batch.rated_indices, num_classes)
    labels_BC = cells_of(batch.label_offsets, batch.label_indices, num_classes)
    rows, classes = kept_BC.nonzero(as_tuple=True)
    columns = (kept_BC.cumsum(dim=1) - 1)[rows, classes]
    width = int(kept_BC.sum(dim=1).max())
    probabilities_MBU = torch.full((len(logits_MBC), num_videos, width), -1.0)
    for probabilities_BU, logits_BC in zip(probabilities_MBU, logits_MBC, strict=True):
        probabilities_BU[rows, columns] = logits_BC[rows, classes].sigmoid()
    hits_BU = torch.zeros(num_videos, width, dtype=torch.bool)
    hits_BU[rows, columns] = labels_BC[rows, classes]
    return MemberPredictions(
        probabilities_MNU=probabilities_MBU.numpy(),
        hits_NU=hits_BU.numpy(),
        positives_N=batch.label_offsets.diff().numpy(),
    )

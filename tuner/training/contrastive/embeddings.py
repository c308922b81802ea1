"""What a frozen encoder makes of videos, computed once: the data that a probe trains on.

Shapes   N labelled training videos   H units of the embedding
"""

import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.batches import Batch, Batches
from data.cache.statistics import Moments
from data.sampling import ALL, FramesConfig
from models import FeatureStatistics, FusedEncoder, Sizes
from models.losses.weights import fixed_bootstrap_weights
from tuner.training.dataset import Dataset, feature_statistics, take
from tuner.training.precision import Precision, forward
from tuner.training.ranks import ALONE, Ranks

BATCH_SIZE = 1024
# Larger embeddings go to a file that is mapped into memory: 4.9 million videos of 1,200 float16 are 11.8 GB.
LARGEST_IN_MEMORY = 2 << 30  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """The labelled training videos as an encoder sees them; fits `data.batches.Columns` and training."""

    features_ND: NDArray[np.float16]
    label_offsets: NDArray[np.int64]
    label_indices: NDArray[np.int32]
    num_classes: int
    fingerprint: str
    ids: NDArray[np.bytes_]
    vocabulary: str | None = None  # the data set's
    frame_offsets: None = None  # the rows are embeddings, not frames
    rated_offsets: None = None  # and all classes are rated
    rated_indices: None = None

    @property
    def sizes(self) -> Sizes:
        """One feature, the embedding."""
        return Sizes(features={"embedding": self.features_ND.shape[1]}, num_classes=self.num_classes)

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """Of every unit of the embedding, and of the labels."""
        return feature_statistics(Moments.of_columns(self, self.num_classes).statistics())

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled; the last, smaller batch of an epoch is left out, as in `Dataset.train_batches`."""
        return Batches(
            self,
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
            rank=ranks.rank,
            world_size=ranks.size,
            drop_last=True,
            device=device,
        )

    def bootstrap_weights(self, seed: int) -> torch.Tensor:
        """How often each video counts in a fixed bootstrap sample, [N] float32."""
        return fixed_bootstrap_weights(len(self.features_ND), seed)


def embed(encoder: FusedEncoder, data: Dataset, *, device: torch.device, precision: Precision) -> Embeddings:
    """The embeddings of the labelled training videos, by the encoder in eval mode.

    Args:
        encoder: on `device`; stays as it is.
        data: its labelled rows alone are embedded.
        device: where the encoder is.
        precision: of its matrix products.
    """
    batches = data.labelled_batches(BATCH_SIZE, device)
    features_ND = _empty(batches.num_videos, encoder.width)
    first = 0
    for embeddings_BH, batch in embedded(encoder, batches, precision):
        features_ND[first : first + len(batch.rows)] = embeddings_BH.half().cpu().numpy()
        first += len(batch.rows)
    rows = np.arange(data.train.num_videos) if data.labelled_rows is None else data.labelled_rows
    offsets, labels = take(data.train.label_offsets, data.train.label_indices, rows)
    return Embeddings(
        features_ND=features_ND,
        label_offsets=offsets,
        label_indices=labels,
        num_classes=data.sizes.num_classes,
        fingerprint=uuid.uuid4().hex,  # nobody else has these: none of them may be taken for another's on a GPU
        ids=data.train.ids[rows],
        vocabulary=data.vocabulary,
    )


def embedded(encoder: nn.Module, batches: Batches, precision: Precision) -> Iterator[tuple[Tensor, Batch]]:
    """The embeddings [B, H] of every batch, by the encoder in eval mode; float32 or, under autocast, bfloat16."""
    was_training = encoder.training
    encoder.eval()
    for batch in batches.epoch(0):
        yield forward(encoder, batch, precision), batch
    encoder.train(was_training)


def _empty(num_videos: int, width: int) -> NDArray[np.float16]:
    """Room for the embeddings: in memory, or beyond the limit in a file that vanishes with its last user."""
    if num_videos * width * 2 <= LARGEST_IN_MEMORY:
        return np.empty((num_videos, width), np.float16)
    with tempfile.TemporaryFile(prefix="embeddings-") as file:
        return np.memmap(file, np.float16, "w+", shape=(num_videos, width))

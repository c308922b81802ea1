"""The embeddings that a frozen encoder gives for the labelled videos, computed once: a linear probe trains on them.

Shapes   N labelled training videos   H units of the embedding
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.batches import Batch, Batches
from data.cache.statistics import statistics_of
from data.residency import Residency
from data.sampling import ALL, FramesConfig
from models import FeatureStatistics, FusedEncoder, Sizes
from models.losses.weights import fixed_bootstrap_weights
from tuner.training.dataset import Dataset, feature_statistics, take
from tuner.training.precision import Precision, forward
from tuner.training.ranks import ALONE, Ranks

BATCH_SIZE = 1024
# Larger arrays of embeddings are a memory-mapped file: those of 4.9 million videos, 1,200 float16 each, take 11.8 GB.
LARGEST_IN_MEMORY = 2 << 30  # bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """The embeddings and labels of the labelled training videos; a `data.batches.Columns` and a `TrainingData`."""

    features_ND: NDArray[np.float16]
    label_offsets: NDArray[np.int64]
    label_indices: NDArray[np.int32]
    num_classes: int
    fingerprint: str
    ids: NDArray[np.bytes_]
    vocabulary: str | None = None  # the csv of the dataset's classes
    frame_offsets: None = None  # a row is one embedding, not several frames
    rated_offsets: None = None  # all classes are rated
    rated_indices: None = None
    stream: None = None  # the embeddings are here
    parts: None = None
    before_batch: Callable[[], None] | None = None  # as that of a `Dataset`
    residency: Residency = field(default_factory=Residency)

    @property
    def sizes(self) -> Sizes:
        """The widths: one feature, the embedding."""
        return Sizes(features={"embedding": self.features_ND.shape[1]}, num_classes=self.num_classes)

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """The moments of every unit of the embedding, and the label counts."""
        return feature_statistics(statistics_of(self, self.num_classes))

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled batches; the last, smaller one of an epoch is left out, as in `Dataset.train_batches`."""
        return Batches(
            self,
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
            rank=ranks.rank,
            world_size=ranks.size,
            drop_last=True,
            device=device,
            before_batch=self.before_batch,
            residency=self.residency,
        )

    def bootstrap_weights(self, seed: int) -> torch.Tensor:
        """How often each video counts in a fixed bootstrap sample, [N] float32."""
        return fixed_bootstrap_weights(len(self.features_ND), seed)


def embed(encoder: FusedEncoder, data: Dataset, *, device: torch.device, precision: Precision) -> Embeddings:
    """Compute the embeddings of the labelled training videos, with the encoder in eval mode.

    Args:
        encoder: on `device`; it is not changed.
        data: only its labelled rows are embedded.
        device: where the encoder is.
        precision: of the encoder's matrix products.
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
        fingerprint=uuid.uuid4().hex,  # unique: what is kept on a GPU by fingerprint must not be mixed up
        ids=data.train.ids[rows],
        vocabulary=data.vocabulary,
        before_batch=data.before_batch,
        residency=Residency(data.residency.wanted, beside=data.residency),
    )


def embedded(encoder: nn.Module, batches: Batches, precision: Precision) -> Iterator[tuple[Tensor, Batch]]:
    """Yield the embeddings [B, H] of every batch, by the encoder in eval mode: float32, or bfloat16 under autocast."""
    was_training = encoder.training
    encoder.eval()
    for batch in batches.epoch(0):
        yield forward(encoder, batch, precision), batch
    encoder.train(was_training)


def _empty(num_videos: int, width: int) -> NDArray[np.float16]:
    """Allocate the embeddings: in memory, or above the limit in a temporary file that its last user deletes.

    Raises:
        OSError: the disk has no room for them.
    """
    if num_videos * width * 2 <= LARGEST_IN_MEMORY:
        return np.empty((num_videos, width), np.float16)
    with tempfile.TemporaryFile(prefix="embeddings-") as file:
        if hasattr(os, "posix_fallocate"):
            # A write to a mapped page for which the disk has no room kills the process (SIGBUS): the room is taken now.
            try:
                os.posix_fallocate(file.fileno(), 0, num_videos * width * 2)
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{tempfile.gettempdir()}: embeddings") from error
        return np.memmap(file, np.float16, "w+", shape=(num_videos, width))

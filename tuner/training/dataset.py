"""The decoded data of an experiment, and what a trial reads of it.

Runs without ray, mlflow, optuna, pydantic and yaml, so that a trial can be trained on a bare GPU machine.

Shapes   N videos   rows: indices of videos in a split
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from data.batches import Batches, sample_rows
from data.cache.progress import BuildProgress
from data.cache.recipe import shard_exists
from data.cache.statistics import Statistics
from data.cache.store import Cache
from data.errors import CacheError, DataError
from data.residency import Residency
from data.sampling import ALL, FramesConfig
from models import FeatureStatistics, Sizes
from models.losses.weights import fixed_bootstrap_weights
from tuner.training.data_config import DataConfig, write_sample
from tuner.training.ranks import ALONE, Ranks

# Every trial, search and machine draws the same validation videos and the same labelled videos.
VALIDATION_SEED = LABEL_SEED = 0


class TrainingData(Protocol):
    """What supervised training reads of its data: `Dataset` provides it, and so do `contrastive.embeddings`."""

    @property
    def sizes(self) -> Sizes:
        """Widths of the features and number of classes."""

    @property
    def statistics(self) -> FeatureStatistics:
        """The statistics of the training videos."""

    @property
    def vocabulary(self) -> str | None:
        """The csv with the names and counts of the classes."""

    @property
    def ids(self) -> np.ndarray:
        """The ids of the videos; the `rows` of a batch index them."""

    @property
    def residency(self) -> Residency:
        """The features that are kept on GPUs, and that make room where training runs out of memory."""

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled videos with their labels: this rank's part of every batch."""

    def bootstrap_weights(self, seed: int) -> torch.Tensor:
        """How often each row counts in a fixed bootstrap sample, [rows] float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The data of a trial: a training split and a validation split."""

    train: Cache
    validate: Cache
    validate_rows: np.ndarray | None  # sorted rows of `validate` that are scored after each epoch; None: all
    labelled_rows: np.ndarray | None  # sorted rows of `train` whose labels are used; None: all
    sizes: Sizes
    statistics: FeatureStatistics  # moments of all training videos; label counts and number of the labelled videos
    vocabulary: str | None = None  # csv with the classes' names and counts
    # Called before each batch that a trial reads, in all of its phases; it raises where the trial is to end. Where
    # several ranks train, it is called before the training batches only: of these every rank has equally many.
    before_batch: Callable[[], None] | None = None
    residency: Residency = field(default_factory=Residency)  # the features on GPUs; all trials of a process share it

    @property
    def fingerprint(self) -> str:
        """Identifies the content of both splits; only searches with the same fingerprint are ranked together."""
        labelled = "" if self.labelled_rows is None else f"-{len(self.labelled_rows)}-labelled"
        return f"{self.train.fingerprint[:16]}-{self.validate.fingerprint[:16]}{labelled}"

    @property
    def ids(self) -> np.ndarray:
        """The ids of all rows of `train`."""
        return self.train.ids

    def with_labels_of(self, rows: np.ndarray) -> "Dataset":
        """A copy in which only these sorted rows of `train` have labels to learn from."""

        def counts(offsets: np.ndarray, indices: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.bincount(take(offsets, indices, rows)[1], minlength=self.sizes.num_classes))

        train, rated_C = self.train, None
        if train.rated_offsets is not None and train.rated_indices is not None:
            rated_C = counts(train.rated_offsets, train.rated_indices)
        labels_C = counts(train.label_offsets, train.label_indices)
        statistics = replace(self.statistics, num_videos=len(rows), label_counts_C=labels_C, rated_counts_C=rated_C)
        return replace(self, labelled_rows=rows, statistics=statistics)

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled labelled videos; the last, smaller batch of an epoch is left out, as BatchNorm needs several videos.

        The ranks share a batch of `batch_size` videos. It is the same batch for any number of ranks where each has all
        features; otherwise it has videos of each rank's part, and the smallest part ends the epoch.
        """
        return self._batches(
            self.train,
            device,
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
            rows=self.labelled_rows,
            rank=ranks.rank,
            world_size=ranks.size,
            drop_last=True,
            frames=frames,
        )

    def bootstrap_weights(self, seed: int) -> torch.Tensor:
        """How often each video of `train` counts in a fixed bootstrap sample of the labelled videos, [rows] float32."""
        weights_N = fixed_bootstrap_weights(self.statistics.num_videos, seed)
        if self.labelled_rows is None:
            return weights_N
        weights = torch.zeros(self.train.num_videos)
        weights[torch.from_numpy(self.labelled_rows)] = weights_N
        return weights

    def pretrain_batches(self, batch_size: int, seed: int, device: torch.device) -> Batches:
        """Shuffled training videos, labelled or not; the last, smaller batch is left out.

        Raises:
            DataError: there are fewer videos than one batch needs.
        """
        if self.train.num_videos < batch_size:
            raise DataError(
                f"data.train: {self.train.num_videos:,} videos do not fill one batch of pretraining; "
                f"set pretrain.batch_size below {batch_size:,}"
            )
        return self._batches(self.train, device, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True)

    def labelled_batches(self, batch_size: int, device: torch.device, max_videos: int | None = None) -> Batches:
        """The labelled training videos in cache order, each once; of more than `max_videos`, a seeded sample."""
        rows, num_videos = self.labelled_rows, self.statistics.num_videos
        if max_videos is not None and num_videos > max_videos:
            chosen = sample_rows(num_videos, max_videos / num_videos, LABEL_SEED)
            rows = chosen if rows is None else rows[chosen]
        return self._batches(self.train, device, batch_size=batch_size, shuffle=False, rows=rows)

    def validate_batches(self, batch_size: int, device: torch.device, ranks: Ranks = ALONE) -> Batches:
        """The scored validation videos in cache order, each once; each rank gets one piece of consecutive videos.

        Where the ranks share the features, a rank's piece is what it has of them.
        """
        rows = self.validate_rows
        if ranks.size == 1:
            return self._batches(self.validate, device, batch_size=batch_size, shuffle=False, rows=rows)
        if self.validate.parts is not None:
            return Batches(
                self.validate,
                batch_size=batch_size * ranks.size,
                shuffle=False,
                rows=rows,
                rank=ranks.rank,
                world_size=ranks.size,
                device=device,
                residency=self.residency,
            )
        rows = ranks.share(np.arange(self.validate.num_videos) if rows is None else rows)
        return Batches(
            self.validate, batch_size=batch_size, shuffle=False, rows=rows, device=device, residency=self.residency
        )

    def _batches(self, cache: Cache, device: torch.device, **options: Any) -> Batches:
        return Batches(cache, device=device, before_batch=self.before_batch, residency=self.residency, **options)


def missing_shards(data: Dataset) -> list[str]:
    """The paths of the shards that `data` was decoded from and that no longer exist."""
    return [
        shard.path for split in (data.train, data.validate) for shard in split.shards if not shard_exists(shard.path)
    ]


def open_dataset(
    config: DataConfig,
    progress: Callable[[BuildProgress], None] | None = None,
    *,
    fingerprint: str | None = None,
    ranks: Ranks = ALONE,
) -> Dataset:
    """Open the training and validation splits; each node decodes them once, or what data.cache says.

    With data.cache: share, several ranks must call it together.

    Args:
        config: the shards.
        progress: called while shards are decoded.
        fingerprint: of the dataset that a search began with; other data is refused. None: any data.
        ranks: that share the videos where not every node keeps all of them.

    Raises:
        DataError: as `DataConfig.open` raises it; or a split has no video, or no video with a label.
    """
    write_sample(config)
    known = fingerprint.split("-") if fingerprint else (None, None)
    train = config.open(config.train, progress, fingerprint=known[0], ranks=ranks)
    validate = config.open(config.validate, progress, fingerprint=known[1], ranks=ranks)
    for name, split in (("train", train), ("validate", validate)):
        if split.num_videos == 0:
            raise CacheError(f"data.{name}: the shards hold no video: {getattr(config, name)}")
    rows = None
    if config.validate_fraction < 1:
        rows = sample_rows(validate.num_videos, config.validate_fraction, VALIDATION_SEED)
    if not _has_positive(validate, rows):
        raise CacheError(
            "data.validate: no video that is scored has a label, so every GAP would be 0; "
            "use other shards or a larger data.validate_fraction"
        )
    data = Dataset(
        train=train,
        validate=validate,
        validate_rows=rows,
        labelled_rows=None,
        sizes=config.sizes,
        statistics=feature_statistics(train.statistics(progress)),
        vocabulary=config.vocabulary,
        residency=Residency(config.resident if config.cache != "none" else False),
    )
    if config.label_fraction < 1:
        data = data.with_labels_of(sample_rows(train.num_videos, config.label_fraction, LABEL_SEED))
    if not data.statistics.label_counts_C.any():
        raise CacheError(
            f"data.train: none of the {data.statistics.num_videos:,} videos to learn from has a label; "
            "use other shards or a larger data.label_fraction"
        )
    return data


def feature_statistics(statistics: Statistics) -> FeatureStatistics:
    """The statistics of a split as tensors."""
    return FeatureStatistics(
        num_videos=statistics.num_videos,
        mean_D=torch.from_numpy(statistics.mean_D),
        variance_D=torch.from_numpy(statistics.variance_D),
        label_counts_C=torch.from_numpy(statistics.label_counts_C),
        rated_counts_C=None if statistics.rated_counts_C is None else torch.from_numpy(statistics.rated_counts_C),
    )


def take(offsets: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels, or rated classes, of some rows in the order of `rows`: offsets int64 [rows + 1], classes int32."""
    begins, ends = offsets[rows], offsets[rows + 1]
    taken = np.concatenate(([0], np.cumsum(ends - begins)))
    return taken, indices[np.arange(taken[-1]) + np.repeat(begins - taken[:-1], ends - begins)]


def _has_positive(cache: Cache, rows: np.ndarray | None) -> bool:
    counts = np.diff(cache.label_offsets)
    return bool((counts if rows is None else counts[rows]).any())

"""The data of an experiment: which shards there are, and what a trial reads of them.

Runs without ray, mlflow, optuna, pydantic and yaml, so that a trial can be trained on a bare GPU machine.

Shapes   N videos   rows: indices of videos in a split
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from data import sample
from data.batches import Batches, sample_rows
from data.cache.progress import BuildProgress
from data.cache.recipe import find_shards, shard_exists
from data.cache.statistics import Statistics
from data.cache.store import Cache, default_directory, find_cache, open_cache
from data.errors import CacheError, DataError
from data.sampling import ALL, FramesConfig
from data.schema import FEATURES, MAX_FRAMES, NUM_CLASSES, Level, Schema
from models import FeatureStatistics, Sizes
from models.losses.weights import fixed_bootstrap_weights
from tuner.training import vocabulary
from tuner.training.ranks import ALONE, Ranks

Patterns = str | tuple[str, ...]

# Every trial, search and machine draws the same validation videos and the same labelled videos.
VALIDATION_SEED = LABEL_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Sample shards, which a search writes where they are missing; every node writes the same bytes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    directory: str  # local folder in which the shards are written: train*.tfrecord, validate*.tfrecord, test*.tfrecord
    train: int = 4000  # number of training videos
    validate: int = 1000  # number of validation videos
    test: int = 0  # number of test videos
    shards: int = 4  # number of shards of each split
    seed: int = 1  # seed of the features and labels of the videos; the same seed gives the same bytes
    # Number of frames of the longest video; has an effect at level frame and segment only.
    frames: int = sample.NUM_FRAMES

    def __post_init__(self) -> None:
        for name in ("train", "validate", "shards", "frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if self.test < 0:
            raise ValueError(f"test must not be negative, but got {self.test}")
        if "://" in self.directory:
            raise ValueError("directory must be a local folder, as every machine writes its own; it cannot be a URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The shards of an experiment and how they are read; the same for all trials."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    train: Patterns  # the training shards: a glob or a list of globs, of local paths or fsspec URLs
    validate: Patterns  # the validation shards: a glob or a list of globs, of local paths or fsspec URLs
    # The test shards: a glob or a list of globs; only the winner is scored on them, once. null: there are none.
    test: Patterns | None = None
    # Fraction of the validation videos on which a trial is scored after each epoch; the winner is scored on all of them
    # at the end.
    validate_fraction: float = 1.0
    # Fraction of the training videos whose labels are used. pipeline supervised: the other videos are left out.
    # pipeline contrastive: pretraining uses all videos.
    label_fraction: float = 1.0
    # What a record of the shards holds. video: one vector of each feature for a video. frame: the vectors of all frames
    # of a video. segment: as frame, and the segments of 5 frames that were rated.
    level: Level = "video"
    # Names of the features in the shards, each with its width in columns; {}: those of YouTube-8M.
    features: Mapping[str, int] = field(default_factory=dict)
    # Number of frames that are read of each video, from its first; has an effect at level frame and segment only.
    max_frames: int = MAX_FRAMES
    num_classes: int = NUM_CLASSES  # number of classes; a label is an index from 0 to num_classes - 1
    # What happens where a shard is damaged. fail: the search ends with an error. skip: training goes on without the
    # shard, and the search reports it.
    on_bad_shard: Literal["fail", "skip"] = "fail"
    # A CSV file with the columns Index, Name (exports show it) and TrainVideoCount (loss.kind weighted_hamming needs
    # it). null: the classes have no names.
    vocabulary: str | None = None
    # Local folder in which each machine keeps the decoded shards; null: the folder in the environment variable
    # TUNER_CACHE, else ~/.cache/tuner.
    cache: str | None = None
    # Number format in which the decoded shards hold the video-level features.
    dtype: Literal["float16", "float32"] = "float16"
    # Sample shards, which the search writes before it starts where they are missing; null: none are written.
    sample: SampleConfig | None = None

    def __post_init__(self) -> None:
        for name in ("validate_fraction", "label_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], but got {getattr(self, name)}")
        if self.cache is not None and "://" in self.cache:
            raise ValueError("cache must be a local folder, as every machine has its own; it cannot be a URL")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {self.num_classes}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, but got {self.max_frames}")
        if not self.features:
            object.__setattr__(self, "features", dict(FEATURES[self.level]))
        for name, width in self.features.items():
            if width < 1:
                raise ValueError(f"the width of feature {name!r} must be at least 1, but got {width}")

    @property
    def schema(self) -> Schema:
        """The schema that every shard of the experiment must have."""
        return Schema(
            features=dict(self.features), num_classes=self.num_classes, level=self.level, max_frames=self.max_frames
        )

    @property
    def sizes(self) -> Sizes:
        """The widths and counts that a model is built from."""
        return Sizes.of(self.schema)

    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of their indices; None where the experiment names no vocabulary.

        Raises:
            ConfigError: the vocabulary cannot be read, or does not name exactly these classes.
        """
        return None if self.vocabulary is None else vocabulary.read(self.vocabulary, self.num_classes)

    @property
    def cache_directory(self) -> Path:
        """The folder in which this node keeps its decoded shards."""
        return Path(self.cache).expanduser() if self.cache else default_directory()

    def open(
        self,
        patterns: Patterns,
        progress: Callable[[BuildProgress], None] | None = None,
        require_labels: bool = True,
        fingerprint: str | None = None,
    ) -> Cache:
        """Open the cache of the decoded shards that match; decode them first where this node has no cache of them.

        Args:
            patterns: globs of the shards.
            progress: called while shards are decoded.
            require_labels: refuse records without labels.
            fingerprint: the first digits of a cache's fingerprint; a cache with it is opened even if the shards have
                changed or gone.

        Raises:
            DataError: no shard matches, a shard is damaged, the content has another fingerprint, or the disk is full.
        """
        if fingerprint is not None:
            kept = find_cache(self.cache_directory, fingerprint, self.dtype)
            if kept is not None:
                return kept
        cache = open_cache(
            find_shards(patterns),
            self.schema,
            self.cache_directory,
            on_bad_shard=self.on_bad_shard,
            dtype=self.dtype,
            progress=progress,
            require_labels=require_labels,
        )
        if fingerprint is not None and not cache.fingerprint.startswith(fingerprint):
            raise DataError(
                f"{patterns}: the data has changed since the search began ({fingerprint} -> "
                f"{cache.fingerprint[: len(fingerprint)]}, {len(cache.shards)} shards, {cache.num_videos:,} videos), "
                "so new trials do not compare with its old ones; put the old shards back, or start a new search"
            )
        return cache


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

        The ranks share a batch of `batch_size` videos, so that it is the same batch for any number of ranks.
        """
        return Batches(
            self.train,
            batch_size=batch_size,
            shuffle=True,
            seed=seed,
            rows=self.labelled_rows,
            rank=ranks.rank,
            world_size=ranks.size,
            drop_last=True,
            device=device,
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
        return Batches(self.train, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True, device=device)

    def labelled_batches(self, batch_size: int, device: torch.device, max_videos: int | None = None) -> Batches:
        """The labelled training videos in cache order, each once; of more than `max_videos`, a seeded sample."""
        rows, num_videos = self.labelled_rows, self.statistics.num_videos
        if max_videos is not None and num_videos > max_videos:
            chosen = sample_rows(num_videos, max_videos / num_videos, LABEL_SEED)
            rows = chosen if rows is None else rows[chosen]
        return Batches(self.train, batch_size=batch_size, shuffle=False, rows=rows, device=device)

    def validate_batches(self, batch_size: int, device: torch.device, ranks: Ranks = ALONE) -> Batches:
        """The scored validation videos in cache order, each once; each rank gets one piece of consecutive videos."""
        rows = self.validate_rows
        if ranks.size > 1:
            rows = ranks.share(np.arange(self.validate.num_videos) if rows is None else rows)
        return Batches(self.validate, batch_size=batch_size, shuffle=False, rows=rows, device=device)


def write_sample(config: DataConfig) -> None:
    """Write the sample shards that the experiment asks for, where they are missing."""
    if config.sample is not None:
        sample.write_splits(
            Path(config.sample.directory),
            num_videos={"train": config.sample.train, "validate": config.sample.validate, "test": config.sample.test},
            num_shards=config.sample.shards,
            num_classes=config.num_classes,
            seed=config.sample.seed,
            features=config.features,
            level=config.level,
            num_frames=config.sample.frames,
        )


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
) -> Dataset:
    """Open the training and validation splits; each node decodes them once.

    Args:
        config: the shards.
        progress: called while shards are decoded.
        fingerprint: of the dataset that a search began with; other data is refused. None: any data.

    Raises:
        DataError: as `DataConfig.open` raises it; or a split has no video, or no video with a label.
    """
    write_sample(config)
    known = fingerprint.split("-") if fingerprint else (None, None)
    train = config.open(config.train, progress, fingerprint=known[0])
    validate = config.open(config.validate, progress, fingerprint=known[1])
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
        statistics=feature_statistics(train.statistics()),
        vocabulary=config.vocabulary,
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

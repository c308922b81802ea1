"""The block `data` of an experiment: which shards there are, how they are read, and the sample that may be written.

Runs without ray, mlflow, optuna, pydantic and yaml, so that a trial can be trained on a bare GPU machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np

from data import sample
from data.cache.build import refuse_too_many
from data.cache.progress import BuildProgress
from data.cache.recipe import find_shards
from data.cache.share import Known, with_all
from data.cache.store import Cache, built_cache, default_directory, find_cache, open_cache
from data.errors import DataError, NoShardsError
from data.ranges import Count, Fraction, Range, Seed, check_ranges
from data.residency import Wanted
from data.schema import FEATURES, MAX_BAD_RECORDS, MAX_FRAMES, NUM_CLASSES, Level, Schema
from models import Sizes
from tuner.training import vocabulary
from tuner.training.ranks import ALONE, Ranks

Patterns = str | tuple[str, ...]
CacheMode = Literal["node", "share", "none"]
CACHE_MODES: tuple[CacheMode, ...] = get_args(CacheMode)
BUFFERS, FRAME_BUFFER = {"video": 65_536}, 4_096  # videos: 150 MB of features, and up to 1.4 GB of frames


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig:
    """Sample shards, which a search writes where they are missing; every node writes the same bytes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    directory: str  # local folder in which the shards are written: train*.tfrecord, validate*.tfrecord, test*.tfrecord
    train: Annotated[int, Range(1, sample.VIDEOS.high)] = 4000  # number of training videos
    validate: Annotated[int, Range(1, sample.VIDEOS.high)] = 1000  # number of validation videos
    test: Annotated[int, sample.VIDEOS] = 0  # number of test videos
    shards: Annotated[int, sample.SHARDS] = 4  # number of shards of each split
    seed: Seed = 1  # seed of the features and labels of the videos; the same seed gives the same bytes
    # Number of frames of the longest video; has an effect at level frame and segment only.
    frames: Annotated[int, Range(1, 10_000)] = sample.NUM_FRAMES

    def __post_init__(self) -> None:
        check_ranges(self)
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
    validate_fraction: Fraction = 1.0
    # Fraction of the training videos whose labels are used. pipeline supervised: the other videos are left out.
    # pipeline contrastive: pretraining uses all videos.
    label_fraction: Fraction = 1.0
    # What a record of the shards holds. video: one vector of each feature for a video. frame: the vectors of all frames
    # of a video. segment: as frame, and the segments of 5 frames that were rated.
    level: Level = "video"
    # Names of the features in the shards, each with its width in columns; {}: those of YouTube-8M.
    features: Mapping[str, Count] = field(default_factory=dict)
    # Key in the records by what it stands for, where it is not the usual one: of id, labels, a feature, or, at level
    # segment, segment_start_times, segment_labels and segment_scores. Example: {labels: clip/label/index}.
    keys: Mapping[str, str] = field(default_factory=dict)
    # Number of frames that are read of each video, from its first; has an effect at level frame and segment only.
    max_frames: Count = MAX_FRAMES
    num_classes: Count = NUM_CLASSES  # number of classes; a label is an index from 0 to num_classes - 1
    # What happens where a shard is damaged. fail: the search ends with an error. skip: training goes on without the
    # shard, and the search reports it.
    on_bad_shard: Literal["fail", "skip"] = "fail"
    # What happens where a shard or a video is in two of the splits. error: the search does not start. allow: it starts,
    # and says so.
    overlap: Literal["error", "allow"] = "error"
    # What happens where a record is wrong (a value that is not finite, a label out of range, another width) in a shard
    # whose CRCs all match. error: the shard counts as damaged. skip: the record is left out, and the search reports how
    # many were.
    on_bad_record: Literal["error", "skip"] = "error"
    # Number of bad records of a split that may be left out; the search ends with an error at the next one. A shard with
    # more is damaged (on_bad_shard). It has an effect with on_bad_record: skip only.
    bad_record_limit: Count = MAX_BAD_RECORDS
    # Number of processes that decode the shards on each machine; null: the number in the environment variable
    # TUNER_DECODE_WORKERS, else as many as the CPUs and a quarter of the memory allow, of the machine or its container.
    decode_workers: Annotated[int, Range(1, 4096)] | None = None
    # A CSV file with the columns Index, Name (exports show it) and TrainVideoCount (loss.kind weighted_hamming needs
    # it). null: the classes have no names.
    vocabulary: str | None = None
    # What each machine keeps on its disk of the decoded shards. node: everything. share: with several workers for a
    # trial, the features of each worker's share of the shards; a process that works alone, such as that which scores
    # the best trial, keeps none. none: no features; every epoch reads the shards again. Labels are kept always.
    cache: CacheMode = "node"
    # Number of videos, at the least, that cache: none shuffles among themselves; it keeps twice as many in memory. They
    # are those of whole shards, which are shuffled before. null: 65,536 at level video, 4,096 at the others.
    buffer: Annotated[int, Range(1, 1 << 31)] | None = None
    # Local folder in which each machine keeps the decoded shards; null: the folder in the environment variable
    # TUNER_CACHE, else ~/.cache/tuner.
    cache_folder: str | None = None
    # Number format in which the decoded shards hold the video-level features.
    dtype: Literal["float16", "float32"] = "float16"
    # Whether all features are kept on a GPU, for all trials of a worker. auto: once an epoch has shown that they fit
    # beside what training needs. true: from the first step. false: never. With auto and true, a training that runs out
    # of memory drops them and continues. It has no effect on a CPU.
    resident: Wanted = "auto"
    # Sample shards, which the search writes before it starts where they are missing; null: none are written.
    sample: SampleConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.cache_folder is not None and "://" in self.cache_folder:
            raise ValueError("cache_folder must be a local folder, as every machine has its own; it cannot be a URL")
        if self.buffer is not None and self.cache != "none":
            raise ValueError(f"buffer has an effect with cache: none only, but cache is {self.cache}; leave it out")
        if self.resident is True and self.cache == "none":
            raise ValueError("resident: true has no effect with cache: none, which keeps no features; leave it out")
        if not self.features:
            object.__setattr__(self, "features", dict(FEATURES[self.level]))
        _ = self.schema  # it checks itself

    @property
    def schema(self) -> Schema:
        """The schema that every shard of the experiment must have."""
        return Schema(
            features=dict(self.features),
            num_classes=self.num_classes,
            level=self.level,
            max_frames=self.max_frames,
            keys=dict(self.keys),
        )

    @property
    def max_bad_records(self) -> int:
        """How many bad records may be left out of a split."""
        return self.bad_record_limit if self.on_bad_record == "skip" else 0

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
        return Path(self.cache_folder).expanduser() if self.cache_folder else default_directory()

    @property
    def window(self) -> int:
        """How many videos, at the least, are shuffled among themselves where no features are kept."""
        return self.buffer or BUFFERS.get(self.level, FRAME_BUFFER)

    def built(self, shards: Sequence[str]) -> Cache | None:
        """The cache of these shards; None where this node has not decoded them.

        Raises:
            DataError: a shard is missing or cannot be asked for.
        """
        return built_cache(
            shards,
            self.schema,
            self.cache_directory,
            on_bad_record=self.on_bad_record,
            dtype=self.dtype,
            features=self.cache == "node",
        )

    def open(
        self,
        patterns: Patterns,
        progress: Callable[[BuildProgress], None] | None = None,
        require_labels: bool = True,
        fingerprint: str | None = None,
        ranks: Ranks = ALONE,
    ) -> Cache:
        """Open the cache of the decoded shards that match; decode them first where this node has no cache of them.

        With cache: share, several ranks must call it together.

        Args:
            patterns: globs of the shards.
            progress: called while shards are decoded.
            require_labels: refuse records without labels.
            fingerprint: the first digits of a cache's fingerprint; a cache with it is opened even if the shards have
                changed or gone.
            ranks: that share the videos, unless each node keeps everything.

        Raises:
            DataError: no shard matches, a shard is damaged, the content has another fingerprint, the disk is full, or
                a rank would have no shard.
        """
        if fingerprint is not None and self.cache == "node":
            kept = find_cache(self.cache_directory, fingerprint, self.dtype)
            if kept is not None:
                return kept

        def opened(shared: bool) -> Cache:
            shards = find_shards(patterns)
            if shared and len(shards) < ranks.size:
                raise NoShardsError(
                    f"{patterns}: data.cache: {self.cache} needs a shard for each of {ranks.size} workers, but there "
                    f"are {len(shards)}; use fewer workers, or data.cache: node"
                )
            own = shared and self.cache == "share"
            return open_cache(
                ranks.share(np.array(shards)).tolist() if own else shards,
                self.schema,
                self.cache_directory,
                on_bad_shard=self.on_bad_shard,
                on_bad_record=self.on_bad_record,
                max_bad_records=self.bad_record_limit,
                workers=self.decode_workers,
                dtype=self.dtype,
                progress=progress,
                require_labels=require_labels,
                buffer=None if own or self.cache == "node" else self.window,
            )

        shared = ranks.size > 1 and self.cache != "node"
        if shared and self.cache == "share":
            own = ranks.together(lambda: opened(shared))
            cache = with_all(own, ranks.gather(Known.of(own)), ranks.rank)
            refuse_too_many(cache.shards, self.bad_record_limit)
        else:
            cache = opened(shared)
            if shared:
                cache = cache.in_parts(ranks.size)
        if fingerprint is not None and not cache.fingerprint.startswith(fingerprint):
            raise DataError(
                f"{patterns}: the data has changed since the search began ({fingerprint} -> "
                f"{cache.fingerprint[: len(fingerprint)]}, {len(cache.shards)} shards, {cache.num_videos:,} videos), "
                "so new trials do not compare with its old ones; put the old shards back, or start a new search"
            )
        return cache


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
            keys=config.keys,
            level=config.level,
            num_frames=config.sample.frames,
        )

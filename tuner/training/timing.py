"""How fast a trial would train and be validated here, by a few real steps on one shard."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from data.batches import Batches
from data.residency import Residency
from data.sampling import ALL, FramesConfig
from data.schema import Schema
from data.tfrecord.shards import DecodedShard
from models import FeatureStatistics, Sizes
from models.losses.weights import fixed_bootstrap_weights
from tuner.training import supervised
from tuner.training.config import TrialConfig
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardData:
    """One decoded shard as the training data of a trial (`TrainingData`), without the statistics of its videos."""

    shard: DecodedShard
    schema: Schema
    vocabulary: str | None
    residency: Residency = field(default_factory=lambda: Residency(False))

    @property
    def sizes(self) -> Sizes:
        """Widths of the features and number of classes."""
        return Sizes.of(self.schema)

    @property
    def statistics(self) -> FeatureStatistics:
        """Those of as many videos, all alike: they do not change the speed."""
        return replace(FeatureStatistics.empty(self.sizes), num_videos=len(self.ids))

    @property
    def ids(self) -> np.ndarray:
        """The ids of the shard's videos."""
        return self.shard.ids

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled videos of the shard."""
        return Batches(
            self.shard, batch_size=batch_size, shuffle=True, seed=seed, device=device, drop_last=True, frames=frames
        )

    def bootstrap_weights(self, seed: int) -> torch.Tensor:
        """How often each video counts in a fixed bootstrap sample, [rows] float32."""
        return fixed_bootstrap_weights(len(self.ids), seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Videos per second of a worker."""

    train: float
    validate: float

    def epoch_seconds(self, train: int, validate: int) -> float:
        """The seconds of an epoch that trains on so many videos and validates so many."""
        return train / self.train + validate / self.validate


def measure(trial: TrialConfig, data: ShardData, device: torch.device, seconds: float = 1.0) -> Speed | None:
    """Take steps for about twice `seconds`, after one to warm up; None where the shard does not fill a batch.

    Args:
        trial: its settings.
        data: of one shard.
        device: where the steps are taken, in the threads that torch has.
        seconds: for each of training and validation.
    """
    parts = trial.training.accumulate
    batches = data.train_batches(trial.training.batch_size // parts, 0, device, frames=trial.training.frames)
    steps = len(batches) // parts
    if not steps:
        return None
    state = supervised.begin(trial, data, device=device, seed=0)
    examples = min(steps * trial.training.batch_size, batches.num_videos)
    step = supervised.TrainingStep(trial, data, state, device=device, seed=0, examples_per_epoch=examples)
    per_step = examples // steps

    def train(limit: int) -> int:
        step.run_epoch(islice(batches.epoch(0), limit * parts), 0)
        return min(limit, steps) * per_step

    def validate() -> int:
        evaluate(state.scored, validation, trial.training.precision)
        return validation.num_videos

    validation = Batches(data.shard, batch_size=batch_size_of(data.schema), shuffle=False, device=device)
    state.model.train()
    train(1)
    trained = _rate(lambda: train(10), seconds)
    return Speed(train=trained, validate=_rate(validate, seconds))


def _rate(work: Callable[[], int], seconds: float) -> float:
    """How many videos a second `work` goes through, each time the number that it returns."""
    videos, start = 0, time.monotonic()
    while not videos or time.monotonic() - start < seconds:
        videos += work()
    return videos / max(time.monotonic() - start, 1e-9)

"""The pipelines: the ways to train a trial, one entry each. A new pipeline is a generator and an entry here.

A pipeline's generator takes the trial, its data and the keywords that its entry declares, and yields a Progress after
each epoch. Ray's workers, the command `python -m tuner.train` and the tests consume the same generator.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuner.errors import ConfigError
from tuner.training import linear, supervised
from tuner.training.config import ContrastiveConfig, Trial, TrialConfig
from tuner.training.contrastive import trial as contrastive
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.dataset import Dataset
from tuner.training.ranks import ALONE, Ranks
from tuner.training.state import Progress
from tuner.training.steps import needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One way to train a trial."""

    name: str  # as `pipeline` of experiments.yaml gives it
    config: type[TrialConfig] | type[ContrastiveConfig]  # of its trials; the fields are the blocks of the yaml
    kind: str | None = None  # the only kind of model that it trains; None: every model that no entry before it trains
    train: Callable[..., Iterator[Progress]]
    several_workers: bool = False  # whether several workers can train one trial; `train` then takes `ranks`
    reuses_encoders: bool = False  # whether `train` takes an `encoder_store`

    @property
    def chosen_by(self) -> str:
        """The setting that chooses this pipeline, for errors."""
        return f"pipeline: {self.name}" if self.kind is None else f"model.kind {self.kind}"


# In the order in which they are tried: the first one that fits a trial trains it.
PIPELINES = (
    Pipeline(name="supervised", config=TrialConfig, kind="linear", train=linear.train),
    Pipeline(name="supervised", config=TrialConfig, train=supervised.train, several_workers=True),
    Pipeline(name="contrastive", config=ContrastiveConfig, train=contrastive.train, reuses_encoders=True),
)
# The class of a trial's settings, by the name in experiments.yaml; the first one is the default.
CONFIGS = {pipeline.name: pipeline.config for pipeline in PIPELINES}


def pipeline_of(trial: Trial) -> Pipeline:
    """The pipeline that trains `trial`."""
    return next(
        pipeline
        for pipeline in PIPELINES
        if isinstance(trial, pipeline.config) and pipeline.kind in (None, trial.model.kind)
    )


def train(
    trial: Trial,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    encoder_store: EncoderStore | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """Train a trial and yield after each epoch, once the model is validated.

    Args:
        trial: the settings, which choose the pipeline.
        data: the decoded splits and the statistics of the training split.
        device: where model and batches live.
        seed: of all random numbers; the same seed gives the same metrics on the same machine.
        resume_from: a checkpoint of this trial; training continues with the epoch after it.
        encoder_store: where a contrastive trial looks for its pretrained encoder and stores it; None: it always
            pretrains.
        ranks: the processes that train the trial together. Each calls this function, and all yield the same metrics
            but for the times.

    Raises:
        TrialDiverged: a loss is not finite; the weights keep their values from before that step.
        TrialOutOfMemory: the trial needs more memory than the device has, whatever is done.
        TrialCollapsed: a pretrained encoder gives the same embedding for all videos.
        CheckpointError: `resume_from` is damaged, or belongs to other settings.
        ConfigError: the pipeline trains on one rank only.
    """
    pipeline = pipeline_of(trial)
    options: dict[str, Any] = {}
    if pipeline.several_workers:
        options["ranks"] = ranks
    elif ranks.size > 1:
        raise ConfigError(f"{pipeline.chosen_by} trains on one worker, but got {ranks.size}")
    needs.check(trial, data.sizes, device, num_videos=data.statistics.num_videos, workers=ranks.size)
    if pipeline.reuses_encoders:
        options["encoder_store"] = encoder_store
    return pipeline.train(trial, data, device=device, seed=seed, resume_from=resume_from, **options)

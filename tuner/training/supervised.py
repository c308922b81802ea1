"""A supervised trial as a generator of Progress: plain PyTorch, no Ray.

`begin` and `epochs` are its two parts; the second half of a contrastive trial (tuner/training/contrastive/trial.py)
uses them too.

Shapes   B videos in the batch   C classes   N training videos
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import models
from data.batches import Batches
from data.errors import DataError
from data.sampling import ALL, FramesConfig
from models import FeatureStatistics, Sizes
from models.losses import penalties
from models.optim import optimizers
from models.optim.averaging import Average
from tuner.errors import CheckpointError
from tuner.training import checkpoint
from tuner.training.config import TrialConfig
from tuner.training.dataset import Dataset
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.objective import Objective
from tuner.training.precision import autocast
from tuner.training.ranks import ALONE, Ranks
from tuner.training.steps import Steps


class TrainingData(Protocol):
    """What training reads of its data: `training.dataset.Dataset` has it, and so has `training.contrastive.embeddings`."""

    @property
    def sizes(self) -> Sizes:
        """Widths of the features and number of classes."""

    @property
    def statistics(self) -> FeatureStatistics:
        """Of the training videos."""

    @property
    def vocabulary(self) -> str | None:
        """The csv with the classes' names and counts."""

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """Of the rows that a batch's `rows` speak of."""

    def train_batches(
        self, batch_size: int, seed: int, device: torch.device, ranks: Ranks = ALONE, frames: FramesConfig = ALL
    ) -> Batches:
        """Shuffled videos with their labels, of every batch the part of this rank."""

    def bootstrap_weights(self, seed: int) -> Tensor:
        """How often each row counts in a fixed bootstrap sample."""


class Saveable(Protocol):
    """A training under way, of any pipeline."""

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each finished epoch."""

    def save(self, directory: Path, trial: Any) -> None:
        """Write it into `directory`, whole or not at all; `trial` is its configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One finished epoch. `state` is the live training: save it before the generator is advanced."""

    epoch: int  # finished epochs, from 1
    metrics: dict[str, float]  # by the metric keys of MLflow
    state: Saveable
    repeated: bool = False  # the checkpoint's own epoch, told once more after a resume
    tags: Mapping[str, str] = field(default_factory=dict)  # of the trial's run in MLflow


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """What a trial needs to go on exactly where it stands: the parts of a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None  # None: the model is fitted in closed form
    bootstrap: torch.Generator
    average: Average | None = None
    history: list[dict[str, float]] = field(default_factory=list)  # the metrics of each finished epoch

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @property
    def scored(self) -> nn.Module:
        """The model that is validated and exported: the averaged one, where weights are averaged."""
        return self.model if self.average is None else self.average.model

    def parts(self) -> dict[str, Any]:
        """Everything but the weights of `scored`, as tensors and plain values."""
        average = self.average
        return {
            "history": self.history,
            "live": average and {"weights": self.model.state_dict(), "steps_averaged": average.steps},
            "optimizer": self.optimizer and self.optimizer.state_dict(),
            "bootstrap": self.bootstrap.get_state(),
            **random_state(),
        }

    def restore(self, weights: dict[str, Tensor], parts: dict[str, Any]) -> None:
        """Put the weights of `scored` and the parts back, random numbers included."""
        self.scored.load_state_dict(weights)
        if self.average is not None:
            self.model.load_state_dict(parts["live"]["weights"])
            self.average.steps = parts["live"]["steps_averaged"]
        if self.optimizer is not None:
            self.optimizer.load_state_dict(parts["optimizer"])
        self.bootstrap.set_state(parts["bootstrap"])
        set_random_state(parts)
        self.history = parts["history"]

    def save(self, directory: Path, trial: TrialConfig) -> None:
        """Write the state into `directory`, whole or not at all."""
        checkpoint.save(directory, model=self.scored.state_dict(), training=self.parts(), settings=trial.settings)

    def load(self, directory: Path, trial: TrialConfig) -> None:
        """Put a saved state back.

        Raises:
            CheckpointError: the checkpoint is damaged, or other settings shaped it.
        """
        weights, parts = checkpoint.load(directory, settings=trial.settings)
        try:
            self.restore(weights, parts)
        except RuntimeError as error:  # of load_state_dict, where the data has other features or classes
            raise CheckpointError(f"{directory}: the weights do not fit the trial's model ({error})") from error


def random_state() -> dict[str, Any]:
    """Where torch's own random number generators stand."""
    return {
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put them back where `random_state` found them."""
    torch.set_rng_state(state["rng"])
    if state["rng_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["rng_cuda"])


def train(
    trial: TrialConfig,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """Train and yield after each epoch, first validating; arguments and errors as `tuner.train.train` has them."""
    state = begin(trial, data, device=device, seed=seed)
    if resume_from is not None:
        ranks.together(partial(state.load, resume_from, trial))
        yield Progress(epoch=state.epoch, metrics=state.history[-1], state=state, repeated=True)
    validation = data.validate_batches(batch_size_of(data.validate.schema), device, ranks)
    yield from epochs(
        trial,
        data,
        state,
        device=device,
        seed=seed,
        score=lambda model: evaluate(model, validation, trial.training.precision, ranks),
        ranks=ranks,
    )


def begin(trial: TrialConfig, data: TrainingData, *, device: torch.device, seed: int) -> TrainingState:
    """The state before the first step."""
    torch.manual_seed(seed)
    model = models.build(trial.model, data.sizes, data.statistics).to(device)
    return TrainingState(
        model=model,
        average=Average(model, trial.training.average) if trial.training.average else None,
        optimizer=None if trial.optimizer is None else optimizers.build(trial.optimizer, model.parameters()),
        bootstrap=torch.Generator(device=device).manual_seed(seed),
    )


def epochs(
    trial: TrialConfig,
    data: TrainingData,
    state: TrainingState,
    *,
    device: torch.device,
    seed: int,
    score: Callable[[nn.Module], dict[str, float]],
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """The epochs that `state` has not behind it yet; `score` validates the model after each.

    Raises:
        DataError: gradients are accumulated over parts of a batch that the videos do not fill.
    """
    config = trial.training
    batches = data.train_batches(config.batch_size // config.accumulate, seed, device, ranks, config.frames)
    steps = len(batches) // config.accumulate
    if not steps:
        raise DataError(
            f"data.train: {batches.num_videos:,} videos do not fill one batch of {config.batch_size:,}, "
            "as training.accumulate needs; give a smaller training.batch_size"
        )
    examples = min(steps * config.batch_size, batches.num_videos)  # one batch may hold fewer
    step = Step(trial, data, state, device=device, seed=seed, examples_per_epoch=examples, ranks=ranks)
    while state.epoch < config.epochs:
        start = time.monotonic()
        state.model.train()
        ranks.seed(seed, state.epoch)
        loss_train = step.run_epoch(islice(batches.epoch(state.epoch), steps * config.accumulate), state.epoch)
        trained = time.monotonic()
        metrics = {
            "epoch": state.epoch + 1,
            **validated(score(state.scored), state.history),
            "loss_train": loss_train,
            "learning_rate": step.learning_rate,
            "videos_per_second": examples / (trained - start),
            "seconds": time.monotonic() - start,
            **device_metrics(device),
        }
        state.history.append(metrics)
        yield Progress(epoch=state.epoch, metrics=metrics, state=state)


def validated(scores: dict[str, float], history: list[dict[str, float]]) -> dict[str, float]:
    """What an epoch tells of its validation; `gap_best` is the best so far."""
    return {
        "gap": scores["gap"],
        "gap_best": max([scores["gap"], *(past["gap"] for past in history)]),
        "hit_at_1": scores["hit_at_1"],
        "perr": scores["perr"],
        "map": scores["map"],
        "loss_validate": scores["loss"],
    }


def device_metrics(device: torch.device) -> dict[str, float]:
    """The most memory that a GPU has held so far; nothing on a CPU."""
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}


class Step:
    """The step of a trial: everything that stays the same from batch to batch, prepared once."""

    def __init__(
        self,
        trial: TrialConfig,
        data: TrainingData,
        state: TrainingState,
        *,
        device: torch.device,
        seed: int,
        examples_per_epoch: int,
        ranks: Ranks = ALONE,
    ) -> None:
        assert state.optimizer is not None and trial.optimizer is not None, "a closed form takes no steps"
        self.trial, self.device = trial, device
        self.model = ranks.parallel(state.model)
        training, average = trial.training, state.average
        batch_size = min(training.batch_size, examples_per_epoch)
        self.steps = Steps(
            state.optimizer,
            trial.optimizer,
            batch_size=batch_size,
            examples_per_epoch=examples_per_epoch,
            epochs=training.epochs,
            device=device,
            ranks=ranks,
            accumulate=training.accumulate,
            unreduced=partial(ranks.unreduced, self.model),
        )
        self.objective = Objective(
            trial.loss,
            data,
            batch_size=batch_size,
            part_size=training.batch_size // training.accumulate,
            bootstrap=state.bootstrap,
            device=device,
            seed=seed,
            ranks=ranks,
        )
        self.penalised = penalties.penalised(state.model, trial.loss.l1, trial.loss.l2, trial.loss.layers)
        self.stepped = partial(average.update, state.model) if average else None

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return self.steps.learning_rate

    def run_epoch(self, batches: Iterator[Any], epoch: int) -> float:
        """Step through the batches of one epoch; return the mean of their losses (the data term, without penalty)."""
        return self.steps.run_epoch(batches, epoch, self.loss, self.add_penalty, self.stepped)

    def loss(self, batch: Any, progress: float) -> Tensor:
        """The data term of this rank's part of a batch."""
        with autocast(self.device, self.trial.training.precision):
            logits_BC = self.model(*batch.inputs)
        return self.objective(logits_BC, batch)

    def add_penalty(self) -> None:
        """Its gradients: of the weights alone, so the same on every rank."""
        penalties.add_penalty_gradients(self.penalised, self.trial.loss.penalty)

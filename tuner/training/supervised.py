"""The supervised pipeline: a trial as a generator of Progress. Plain PyTorch, no Ray.

`begin` and `epochs` are its two parts. The probe of a contrastive trial (tuner/training/contrastive/probe.py) uses
them too.

Shapes   B videos in the batch   C classes   N training videos
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from data.errors import DataError
from models import optim
from models.losses import penalties
from models.optim import Average
from tuner.errors import ConfigError
from tuner.training.config import TrialConfig
from tuner.training.dataset import Dataset, TrainingData
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.objective import Objective
from tuner.training.precision import autocast
from tuner.training.ranks import ALONE, Ranks
from tuner.training.state import Progress, TrainingState, device_metrics, validated
from tuner.training.steps import GraphedStep, MemoryFallback, StepLoop


def train(
    trial: TrialConfig,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Progress]:
    """Train, and yield after each epoch, once the model is validated.

    Arguments and errors are those of `tuner.training.pipelines.train`.
    """
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
    """Build the state before the first step."""
    torch.manual_seed(seed)
    model = models.build(trial.model, data.sizes, data.statistics).to(device)
    return TrainingState(
        model=model,
        average=Average(model, trial.training.average) if trial.training.average else None,
        optimizer=None if trial.optimizer is None else optim.build(trial.optimizer, model.parameters()),
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
    """Train the epochs that `state` has not finished; yields after each, once `score` has validated the model.

    Raises:
        DataError: there are fewer training videos than training.accumulate needs for one batch.
        TrialDiverged: a loss is not finite; the weights keep their values from before that step.
    """
    config = trial.training
    batches = data.train_batches(config.batch_size // config.accumulate, seed, device, ranks, config.frames)
    steps = len(batches) // config.accumulate
    if not steps:
        raise DataError(
            f"data.train: {batches.num_videos:,} videos do not fill one batch of {config.batch_size:,}, "
            "which training.accumulate needs; set a smaller training.batch_size"
        )
    examples = min(steps * config.batch_size, batches.num_videos)  # one batch may hold fewer
    new_step = partial(
        TrainingStep, trial, data, state, device=device, seed=seed, examples_per_epoch=examples, ranks=ranks
    )
    step = new_step()

    def restore(saved: Any) -> None:
        nonlocal step
        state.restore(*saved)
        step = new_step()  # its graph writes to tensors that have been replaced

    def epoch() -> dict[str, float]:
        start = time.monotonic()
        state.model.train()
        ranks.seed(seed, state.epoch)
        loss_train = step.run_epoch(islice(batches.epoch(state.epoch), steps * config.accumulate), state.epoch)
        trained = time.monotonic()
        return {
            "epoch": state.epoch + 1,
            **validated(score(state.scored), state.history),
            "loss_train": loss_train,
            "learning_rate": step.learning_rate,
            "videos_per_second": examples / (trained - start),
            "seconds": time.monotonic() - start,
            **device_metrics(device),
        }

    memory = MemoryFallback(data.residency, device, state=state.whole, restore=restore, ranks=ranks)
    while state.epoch < config.epochs:
        metrics = memory.run(epoch)
        state.history.append(metrics)
        yield Progress(epoch=state.epoch, metrics=metrics, state=state)


class TrainingStep:
    """The training step of a supervised trial, with everything that is the same for all batches prepared once."""

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
        assert state.optimizer is not None and trial.optimizer is not None, "a closed-form trial takes no steps"
        self.trial, self.device = trial, device
        self.model = ranks.parallel(state.model)
        training, average = trial.training, state.average
        batch_size = min(training.batch_size, examples_per_epoch)
        self.steps = StepLoop(
            state.optimizer,
            trial.optimizer,
            batch_size=batch_size,
            examples_per_epoch=examples_per_epoch,
            epochs=training.epochs,
            device=device,
            ranks=ranks,
            accumulate=training.accumulate,
            unreduced=partial(ranks.unreduced, self.model),
            graph=graphed(trial, data, state, device, ranks),
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
        """The learning rate of the last step."""
        return self.steps.learning_rate

    def run_epoch(self, batches: Iterator[Any], epoch: int) -> float:
        """Train on the batches of one epoch; returns the mean of their losses without penalties."""
        return self.steps.run_epoch(batches, epoch, self.loss, self.add_penalty, self.stepped)

    def loss(self, batch: Any, progress: float) -> Tensor:
        """The loss of this rank's part of a batch, without penalties."""
        with autocast(self.device, self.trial.training.precision):
            logits_BC = self.model(*batch.inputs)
        return self.objective(logits_BC, batch)

    def add_penalty(self) -> None:
        """Add the gradients of the penalties; they depend on the weights alone, so they are the same on every rank."""
        penalties.add_penalty_gradients(self.penalised, self.trial.loss.penalty)


def graphed(
    trial: TrialConfig, data: TrainingData, state: TrainingState, device: torch.device, ranks: Ranks
) -> GraphedStep | None:
    """What takes the steps of a trial by a CUDA graph; None where the host starts each kernel.

    Raises:
        ConfigError: training.cuda_graph is true, and the trial cannot train with a graph.
    """
    wanted = trial.training.cuda_graph
    reasons = {
        "it does not train on a GPU": device.type != "cuda",
        "it has several workers": ranks.size > 1,
        "training.accumulate is above 1": trial.training.accumulate > 1,
        "its batches of frames have different lengths": data.sizes.level != "video",
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason is not None and wanted is True:
        raise ConfigError(f"training.cuda_graph: true, but the trial cannot train with one: {reason}; set it to auto")
    if reason is not None or wanted is False:
        return None
    return GraphedStep(device, [state.bootstrap], required=wanted is True)

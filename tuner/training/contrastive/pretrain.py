"""The first half of a contrastive trial: an encoder learns from videos without their labels. Plain PyTorch, no Ray.

What it reads of a batch are the features alone; labels come in with the closed-form probe that tells after every epoch
what the encoder is worth, and with the second half (tuner/training/contrastive/trial.py).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.batches import Batch, Batches
from models import FusedEncoder
from models.contrastive.moco import Contrast, Step
from models.optim import optimizers
from tuner.errors import TrialCollapsed
from tuner.training.config import ContrastiveConfig
from tuner.training.dataset import Dataset
from tuner.training.precision import autocast
from tuner.training.state import random_state, set_random_state
from tuner.training.steps import StepLoop

# Standard deviation of normalised embeddings, 1 where they are spread over the sphere, below which all are one.
COLLAPSED = 0.02


@dataclass(slots=True, kw_only=True)
class Pretraining:
    """What pretraining needs to go on exactly where it stands."""

    contrast: Contrast  # encoder, momentum encoder, heads and queues
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # of views, shuffles and queues
    epoch: int = field(default=0)  # finished epochs

    @property
    def encoder(self) -> FusedEncoder:
        """The encoder that learns."""
        return self.contrast.encoder

    def parts(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "contrast": self.contrast.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            **random_state(),
        }

    def restore(self, parts: dict[str, Any]) -> None:
        """Put it back, random numbers included."""
        self.contrast.load_state_dict(parts["contrast"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.generator.set_state(parts["generator"])
        self.epoch = parts["epoch"]
        set_random_state(parts)


def begin(trial: ContrastiveConfig, data: Dataset, *, device: torch.device, seed: int) -> Pretraining:
    """The state before the first step."""
    torch.manual_seed(seed)
    encoder = FusedEncoder(trial.model, data.sizes, data.statistics)
    pretrain = trial.pretrain
    contrast = Contrast(
        pretrain.method,
        encoder,
        features=data.sizes.features,
        views=pretrain.views,
        cross_modal=pretrain.cross_modal,
        generator=torch.Generator().manual_seed(seed),
    ).to(device)
    return Pretraining(
        contrast=contrast,
        optimizer=optimizers.build(pretrain.chosen_optimizer, [p for p in contrast.parameters() if p.requires_grad]),
        generator=torch.Generator(device=device).manual_seed(seed),
    )


def epochs(
    trial: ContrastiveConfig, data: Dataset, state: Pretraining, *, device: torch.device, seed: int
) -> Iterator[dict[str, float]]:
    """Train the epochs that `state` has not behind it; yields the metrics of each.

    Raises:
        TrialDiverged: the loss is not finite.
        TrialCollapsed: all embeddings have become one.
        DataError: the training videos do not fill one batch.
    """
    pretrain = trial.pretrain
    batches = data.pretrain_batches(pretrain.batch_size, seed, device)
    steps = StepLoop(
        state.optimizer,
        pretrain.chosen_optimizer,
        batch_size=pretrain.batch_size,
        examples_per_epoch=len(batches) * pretrain.batch_size,
        epochs=pretrain.epochs,
        device=device,
        name="contrastive loss",
    )
    while state.epoch < pretrain.epochs:
        state.contrast.train()
        yield _epoch(trial, state, steps, batches)


def _epoch(trial: ContrastiveConfig, state: Pretraining, steps: StepLoop, batches: Batches) -> dict[str, float]:
    start = time.monotonic()
    correct_sum, last_spread = (torch.zeros((), device=steps.device, dtype=torch.float64) for _ in range(2))

    def loss_of(batch: Batch, progress: float) -> Tensor:
        with autocast(steps.device, trial.training.precision):
            result: Step = state.contrast(batch.features_BD, progress, state.generator)
        correct_sum.add_(result.correct)
        last_spread.copy_(result.spread)
        return result.loss

    loss = steps.run_epoch(batches.epoch(state.epoch), state.epoch, loss_of)
    spread = float(last_spread)
    if spread < COLLAPSED:
        raise TrialCollapsed(
            f"pretraining collapsed in epoch {state.epoch + 1}: the embeddings of different videos have become one "
            f"(their standard deviation is {spread:.2g} of that of embeddings spread over the sphere); "
            "try a lower learning rate or weight decay, or another temperature"
        )
    state.epoch += 1
    return {
        "loss_pretrain": loss,
        "contrastive_accuracy": float(correct_sum) / len(batches),
        "embedding_std": spread,
        "learning_rate": steps.learning_rate,
        "videos_per_second": steps.examples_per_epoch / (time.monotonic() - start),
    }

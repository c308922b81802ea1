"""The first phase of a contrastive trial: an encoder learns from videos without their labels. Plain PyTorch, no Ray.

It reads only the features of a batch. Labels are used by the closed-form probe, which measures the encoder after every
epoch, and by the second phase (tuner/training/contrastive/probe.py).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.batches import Batch, Batches
from models import FusedEncoder, optim
from models.contrastive.contrast import Contrast, ContrastiveResult
from tuner.errors import TrialCollapsed
from tuner.training.config import ContrastiveConfig
from tuner.training.dataset import Dataset
from tuner.training.precision import autocast
from tuner.training.state import random_state, set_random_state
from tuner.training.steps import MemoryFallback, StepLoop

# The embeddings have collapsed below this standard deviation; it is 1 where they are spread over the whole sphere.
COLLAPSED = 0.02


@dataclass(slots=True, kw_only=True)
class Pretraining:
    """The state of pretraining: all that is needed to resume it with the same results."""

    contrast: Contrast  # encoder, momentum encoder, heads and queues
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # draws views and shuffles
    epoch: int = field(default=0)  # finished epochs

    @property
    def encoder(self) -> FusedEncoder:
        """The encoder that is trained."""
        return self.contrast.encoder

    def parts(self) -> dict[str, Any]:
        """The whole state, as tensors and plain values."""
        return {
            "contrast": self.contrast.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            **random_state(self.generator.device),
        }

    def restore(self, parts: dict[str, Any]) -> None:
        """Restore what `parts` gave, random number generators included."""
        self.contrast.load_state_dict(parts["contrast"])
        optim.restore(self.optimizer, parts["optimizer"])
        self.generator.set_state(parts["generator"])
        self.epoch = parts["epoch"]
        set_random_state(parts, self.generator.device)


def begin(trial: ContrastiveConfig, data: Dataset, *, device: torch.device, seed: int) -> Pretraining:
    """Build the state before the first step."""
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
        optimizer=optim.build(pretrain.chosen_optimizer, [p for p in contrast.parameters() if p.requires_grad]),
        generator=torch.Generator(device=device).manual_seed(seed),
    )


def epochs(
    trial: ContrastiveConfig, data: Dataset, state: Pretraining, *, device: torch.device, seed: int
) -> Iterator[dict[str, float]]:
    """Train the epochs that `state` has not finished; yields the metrics of each.

    Raises:
        TrialDiverged: the loss is not finite.
        TrialCollapsed: the encoder gives the same embedding for all videos.
        DataError: there are fewer training videos than one batch needs.
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
    memory = MemoryFallback(data.residency, device, state=state.parts, restore=state.restore)
    while state.epoch < pretrain.epochs:
        state.contrast.train()
        yield memory.run(lambda: _epoch(trial, state, steps, batches))


def _epoch(trial: ContrastiveConfig, state: Pretraining, steps: StepLoop, batches: Batches) -> dict[str, float]:
    start = time.monotonic()
    correct_sum, last_spread = (torch.zeros((), device=steps.device, dtype=torch.float64) for _ in range(2))

    def loss_of(batch: Batch, progress: float) -> Tensor:
        with autocast(steps.device, trial.training.precision):
            result: ContrastiveResult = state.contrast(batch.features_BD, progress, state.generator)
        correct_sum.add_(result.correct)
        last_spread.copy_(result.spread)
        return result.loss

    loss = steps.run_epoch(batches.epoch(state.epoch), state.epoch, loss_of)
    spread = float(last_spread)
    if spread < COLLAPSED:
        raise TrialCollapsed(
            f"pretraining collapsed in epoch {state.epoch + 1}: different videos have the same embedding "
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

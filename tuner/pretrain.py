"""The first half of a contrastive trial: an encoder learns from videos without their labels. Plain PyTorch, no Ray.

What it reads of a batch are the features alone; labels come in with the closed-form probe that tells after every epoch
what the encoder is worth, and with the second half (tuner/contrastive.py).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from data.batches import Batches
from models import FusedEncoder, optimizers
from models.moco import Contrast
from tuner.dataset import Dataset
from tuner.errors import TrialCollapsed, TrialDiverged
from tuner.precision import autocast
from tuner.supervised import STEPS_BETWEEN_CHECKS, random_state, set_random_state
from tuner.trial_config import ContrastiveConfig

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
        optimizer=optimizers.build(pretrain.chosen_optimizer, _trained(contrast)),
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
    batches = data.pretrain_batches(trial.pretrain.batch_size, seed, device)
    while state.epoch < trial.pretrain.epochs:
        state.contrast.train()
        yield _epoch(trial, state, batches, device)


def _epoch(trial: ContrastiveConfig, state: Pretraining, batches: Batches, device: torch.device) -> dict[str, float]:
    pretrain, optimizer = trial.pretrain, trial.pretrain.chosen_optimizer
    examples_per_epoch = len(batches) * pretrain.batch_size
    examples_in_all = examples_per_epoch * pretrain.epochs
    parameters = _trained(state.contrast)
    start = time.monotonic()
    loss_sum, correct_sum = (torch.zeros((), device=device, dtype=torch.float64) for _ in range(2))
    diverged = torch.zeros((), device=device, dtype=torch.bool)
    rate = 0.0
    for step, batch in enumerate(batches.epoch(state.epoch)):
        examples_seen = state.epoch * examples_per_epoch + step * pretrain.batch_size
        rate = optimizers.learning_rate_at(optimizer, examples_seen, examples_in_all)
        optimizers.set_learning_rate(state.optimizer, rate)
        with autocast(device, trial.training.precision):
            result = state.contrast(batch.features_BD, examples_seen / examples_in_all, state.generator)
        state.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        optimizers.clip(parameters, optimizer.clip)
        loss = result.loss.detach()
        optimizers.step(state.optimizer, skip=~torch.isfinite(loss))
        diverged |= ~torch.isfinite(loss)
        loss_sum += loss
        correct_sum += result.correct
        if (device.type == "cpu" or step % STEPS_BETWEEN_CHECKS == 0) and bool(diverged):
            break
    if bool(diverged):
        raise TrialDiverged(
            f"the contrastive loss is not finite in epoch {state.epoch + 1} by step {step + 1} "
            f"(learning rate {rate:.3g}); the encoder was left as it was"
        )
    spread = float(result.spread)
    if spread < COLLAPSED:
        raise TrialCollapsed(
            f"pretraining collapsed in epoch {state.epoch + 1}: the embeddings of different videos have become one "
            f"(their standard deviation is {spread:.2g} of that of embeddings spread over the sphere); "
            "try a lower learning rate or weight decay, or another temperature"
        )
    state.epoch += 1
    return {
        "loss_pretrain": float(loss_sum) / len(batches),
        "contrastive_accuracy": float(correct_sum) / len(batches),
        "embedding_std": spread,
        "learning_rate": rate,
        "videos_per_second": examples_per_epoch / (time.monotonic() - start),
    }


def _trained(contrast: Contrast) -> list[torch.nn.Parameter]:
    return [parameter for parameter in contrast.parameters() if parameter.requires_grad]

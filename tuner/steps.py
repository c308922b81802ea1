"""Steps of an optimizer through the batches of an epoch, alike in both halves of a trial. Plain PyTorch, no Ray."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models import optimizers
from models.optimizers import OptimizerConfig
from tuner.errors import TrialDiverged
from tuner.ranks import ALONE, Ranks

# Steps between two looks at the divergence flag on CUDA: each look makes the host wait for the device.
STEPS_BETWEEN_CHECKS = 100


class Steps:
    """The rate of every step, its update, and the watch for a loss that is not finite.

    Where several ranks train, a batch is theirs together: its loss, and so the gradient, is the mean over its videos,
    however many of them lie on which rank. The model that the loss comes from is `Ranks.parallel`'s.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        *,
        batch_size: int,
        examples_per_epoch: int,
        epochs: int,
        device: torch.device,
        ranks: Ranks = ALONE,
        name: str = "loss",
    ) -> None:
        """Takes steps with `optimizer`.

        Args:
            optimizer: built from `config`.
            config: of the optimizer.
            batch_size: videos of a batch on all ranks together.
            examples_per_epoch: videos of an epoch on all ranks together.
            epochs: of the whole training, for the schedule of the rate.
            device: where the loss is computed.
            ranks: that share the batches.
            name: what the loss is called when it diverges.
        """
        self.optimizer, self.config, self.device, self.ranks, self.name = optimizer, config, device, ranks, name
        self.batch_size, self.examples_per_epoch = batch_size, examples_per_epoch
        self.examples_in_all = examples_per_epoch * epochs
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.learning_rate = 0.0  # of the last step

    def run_epoch(
        self,
        batches: Iterator[Any],
        epoch: int,
        loss_of: Callable[[Any, float], Tensor],
        add_gradients: Callable[[], None] | None = None,
    ) -> float:
        """Step through the batches of one epoch, and return the mean of their losses.

        Args:
            batches: this rank's parts of them.
            epoch: its number, from 0.
            loss_of: the mean loss of a batch's videos; its second argument is the training's progress, from 0 to 1.
            add_gradients: of what is not a mean over videos, called between backward and clipping.

        Raises:
            TrialDiverged: a loss is not finite; the weights are left as they were before that step.
        """
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        diverged = torch.zeros((), device=self.device, dtype=torch.bool)
        steps = 0
        for batch in batches:
            examples_seen = epoch * self.examples_per_epoch + steps * self.batch_size
            self.learning_rate = optimizers.learning_rate_at(self.config, examples_seen, self.examples_in_all)
            optimizers.set_learning_rate(self.optimizer, self.learning_rate)
            loss = loss_of(batch, examples_seen / self.examples_in_all)
            loss = self._update(loss, len(batch.rows) / self.batch_size, add_gradients)
            diverged |= ~torch.isfinite(loss)
            total += loss
            steps += 1
            if (self.device.type == "cpu" or steps % STEPS_BETWEEN_CHECKS == 0) and bool(diverged):
                break
        if bool(diverged):
            raise TrialDiverged(
                f"the {self.name} is not finite in epoch {epoch + 1} by step {steps} "
                f"(learning rate {self.learning_rate:.3g}); the weights were left as they were"
            )
        return float(total) / max(steps, 1)

    def _update(self, loss: Tensor, share: float, add_gradients: Callable[[], None] | None) -> Tensor:
        """One update of the weights, skipped (not waited for) where the loss is not finite; returns the whole batch's.

        Args:
            loss: mean over the videos of this rank.
            share: of the batch's videos that are this rank's.
            add_gradients: as `run_epoch` has it.
        """
        # Reduced before backward begins, whose own reductions come in an order of their own.
        whole = self.ranks.sum(loss.detach() * share)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * (share * self.ranks.size)).backward()  # type: ignore[no-untyped-call]  # averaged over the ranks
        if add_gradients is not None:
            add_gradients()
        optimizers.clip(self.parameters, self.config.clip)
        optimizers.step(self.optimizer, skip=~torch.isfinite(whole))
        return whole

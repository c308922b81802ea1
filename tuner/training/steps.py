"""Steps of an optimizer through the batches of an epoch, alike in both halves of a trial. Plain PyTorch, no Ray."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from models.optim import optimizers
from models.optim.optimizers import OptimizerConfig
from tuner.errors import TrialDiverged
from tuner.training.ranks import ALONE, Ranks

# Steps between two looks at the divergence flag on CUDA: each look makes the host wait for the device.
STEPS_BETWEEN_CHECKS = 100


class StepLoop:
    """The rate of every step, its update, and the watch for a loss that is not finite.

    Where several ranks train, a batch is theirs together: its loss, and so the gradient, is the mean over its videos,
    however many of them lie on which rank. The model that the loss comes from is `Ranks.parallel`'s.

    Gradients may be accumulated: a step's batch then comes in several parts, one forward and backward each, so that
    only a part's activations need memory. The gradient is that of the whole batch, but for BatchNorm, which takes the
    statistics of a part.
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
        accumulate: int = 1,
        unreduced: Callable[[], AbstractContextManager[None]] = nullcontext,
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
            accumulate: parts that a step's batch comes in.
            unreduced: makes the context of the backwards whose gradients are not averaged over the ranks yet.
        """
        self.optimizer, self.config, self.device, self.ranks, self.name = optimizer, config, device, ranks, name
        self.batch_size, self.examples_per_epoch = batch_size, examples_per_epoch
        self.accumulate, self.unreduced = accumulate, unreduced
        self.examples_in_all = examples_per_epoch * epochs
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.learning_rate = 0.0  # of the last step

    def run_epoch(
        self,
        batches: Iterator[Any],
        epoch: int,
        loss_of: Callable[[Any, float], Tensor],
        add_gradients: Callable[[], None] | None = None,
        stepped: Callable[[], None] | None = None,
    ) -> float:
        """Step through the batches of one epoch, and return the mean of their losses.

        Args:
            batches: this rank's share of them, or with `accumulate` of each one's parts, no step's missing.
            epoch: its number, from 0.
            loss_of: the mean loss of a batch's videos; its second argument is the training's progress, from 0 to 1.
            add_gradients: of what is not a mean over videos, called between backward and clipping.
            stepped: called after every update of the weights.

        Raises:
            TrialDiverged: a loss is not finite; the weights are left as they were before that step.
        """
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        diverged = torch.zeros((), device=self.device, dtype=torch.bool)
        steps = 0
        for first in batches:
            parts = chain([first], islice(batches, self.accumulate - 1))
            examples_seen = epoch * self.examples_per_epoch + steps * self.batch_size
            self.learning_rate = optimizers.learning_rate_at(self.config, examples_seen, self.examples_in_all)
            optimizers.set_learning_rate(self.optimizer, self.learning_rate)
            loss = self._backward(parts, loss_of, examples_seen / self.examples_in_all)
            self._update(~torch.isfinite(loss), add_gradients)
            if stepped is not None:
                stepped()
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

    def _backward(self, parts: Iterator[Any], loss_of: Callable[[Any, float], Tensor], progress: float) -> Tensor:
        """Make the gradients of one batch; returns its mean loss over all parts and ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        whole = torch.zeros((), device=self.device)
        for part, batch in enumerate(parts, start=1):
            share = len(batch.rows) / self.batch_size
            with self.unreduced() if part < self.accumulate else nullcontext():
                loss = loss_of(batch, progress)
                # Reduced before backward begins, whose own reductions come in an order of their own.
                whole = whole + self.ranks.sum(loss.detach() * share)
                (loss * (share * self.ranks.size)).backward()  # type: ignore[no-untyped-call]  # averaged over the ranks
        return whole

    def _update(self, skip: Tensor, add_gradients: Callable[[], None] | None) -> None:
        """One update of the weights, skipped (not waited for) where the loss is not finite."""
        if add_gradients is not None:
            add_gradients()
        optimizers.clip(self.parameters, self.config.clip)
        optimizers.step(self.optimizer, skip=skip)

"""The optimizer steps of an epoch, for every pipeline that takes steps. Plain PyTorch, no Ray."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from models import optim
from models.optim import OptimizerConfig
from tuner.errors import TrialDiverged
from tuner.training.ranks import ALONE, Ranks

# Steps between two reads of the divergence flag on CUDA; each read makes the host wait for the device.
STEPS_BETWEEN_CHECKS = 100


class StepLoop:
    """Sets the learning rate of every step, updates the weights, and stops at a loss that is not finite.

    Where several ranks train, they share a batch: its loss, and so the gradient, is the mean over all of its videos,
    no matter how many of them each rank has. The loss must come from the model that `Ranks.parallel` returned.

    Gradients can be accumulated: the batch of a step then comes in several parts, with one forward and backward pass
    each, so that memory is needed for the activations of one part only. The gradient is that of the whole batch, except
    that BatchNorm uses the statistics of each part.
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
        """Prepare the loop.

        Args:
            optimizer: built from `config`.
            config: the settings of the optimizer.
            batch_size: videos in a batch, over all ranks together.
            examples_per_epoch: videos in an epoch, over all ranks together.
            epochs: of the whole training; the learning rate's schedule depends on it.
            device: where the loss is computed.
            ranks: the workers that share the batches.
            name: of the loss, for the error where it diverges.
            accumulate: the number of parts in which a step's batch comes.
            unreduced: makes the context of the backward passes before the last one of a step, in which gradients are
                not averaged over the ranks.
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
        """Take one step for each batch of an epoch, and return the mean of their losses.

        Args:
            batches: this rank's share of the batches; with `accumulate`, of their parts, and every step has all parts.
            epoch: its number, from 0.
            loss_of: computes the mean loss of a batch's videos; its second argument is the training's progress, 0 to 1.
            add_gradients: adds the gradients of terms that are no mean over videos; called between backward and
                clipping.
            stepped: called after every update of the weights.

        Raises:
            TrialDiverged: a loss is not finite; the weights keep their values from before that step.
        """
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        diverged = torch.zeros((), device=self.device, dtype=torch.bool)
        steps = 0
        for first in batches:
            parts = chain([first], islice(batches, self.accumulate - 1))
            examples_seen = epoch * self.examples_per_epoch + steps * self.batch_size
            self.learning_rate = optim.learning_rate_at(
                self.config.schedule, self.config.learning_rate, examples_seen, self.examples_in_all
            )
            optim.set_learning_rate(self.optimizer, self.learning_rate)
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
                f"(learning rate {self.learning_rate:.3g}); the weights keep their values from before it"
            )
        return float(total) / max(steps, 1)

    def _backward(self, parts: Iterator[Any], loss_of: Callable[[Any, float], Tensor], progress: float) -> Tensor:
        """Compute the gradients of one batch; returns its mean loss over all parts and ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        whole = torch.zeros((), device=self.device)
        for part, batch in enumerate(parts, start=1):
            share = len(batch.rows) / self.batch_size
            with self.unreduced() if part < self.accumulate else nullcontext():
                loss = loss_of(batch, progress)
                # Reduced before backward begins, because backward's own reductions have another order.
                whole = whole + self.ranks.sum(loss.detach() * share)
                (loss * (share * self.ranks.size)).backward()  # type: ignore[no-untyped-call]  # averaged over the ranks
        return whole

    def _update(self, skip: Tensor, add_gradients: Callable[[], None] | None) -> None:
        """Update the weights once; the device skips it where the loss is not finite, and the host does not wait."""
        if add_gradients is not None:
            add_gradients()
        optim.clip(self.parameters, self.config.clip)
        optim.step(self.optimizer, skip=skip)

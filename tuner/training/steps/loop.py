"""The loop over the optimizer steps of an epoch. Plain PyTorch, no Ray."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from models import optim
from models.optim import OptimizerConfig
from tuner.errors import TrialDiverged
from tuner.training.ranks import ALONE, Ranks
from tuner.training.steps.graph import GraphedStep

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
        graph: GraphedStep | None = None,
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
            graph: takes the steps by a CUDA graph; needs one rank and `accumulate` 1. None: the host starts every
                kernel.
        """
        self.optimizer, self.config, self.device, self.ranks, self.name = optimizer, config, device, ranks, name
        self.batch_size, self.examples_per_epoch = batch_size, examples_per_epoch
        self.accumulate, self.unreduced, self.graph = accumulate, unreduced, graph
        self.examples_in_all = examples_per_epoch * epochs
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.learning_rate = 0.0  # of the last step
        # Of the epoch: the sum of its losses, and whether one was not finite. They stay, as a graph writes to them.
        self.total = torch.zeros((), device=device, dtype=torch.float64)
        self.diverged = torch.zeros((), device=device, dtype=torch.bool)

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
            loss_of: computes the mean loss of a batch's videos; its second argument is the training's progress, 0 to 1,
                in a graph always 0.
            add_gradients: adds the gradients of terms that are no mean over videos; called between backward and
                clipping.
            stepped: called after every update of the weights.

        Raises:
            TrialDiverged: a loss is not finite; the weights keep their values from before that step.
        """
        self.total.zero_()
        self.diverged.zero_()
        take = partial(self.step, loss_of=loss_of, add_gradients=add_gradients)
        steps = 0
        for first in batches:
            parts = chain([first], islice(batches, self.accumulate - 1))
            examples_seen = epoch * self.examples_per_epoch + steps * self.batch_size
            self.learning_rate = optim.learning_rate_at(
                self.config.schedule, self.config.learning_rate, examples_seen, self.examples_in_all
            )
            optim.set_learning_rate(self.optimizer, self.learning_rate)
            progress = examples_seen / self.examples_in_all
            if self.graph is None:
                take(parts, progress)
            else:
                self.graph(lambda batch: take([batch], 0.0), first)
            if stepped is not None:
                stepped()
            steps += 1
            if (self.device.type == "cpu" or steps % STEPS_BETWEEN_CHECKS == 0) and bool(self.diverged):
                break
        if bool(self.diverged):
            raise TrialDiverged(
                f"the {self.name} is not finite in epoch {epoch + 1} by step {steps} "
                f"(learning rate {self.learning_rate:.3g}); the weights keep their values from before it"
            )
        return float(self.total) / max(steps, 1)

    def step(
        self,
        parts: Iterable[Any],
        progress: float,
        *,
        loss_of: Callable[[Any, float], Tensor],
        add_gradients: Callable[[], None] | None = None,
    ) -> None:
        """Take one step on the parts of a batch. The host reads nothing from the device, so a CUDA graph can hold it.

        From the first loss that is not finite on, `diverged` is True and the weights keep their values.
        """
        loss = self._backward(parts, loss_of, progress)
        self.total += loss
        self.diverged |= ~torch.isfinite(loss)
        if add_gradients is not None:
            add_gradients()
        optim.clip(self.parameters, self.config.clip)
        optim.step(self.optimizer, skip=self.diverged)

    def _backward(self, parts: Iterable[Any], loss_of: Callable[[Any, float], Tensor], progress: float) -> Tensor:
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

"""The workers of one trial, by rank: each trains on its part of every batch, and all hold the same weights.

A trial of one worker is `ALONE`, for which nothing here does anything. Several are the processes of a
torch.distributed group, whoever started it (Ray Train, a test).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import DataError
from models.layers import BatchNorm
from tuner.errors import TunerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One worker's place among the workers of its trial. What is collective must be called by all of them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> "Ranks":
        """As the process group has it; without one, alone."""
        if not distributed.is_initialized():
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, with gradients that are averaged over the ranks in backward (collective, as its forward is).

        BatchNorm takes the statistics of the whole batch, so its running ones are the same on every rank. `model` is
        trained in place; it is what to save and to evaluate.
        """
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.over_ranks = True
        return DistributedDataParallel(model)

    def unreduced(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within it, backward adds to each rank's own gradients; those of the next backward outside are averaged.

        `model` is what `parallel` returned.
        """
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place, the same bits on each (collective)."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks (collective). They are pickled, by none but our own workers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Do what may fail on one rank alone, say on a node with a full disk: then all fail, none waits (collective).

        Raises:
            TunerError, DataError: that of the first rank that failed.
        """
        failure: TunerError | DataError | None = None
        try:
            result = action()
        except (TunerError, DataError) as error:
            failure = error
        for failed in filter(None, self.gather(failure)):
            raise failed
        return result

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's piece of the rows: the pieces, in the order of the ranks, are the rows again."""
        return np.array_split(rows, self.size)[self.rank]

    def seed(self, seed: int, epoch: int) -> None:
        """Give this rank random numbers of its own for an epoch, for dropout; the same ones after a resume.

        Rank 0 goes on with those of the checkpoint, as a lone worker does.
        """
        if self.rank:
            torch.manual_seed(int(np.random.default_rng((seed, epoch, self.rank)).integers(2**63)))


ALONE = Ranks()

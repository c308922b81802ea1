"""The workers of one trial, by rank: each trains on its part of every batch, and all hold the same weights.

A trial of one worker has the ranks `ALONE`, for which every function here is trivial. Several workers are the processes
of a torch.distributed group, which Ray Train or a test has started.
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
from models.layers.batch_norm import batch_norms
from tuner.errors import TunerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """A worker's rank among the workers of its trial. All workers must call a collective method together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> "Ranks":
        """The rank of this process in its process group; without a group, rank 0 of 1."""
        if not distributed.is_initialized():
            return cls()
        return cls(rank=distributed.get_rank(), size=distributed.get_world_size())

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wrap `model` so that backward averages the gradients over the ranks (collective, and so is its forward).

        BatchNorm uses the statistics of the whole batch, so its running statistics are the same on every rank, and no
        forward has to send rank 0's buffers to the others. `model` itself is trained; save and evaluate it, not the
        wrapper.

        Raises:
            ValueError: the model has a BatchNorm of torch, whose statistics would be those of each rank's part.
        """
        if self.size == 1:
            return model
        for norm in batch_norms(model):
            norm.over_ranks = True
        return DistributedDataParallel(model, broadcast_buffers=False)

    def unreduced(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which backward adds to the rank's own gradients; the next backward outside averages the sums.

        `model` is what `parallel` returned.
        """
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the ranks, in place; every rank gets the same bits (collective)."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Collect every rank's value, in the order of the ranks (collective). Only our own workers pickle values."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], T]) -> T:
        """Run `action`, which may fail on one rank alone: then all ranks fail and none waits forever (collective).

        Raises:
            TunerError, DataError: the error of the first rank that failed.
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
        """This rank's piece of `rows`; the pieces of all ranks, in order, are `rows`."""
        return np.array_split(rows, self.size)[self.rank]

    def seed(self, seed: int, epoch: int) -> None:
        """Seed this rank's generator for an epoch, so that every rank draws its own dropout, the same after a resume.

        Rank 0 keeps the generator of the checkpoint, as a single worker does.
        """
        if self.rank:
            torch.manual_seed(int(np.random.default_rng((seed, epoch, self.rank)).integers(2**63)))


ALONE = Ranks()

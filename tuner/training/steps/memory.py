"""An epoch that runs out of GPU memory beside resident features is run again without them."""

import io
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from data.residency import Residency
from tuner.errors import first_line
from tuner.training.ranks import ALONE, Ranks

T = TypeVar("T")


class MemoryFallback:
    """Runs the epochs of a trial; features that are resident on its GPU make room where an epoch needs their memory.

    The epoch then begins again from the state that it began with, so its numbers are those of a trial that never had
    resident features. That state is held on the host until one epoch has succeeded beside the features: a batch of a
    later epoch needs no more memory. Several ranks do not fall back, because one of them alone would begin again.
    """

    def __init__(
        self,
        residency: Residency,
        device: torch.device,
        *,
        state: Callable[[], Any],
        restore: Callable[[Any], None],
        ranks: Ranks = ALONE,
    ) -> None:
        """Prepare the fallback.

        Args:
            residency: of the features that the trial reads.
            device: of the trial.
            state: gives the state of the trial, as tensors and plain values.
            restore: restores what `state` gave, on the CPU.
            ranks: the workers of the trial.
        """
        self.residency, self.device, self.ranks = residency, device, ranks
        self.state, self.restore = state, restore
        self.proved = False  # whether an epoch has succeeded beside the features

    def run(self, epoch: Callable[[], T]) -> T:
        """Run an epoch, with its validation.

        Raises:
            torch.OutOfMemoryError: there is too little memory without resident features as well.
        """
        before = self._before()
        try:
            return self._measured(epoch)
        except torch.OutOfMemoryError as error:
            if before is None or not self.residency.holds(self.device):
                raise
            reason = first_line(error)
        # Not in the handler above, where the error's traceback keeps the memory of the step that failed.
        self.residency.drop(self.device)
        self.restore(torch.load(before, map_location="cpu", weights_only=True))
        logging.getLogger(__name__).warning(
            "the features no longer stay on %s, as training needs their memory (%s); the epoch starts again",
            self.device,
            reason,
        )
        return self._measured(epoch)

    def _before(self) -> io.BytesIO | None:
        if self.proved or self.ranks.size > 1 or not self.residency.possible(self.device):
            return None
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        buffer.seek(0)
        return buffer

    def _measured(self, epoch: Callable[[], T]) -> T:
        result = epoch()
        self.proved = self.residency.holds(self.device)
        self.residency.trained(self.device)
        return result

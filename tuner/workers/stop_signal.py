"""Ends a trial that is not wanted any more between two of its batches, on all of its workers after the same one."""

import threading
from collections.abc import Callable

import torch

from tuner.training.ranks import Ranks

# Several ranks agree on the end after this many batches each time; it takes them a message.
BATCHES_BETWEEN_AGREEMENTS = 20


class TrialStopped(Exception):
    """The trial is not to be trained any further. No error: the scheduler, or the end of the search, has decided so."""


class StopSignal:
    """Is called before each batch of a trial (`Dataset.before_batch`), and raises when the trial is not wanted.

    A thread waits for that beside the training; with several ranks rank 0 has it, and tells the others.
    """

    def __init__(self, until_unwanted: Callable[[], object], ranks: Ranks, device: torch.device) -> None:
        """Begin to wait.

        Args:
            until_unwanted: returns when the trial is not wanted any more, or raises when nobody is left to say so.
            ranks: the workers of the trial.
            device: where they train.
        """
        self._ranks, self._device = ranks, device
        self._unwanted = threading.Event()
        self._batches = 0
        if ranks.rank == 0:
            threading.Thread(target=self._wait, args=(until_unwanted,), name="stop", daemon=True).start()

    def __call__(self) -> None:
        """Raise TrialStopped where the trial is not wanted any more (collective)."""
        if self._ranks.size == 1:
            unwanted = self._unwanted.is_set()
        else:
            self._batches += 1
            if self._batches % BATCHES_BETWEEN_AGREEMENTS:
                return
            unwanted = bool(self._ranks.sum(torch.tensor([float(self._unwanted.is_set())], device=self._device)))
        if unwanted:
            raise TrialStopped

    def _wait(self, until_unwanted: Callable[[], object]) -> None:
        try:
            until_unwanted()
        finally:
            self._unwanted.set()

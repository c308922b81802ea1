"""The pipelines by name: whichever a trial belongs to, it is a generator of Progress."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tuner import contrastive, train
from tuner.dataset import Dataset
from tuner.encoders import Shelf
from tuner.train import Progress
from tuner.trial_config import ContrastiveConfig, Trial


def run(
    trial: Trial,
    data: Dataset,
    *,
    device: torch.device,
    seed: int,
    resume_from: Path | None = None,
    shelf: Shelf | None = None,
) -> Iterator[Progress]:
    """Train a trial of any pipeline; arguments and errors as `tuner.contrastive.train` has them."""
    if isinstance(trial, ContrastiveConfig):
        return contrastive.train(trial, data, device=device, seed=seed, resume_from=resume_from, shelf=shelf)
    return train.train(trial, data, device=device, seed=seed, resume_from=resume_from)

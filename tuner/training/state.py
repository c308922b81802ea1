"""The state of a trial under way: what its generator yields, what a checkpoint stores, what an epoch reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models import optim
from models.optim import Average
from tuner.errors import CheckpointError
from tuner.training import checkpoint
from tuner.training.config import TrialConfig


class Saveable(Protocol):
    """The state of a trial of any pipeline, which can be saved as a checkpoint."""

    @property
    def history(self) -> list[dict[str, float]]:
        """The metrics of each finished epoch."""

    def save(self, directory: Path, trial: Any) -> None:
        """Write a checkpoint into `directory`, whole or not at all; `trial` is the trial's configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A finished epoch. `state` is the live state of the trial: save it before you advance the generator."""

    epoch: int  # finished epochs, from 1
    metrics: dict[str, float]  # by the keys that MLflow shows
    state: Saveable
    repeated: bool = False  # whether it is the checkpoint's own epoch, yielded again after a resume
    tags: Mapping[str, str] = field(default_factory=dict)  # of the trial's run in MLflow


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """The state of a supervised trial: all that is needed to resume it with the same results."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None  # None: the model is fitted in closed form
    bootstrap: torch.Generator
    average: Average | None = None
    history: list[dict[str, float]] = field(default_factory=list)  # the metrics of each finished epoch

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @property
    def scored(self) -> nn.Module:
        """The model that is validated and exported: the average of the weights where they are averaged."""
        return self.model if self.average is None else self.average.model

    def parts(self) -> dict[str, Any]:
        """The whole state but the weights of `scored`, as tensors and plain values."""
        average = self.average
        return {
            "history": self.history,
            "live": average and {"weights": self.model.state_dict(), "steps_averaged": average.steps},
            "optimizer": self.optimizer and self.optimizer.state_dict(),
            "bootstrap": self.bootstrap.get_state(),
            **random_state(self.bootstrap.device),
        }

    def whole(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights of `scored` and `parts`, the arguments of `restore`."""
        return self.scored.state_dict(), self.parts()

    def restore(self, weights: dict[str, Tensor], parts: dict[str, Any]) -> None:
        """Restore the weights of `scored` and what `parts` gave, random number generators included."""
        self.scored.load_state_dict(weights)
        if self.average is not None:
            self.model.load_state_dict(parts["live"]["weights"])
            self.average.steps = parts["live"]["steps_averaged"]
        if self.optimizer is not None:
            optim.restore(self.optimizer, parts["optimizer"])
        self.bootstrap.set_state(parts["bootstrap"])
        set_random_state(parts, self.bootstrap.device)
        self.history = parts["history"]

    def save(self, directory: Path, trial: TrialConfig) -> None:
        """Write the state into `directory`, whole or not at all."""
        checkpoint.save(directory, model=self.scored.state_dict(), training=self.parts(), settings=trial.settings)

    def load(self, directory: Path, trial: TrialConfig) -> None:
        """Restore the state that a checkpoint stores.

        Raises:
            CheckpointError: the checkpoint is damaged, or belongs to other settings or to data of other widths.
        """
        weights, parts = checkpoint.load(directory, settings=trial.settings)
        try:
            self.restore(weights, parts)
        except RuntimeError as error:  # load_state_dict's, where the data has other features or classes
            raise CheckpointError(f"{directory}: the weights do not fit the trial's model ({error})") from error


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's global random number generators that a trial on `device` draws from."""
    return {
        "rng": torch.get_rng_state(),
        "rng_cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the generators to what `random_state` gave, on a machine with any number of GPUs.

    Checkpoints of earlier versions have the generators of all GPUs of their machine, by index. Of those, the trial's
    device gets its own, or the first where the list ends before it.
    """
    torch.set_rng_state(state["rng"])
    states = state["rng_cuda"]
    if states and device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_rng_state(states[index if index < len(states) else 0], device)


SCORE = "gap_best"  # the metric of an epoch that is the score of its trial; more is better


def validated(scores: dict[str, float], history: list[dict[str, float]]) -> dict[str, float]:
    """The validation metrics of an epoch; `gap_best` is the best GAP so far.

    Args:
        scores: what `evaluation.evaluate` gave for the epoch's model.
        history: the metrics of the epochs before it.
    """
    return {
        "gap": scores["gap"],
        SCORE: max([scores["gap"], *(past["gap"] for past in history)]),
        "hit_at_1": scores["hit_at_1"],
        "perr": scores["perr"],
        "map": scores["map"],
        "loss_validate": scores["loss"],
    }


def device_metrics(device: torch.device) -> dict[str, float]:
    """The peak memory of a GPU so far, in GiB; an empty dict on a CPU."""
    return {"gpu_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}

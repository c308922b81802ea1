"""An exponential average of a model's weights over the steps of its training: what is validated and exported.

    average_t = sum_i decay ** (t - i) weights_i / sum_i decay ** (t - i)        i = 1 ... t, after each step

The division makes it a mean of the weights seen so far from the first step on; without it, an average that starts at
the first weights (as the 2018 winner's does) remembers these for thousands of steps.

BatchNorm's running statistics are averaged by the same rule. To estimate them anew for the averaged weights would take
another pass over the data after every epoch; averaged alike they belong to the same steps as the weights do.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageConfig:
    """How long the average remembers: one of the two."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    decay: float | None = None  # what the steps so far weigh after another one
    half_life: float | None = None  # steps after which a step weighs half: decay = 2 ** (-1 / half_life)

    def __post_init__(self) -> None:
        """Checks the ranges.

        NOTE: the 2018 winner calls h in decay = 1 - 1/h its half-life (2000 to 3000); steps really weigh half after
        h ln 2. Give that decay here, or the real half-life.
        """
        if (self.decay is None) == (self.half_life is None):
            raise ValueError(f"give either decay or half_life, but got {self.decay} and {self.half_life}")
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), but got {self.decay}")
        if self.half_life is not None and not self.half_life > 0:
            raise ValueError(f"half_life must be positive, but got {self.half_life}")

    @property
    def rate(self) -> float:
        """The decay, however it was given."""
        return self.decay if self.decay is not None else float(2 ** (-1 / (self.half_life or 1.0)))


class Average:
    """The averaged model and how many steps are in it. To be updated after every step of the optimizer."""

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        """Starts as a copy of the model, which no step is in yet."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = config.rate, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the weights and buffers that the model has now."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)  # of the newest weights; 1 for the first
        averaged, live = self._pairs(model)
        torch._foreach_lerp_(averaged, live, share)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The averaged numbers and the live ones; counters, which have no mean, are copied."""
        averaged, live = [], []
        theirs = model.state_dict()
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                live.append(theirs[name])
            else:
                tensor.copy_(theirs[name])
        return averaged, live

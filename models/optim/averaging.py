"""An exponential average of a model's weights over the steps of its training, for validation and export.

    average_t = sum_i decay ** (t - i) weights_i / sum_i decay ** (t - i)        i = 1 ... t, after each step

The division makes it a mean of the weights after every step, from the first on. Without it, an average that starts at
the initial weights, like that of the winner of 2018, depends on them for thousands of steps.

BatchNorm's running statistics are averaged by the same rule, so that they belong to the same steps as the weights. To
estimate them again for the averaged weights would need another pass over the data after every epoch.

NOTE: torch.optim.swa_utils.AveragedModel cannot replace this class bit for bit: it keeps its count of steps in a tensor
that is part of the state, copies or averages all buffers by one rule, and prefixes the names of the weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from data.ranges import Range, Share, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageConfig:
    """How fast old weights lose their share in the average: give one of the two."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Factor by which each step reduces the share of all earlier steps in the average; give decay or half_life.
    decay: Share | None = None
    # Number of steps after which the share of a step is halved: decay = 2 ** (-1 / half_life); give decay or half_life.
    half_life: Annotated[float, Range(1e-3, 1e9)] | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        NOTE: the winner of 2018 calls h in decay = 1 - 1/h its half-life (2000 to 3000 steps). The weight of a step is
        really halved after h ln 2 steps: give that decay here, or the real half-life.
        """
        if (self.decay is None) == (self.half_life is None):
            raise ValueError(f"give either decay or half_life, but got {self.decay} and {self.half_life}")
        check_ranges(self)

    @property
    def rate(self) -> float:
        """The decay, given as such or by its half-life."""
        return self.decay if self.decay is not None else float(2 ** (-1 / (self.half_life or 1.0)))


class Average:
    """The averaged model and the number of steps in it; call `update` after every step of the optimizer."""

    def __init__(self, model: nn.Module, config: AverageConfig) -> None:
        """Starts as a copy of the model, with no step in the average."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = config.rate, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Adds the current weights and buffers of the model to the average."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)  # of the newest weights; 1 for the first
        averaged, live = self._pairs(model)
        torch._foreach_lerp_(averaged, live, share)

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The averaged and the current floating-point tensors; counters, which have no mean, are copied instead."""
        averaged, live = [], []
        theirs = model.state_dict()
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(tensor)
                live.append(theirs[name])
            else:
                tensor.copy_(theirs[name])
        return averaged, live

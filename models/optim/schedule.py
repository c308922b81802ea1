"""Learning rates as a function of the examples seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from data.ranges import Fraction, Range, Share, UpToAll, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes with the examples seen."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # How the learning rate changes. constant: not at all. staircase: multiplied by `decay` after every `decay_examples`
    # videos. cosine: falls to `final` along half a cosine wave. step: multiplied by `factor` at every milestone.
    kind: Literal["constant", "staircase", "cosine", "step"] = "constant"
    decay: Fraction = 0.95  # staircase: number by which the learning rate is multiplied at each fall
    # staircase: number of training videos between two falls; a video counts again in each epoch.
    decay_examples: Annotated[int, Range(1, 10**12)] = 4_000_000
    # step: the points at which the learning rate falls, as fractions of the training; the default is that of MoCo v1.
    milestones: tuple[Annotated[float, Range(0, 1, "both")], ...] = (0.6, 0.8)
    factor: Fraction = 0.1  # step: number by which the learning rate is multiplied at each milestone
    final: UpToAll = 0.0  # cosine: the learning rate at the end, as a fraction of the largest one
    # Fraction of the training in which the learning rate rises linearly from 0; it applies to every kind.
    warmup: Share = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def learning_rate_at(schedule: ScheduleConfig, peak: float, examples_seen: int, total_examples: int) -> float:
    """The learning rate of the step that follows the first `examples_seen` of `total_examples` examples.

    constant:   peak
    staircase:  peak * decay ** floor(examples_seen / decay_examples)
    cosine:     peak * (final + (1 - final) * (1 + cos(pi t)) / 2), t = progress from 0 to 1 after the warm-up
    step:       peak * factor ** (number of milestones passed)

    During the warm-up, the rate is multiplied by examples_seen / (warmup * total_examples). Past the end, a cosine or
    step schedule keeps its last rate.

    Raises:
        ValueError: examples_seen is negative, or total_examples is below 1.
    """
    if examples_seen < 0 or total_examples < 1:
        raise ValueError(
            f"examples_seen must be >= 0 and total_examples >= 1, but got {examples_seen} and {total_examples}"
        )
    warmup_examples = schedule.warmup * total_examples
    rate = peak
    if schedule.kind == "staircase":
        rate *= schedule.decay ** (examples_seen // schedule.decay_examples)
    elif schedule.kind == "cosine":
        progress = (examples_seen - warmup_examples) / (total_examples - warmup_examples)
        half_wave = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
        rate *= schedule.final + (1 - schedule.final) * half_wave
    elif schedule.kind == "step":
        rate *= schedule.factor ** sum(examples_seen >= m * total_examples for m in schedule.milestones)
    return rate * min(examples_seen / warmup_examples, 1.0) if warmup_examples else rate

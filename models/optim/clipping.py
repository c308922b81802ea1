"""Limits on the norms of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from data.ranges import Positive, check_ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """The largest norm of a gradient."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # none: no limit. per_variable: the gradient of each parameter has its own norm, as in google/youtube-8m. global:
    # the gradients of all parameters have one norm together.
    kind: Literal["none", "per_variable", "global"] = "none"
    # Largest Euclidean norm; a longer gradient is scaled down to it. It has no effect with kind none.
    norm: Positive = 1.0

    def __post_init__(self) -> None:
        """Checks the range."""
        check_ranges(self)


@torch.no_grad()
def clip(parameters: Iterable[Tensor], config: ClipConfig) -> None:
    """Scales gradients in place so that no norm exceeds config.norm: g * min(1, norm / ||g||).

    per_variable: each gradient by its own norm, as TensorFlow's clip_by_norm.
    global: all gradients by the norm of all together, which keeps their direction.

    Parameters without a gradient are skipped. The host does not wait for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if config.kind == "none" or not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    if config.kind == "global":
        norms = torch.linalg.vector_norm(norms).expand(len(gradients))
    # A zero gradient gives an infinite scale, which is cut to 1.
    for gradient, scale in zip(gradients, (config.norm / norms).clamp(max=1).unbind(), strict=True):
        gradient.mul_(scale)

"""NetRVLAD: NetVLAD without the centres, so the sums of each cluster's frames themselves ("LightVLAD").

    V_dk = sum_t a_tk x_td,   each cluster's column at length 1, then all of them together

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), LightVLAD
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from .heads import HeadConfig
from .layers import NormalizeKind, Sizes
from .netvlad import Vlad
from .pooling import check


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRVladConfig:
    """Settings of NetRVLAD."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"

    kind: Literal["netrvlad"] = "netrvlad"
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    clusters: Mapping[str, int]  # of each feature, by name (published: 256 rgb, 128 audio)
    hidden: int = 1024  # units of the layer after the pooling
    relu: bool = False  # BatchNorm and relu6 after the hidden layer
    context_gating: bool = True
    batch_norm: bool = True  # else biases
    batch_norm_momentum: float = 0.1  # weight of a new batch in the running statistics; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self)


def sums_of_frames(config: NetRVladConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> Vlad:
    """The pooling of one feature."""
    return Vlad(config, name, sizes, generator, residual=False)

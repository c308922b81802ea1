"""NetRVLAD: NetVLAD without the centres, so the sums of each cluster's frames themselves ("LightVLAD").

    V_dk = sum_t a_tk x_td,   each cluster's column at length 1, then all of them together

Shapes   B videos   T frames of the longest of them   D features of a frame   K clusters
Source   WILLOW (2017), LightVLAD
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from models.frame.netvlad import Vlad
from models.frame.pooling import Clustered
from models.layers import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRVladConfig(Clustered):
    """Settings of NetRVLAD; published with 256 clusters of rgb, 128 of audio."""

    kind: Literal["netrvlad"] = "netrvlad"
    context_gating: bool = True


def sums_of_frames(config: NetRVladConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> Vlad:
    """The pooling of one feature."""
    return Vlad(config, name, sizes, generator, residual=False)

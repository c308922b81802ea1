"""NetRVLAD ("LightVLAD"): NetVLAD without centres, so for each cluster the weighted sum of the frames themselves.

    V_dk = sum_t a_tk x_td,   each cluster's column scaled to length 1, then all together

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K clusters
Source   WILLOW (2017), LightVLAD
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from models.frame.netvlad import Vlad
from models.frame.parts.clusters import ClusteredConfig
from models.inputs import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class NetRVladConfig(ClusteredConfig):
    """Settings of NetRVLAD. WILLOW has 256 clusters for rgb and 128 for audio."""

    kind: Literal["netrvlad"] = "netrvlad"
    context_gating: bool = True


def sums_of_frames(config: NetRVladConfig, name: str, sizes: Sizes, generator: torch.Generator | None) -> Vlad:
    """The pooling of the feature `name`."""
    return Vlad(config, name, sizes, generator, residual=False)

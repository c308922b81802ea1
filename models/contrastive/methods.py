"""The table of contrastive methods: what `pretrain.kind` may be, with its settings.

Sources  v1 arXiv 1911.05722, v2 arXiv 2003.04297, v3 arXiv 2104.02057
Shapes   F dimensions of an embedding   K keys in a queue
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from data.ranges import Count, Range, Share, check_ranges

Temperature = Annotated[float, Range(1e-3, 1e3)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV1Config:
    """Settings of MoCo v1; the defaults are those of the paper, for a million images."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v1"] = "moco_v1"
    temperature: Temperature = 0.07  # divides the cosines
    dimension: Count = 128  # F
    queue: Count = 65536  # K; fewer for small data, as a video's own older keys count as other videos
    momentum: Share = 0.999  # share of its old weights that the momentum encoder keeps in a step
    batch_norm_groups: Count = 8  # with BatchNorm only: number of groups of the batch with separate statistics

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV2Config:
    """Settings of MoCo v2: v1 with a projector of two layers, a higher temperature and stronger views."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v2"] = "moco_v2"
    temperature: Temperature = 0.2  # divides the cosines
    dimension: Count = 128  # F
    queue: Count = 65536  # K; fewer for small data, as a video's own older keys count as other videos
    momentum: Share = 0.999  # share of its old weights that the momentum encoder keeps in a step
    batch_norm_groups: Count = 8  # with BatchNorm only: number of groups of the batch with separate statistics

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV3Config:
    """Settings of MoCo v3: no queue, both directions, a predictor; the defaults are those of the paper for ResNet-50.

    The negatives are the other videos of the batch, so large batches are better (4096 in the paper).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v3"] = "moco_v3"
    temperature: Temperature = 1.0  # divides the cosines
    dimension: Count = 256  # F
    hidden: Count = 4096  # units between the layers of projector and predictor
    momentum: Share = 0.99  # share of its old weights that the momentum encoder keeps; it rises to 1
    # With BatchNorm only. 1 is allowed: the paper has SyncBN, whose statistics are those of the whole batch. The
    # negatives come from the same batch as the key, so the statistics do not reveal the key, as they do beside a queue.
    batch_norm_groups: Count = 8

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


MethodConfig = MocoV1Config | MocoV2Config | MocoV3Config

METHODS: dict[str, type[MethodConfig]] = {"moco_v1": MocoV1Config, "moco_v2": MocoV2Config, "moco_v3": MocoV3Config}


def leaks(config: MethodConfig, batch_norm: bool) -> bool:
    """Whether the statistics of an encoder's BatchNorm reveal which key belongs to a query (v1 and v2, one group)."""
    return batch_norm and config.batch_norm_groups == 1 and not isinstance(config, MocoV3Config)

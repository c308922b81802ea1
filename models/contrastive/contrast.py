"""MoCo v1, v2 and v3 on precomputed features: the encoder learns to find a video's other view among many videos.

    contrast = Contrast(config, encoder, features, views, cross_modal, generator)
    result = contrast(features_BD, progress, generator)    # then result.loss.backward() and a step of an optimizer
    contrast.encoder                                       # the given encoder, trained

Shapes   B videos in the batch   D features, all names side by side   F dimensions of an embedding   K keys in a queue
Sources  v1 arXiv 1911.05722, v2 arXiv 2003.04297, v3 arXiv 2104.02057; between modalities FuseMix, arXiv 2312.10144

NOTE: the papers augment images; precomputed features cannot be cropped or recoloured. The views here are those of
models/contrastive/views.py, so the figures of the papers are a reference for the method and not for a result.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.ranges import Range, Share, check_ranges
from models.contrastive.heads import predictor, projector
from models.contrastive.info_nce import info_nce, spread
from models.contrastive.methods import MethodConfig, MocoV3Config, leaks
from models.contrastive.momentum import ema_, momentum_at
from models.contrastive.queue import Queue
from models.contrastive.views import ViewsConfig, check, mix, view
from models.layers.batch_norm import batch_norms, grouped_statistics
from models.video.fused_mlp import Block, FusedEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossModalConfig:
    """Settings of the contrast between the features of a video, say image and audio."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Share of the contrast between features in the loss; the contrast between two views of a video has the rest. 0: no
    # contrast between features.
    weight: Share = 0.5
    # Parameter alpha of the Beta distribution (1: uniform) of the ratios at which two videos are mixed; 0: videos are
    # not mixed.
    mix: Annotated[float, Range(0, 1e3)] = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveResult:
    """The result of one batch, scalars on its device; `correct` and `spread` are those of the views of all features.

    correct: fraction of the queries whose own key is the nearest, of 1 + K keys, for v3 of B. A tie is an error, so
        collapsed embeddings give 0.
    spread: about 1 where the queries are spread over the whole sphere, 0 where they have collapsed to a point; see
        models.contrastive.info_nce.spread.
    """

    loss: Tensor  # float32; call backward on it
    correct: Tensor
    spread: Tensor


class Contrast(nn.Module):
    """An encoder in contrastive training, with its momentum encoder, the heads of both, and the queues.

    The parameters to train are those with requires_grad; the momentum encoder and its heads have none. The state holds
    all that a resumed training needs. All random numbers come from the given generators, except those of the encoder's
    dropout, which come from torch's global generator. Dropout is on for queries and keys, one more difference between
    two views.

    With BatchNorm, the number of videos in a batch must be a multiple of `batch_norm_groups`, at least two for each
    group. The groups of the queries are rows of the batch, those of the keys are rows of a shuffled batch: a query
    shares its statistics with other rows than its key does, so the statistics do not reveal the key (Shuffling BN, on
    one device). NOTE: in the papers, each of 8 GPUs has its own statistics; for v3 all have those of the whole batch.
    After `forward`, the encoder's BatchNorm has the number of groups that it had before; its running statistics are
    those of views.

    With `cross_modal`, the tower of each feature, with its own head, is an encoder of that feature. For every ordered
    pair of features of a video, the query of one must find the key of the other. The loss is (1 - weight) * loss of the
    views + weight * mean loss over these pairs.
    """

    def __init__(
        self,
        config: MethodConfig,
        encoder: FusedEncoder,
        features: Mapping[str, int],
        views: ViewsConfig,
        cross_modal: CrossModalConfig | None,
        generator: torch.Generator,
    ) -> None:
        """Builds heads and queues on the given encoder, which will be trained in place.

        Args:
            config: settings of the method.
            encoder: the encoder to train.
            features: width of each feature by name, in the order of a row's columns.
            views: the views of a video.
            cross_modal: the contrast between features; None, or a weight of 0: no such contrast.
            generator: draws heads and queues; on the CPU.

        Raises:
            ValueError: the encoder, the views or the cross-modal part do not fit the features, the statistics of one
                BatchNorm group would reveal the keys of v1 and v2, or the encoder has a BatchNorm without groups.
        """
        super().__init__()
        if list(features.values()) != encoder.widths:
            raise ValueError(
                f"features must have the encoder's widths {encoder.widths}, but got {list(features.values())}"
            )
        check(views, features)
        if cross_modal is not None and len(features) < 2:
            raise ValueError(f"cross_modal must be left out for data with one feature, but got {', '.join(features)}")
        batch_norm = bool(batch_norms(encoder))
        if leaks(config, batch_norm):
            raise ValueError(
                f"batch_norm_groups must be at least 2 for {config.kind} on an encoder with BatchNorm: over the whole "
                "batch its statistics reveal which key belongs to a query, but got 1"
            )
        self.config, self.features, self.views = config, dict(features), views
        self.cross_modal = cross_modal if cross_modal is not None and cross_modal.weight else None
        self.groups = config.batch_norm_groups if batch_norm else 1
        self.encoder = encoder
        # One head and queue for the whole encoder (number 0), and with `cross_modal` for each tower (number 1, 2, ...).
        backbones = [encoder.joint, *(encoder.towers if self.cross_modal else [])]
        units = [backbone.linear.out_features for backbone in backbones if isinstance(backbone, Block)]
        self.projectors = nn.ModuleList(projector(config, inputs, batch_norm, generator) for inputs in units)
        self.predictors = nn.ModuleList(predictor(config, batch_norm, generator) for _ in units)
        self.queues = nn.ModuleList()
        if not isinstance(config, MocoV3Config):
            self.queues.extend(Queue(config.queue, config.dimension, generator) for _ in units)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projectors = copy.deepcopy(self.projectors).requires_grad_(False)

    def forward(self, features_BD: Tensor, progress: float, generator: torch.Generator) -> ContrastiveResult:
        """Computes the loss of a batch; in training also updates the momentum encoder (before) and the queues (after).

        Args:
            features_BD: of any float dtype, not normalised, features side by side in the order of `features`.
            progress: of the whole training, from 0 to 1.
            generator: draws the views and the shuffle; on the features' device.
        """
        if self.training:
            momentum = self.config.momentum
            if isinstance(self.config, MocoV3Config):
                momentum = momentum_at(momentum, progress)
            ema_(self.key_encoder, self.encoder, momentum)
            ema_(self.key_projectors, self.projectors, momentum)
        normalized_BD = self.encoder.normalize(features_BD)
        order_B = torch.randperm(len(features_BD), generator=generator, device=features_BD.device)
        with grouped_statistics(self, self.groups):
            loss, correct, spreading, keys = self._between_views(normalized_BD, order_B, generator)
            if self.cross_modal is not None:
                crossing, more_keys = self._between_features(normalized_BD, self.cross_modal.mix, order_B, generator)
                loss = (1 - self.cross_modal.weight) * loss + self.cross_modal.weight * crossing
                keys += more_keys
        if isinstance(self.config, MocoV3Config):
            loss = 4 * self.config.temperature * loss  # as in the paper: the sum of two directions, each times 2 T
        elif self.training:
            for number, keys_BF in enumerate(keys):
                self._queue(number).push(keys_BF)
        return ContrastiveResult(loss=loss, correct=correct, spread=spreading)

    def _between_views(
        self, normalized_BD: Tensor, order_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """(loss, correct, spread, keys to enqueue) of two views; v3 averages both directions, v1 and v2 have one."""
        first_BD = view(normalized_BD, self.features, self.views, generator)
        second_BD = view(normalized_BD, self.features, self.views, generator)
        directions = [(first_BD, second_BD)]
        if isinstance(self.config, MocoV3Config):
            directions.append((second_BD, first_BD))
        results = []
        for one_BD, other_BD in directions:
            queries_BF, keys_BF = self._queries(0, one_BD), self._keys(0, other_BD, order_B)
            results.append((*self._info_nce(queries_BF, keys_BF, 0), spread(queries_BF)))
        loss, correct, spreading = (torch.stack(values).mean() for values in zip(*results, strict=True))
        return loss, correct, spreading, [keys_BF]

    def _between_features(
        self, normalized_BD: Tensor, alpha: float, order_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """(mean loss over the ordered pairs of features, keys to enqueue for each feature)."""
        mixed_BD = mix(normalized_BD, alpha, generator) if alpha else normalized_BD
        emphasised_BD = mixed_BD * self.encoder.emphasis_D  # as `encode` gives the towers their columns
        parts = list(enumerate(torch.split(emphasised_BD, self.encoder.widths, dim=1), start=1))
        queries = {number: self._queries(number, part) for number, part in parts}
        keys = {number: self._keys(number, part, order_B) for number, part in parts}
        losses = [self._info_nce(queries[one], keys[other], other)[0] for one, other in permutations(queries, 2)]
        return torch.stack(losses).mean(), list(keys.values())

    def _queries(self, number: int, x: Tensor) -> Tensor:
        """Embeddings [B, F] of length 1 in float32; `number` 0: of all features, else of the feature of that tower."""
        projected: Tensor = self.projectors[number](_backbone(self.encoder, number, x))
        return F.normalize(self.predictors[number](projected).float(), dim=1)

    @torch.no_grad()
    def _keys(self, number: int, x: Tensor, order_B: Tensor) -> Tensor:
        """Embeddings of the momentum encoder [B, F], computed in the order given and returned in the batch's order."""
        projected: Tensor = self.key_projectors[number](_backbone(self.key_encoder, number, x[order_B]))
        shuffled_BF = F.normalize(projected.float(), dim=1)
        return torch.empty_like(shuffled_BF).index_copy_(0, order_B, shuffled_BF)

    def _info_nce(self, queries_BF: Tensor, keys_BF: Tensor, number: int) -> tuple[Tensor, Tensor]:
        # A copy: backward needs these keys, and the queue has overwritten them by then.
        negatives_KF = self._queue(number).keys.clone() if self.queues else None
        return info_nce(queries_BF, keys_BF, negatives_KF, self.config.temperature)

    def _queue(self, number: int) -> Queue:
        queue = self.queues[number]
        assert isinstance(queue, Queue)
        return queue


def _backbone(encoder: FusedEncoder, number: int, x: Tensor) -> Tensor:
    """The input of a head: the output of the whole encoder for number 0, else of one tower."""
    units: Tensor = encoder.towers[number - 1](x) if number else encoder.encode(x)
    return units

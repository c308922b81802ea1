"""MoCo v1, v2 and v3 on precomputed features: the encoder learns to find a video's other view among many videos.

Shapes   B videos in the batch   D features of all names   H units of the encoder   F dimensions of an embedding
         K keys in a queue
Sources  v1 arXiv 1911.05722, v2 arXiv 2003.04297, v3 arXiv 2104.02057; between modalities FuseMix, arXiv 2312.10144

contrast = Contrast(config, encoder, features, views, cross_modal, generator)
step = contrast(features_BD, progress, generator)      # then step.loss.backward() and an optimizer's step
contrast.encoder                                       # the encoder that was given, trained

NOTE: the papers augment images; precomputed features have no crops and colours. Here a view is one of
models/contrastive/views.py,
so the papers' numbers are a reference for the method and not for a result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contrastive.views import ViewsConfig, check, mix, view
from models.layers import BatchNorm, linear
from models.losses.cross_entropy import softplus
from models.video.fused_mlp import Block, FusedEncoder

TIE = 1e-6  # cosines as near as this are equal: their difference is that of two ways to sum in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV1Config:
    """Settings of MoCo v1; the defaults are the published ones, for a million images."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v1"] = "moco_v1"
    temperature: float = 0.07  # divides the cosines
    dimension: int = 128  # F
    queue: int = 65536  # K; of small data less: a video's own older keys in the queue count as other videos
    momentum: float = 0.999  # share of a key encoder's weight that a step leaves as it was
    batch_norm_groups: int = 8  # read with BatchNorm only: statistics are taken over this many groups of the batch

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV2Config:
    """Settings of MoCo v2: v1 with a head of two layers, a higher temperature and stronger views."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v2"] = "moco_v2"
    temperature: float = 0.2  # divides the cosines
    dimension: int = 128  # F
    queue: int = 65536  # K; of small data less: a video's own older keys in the queue count as other videos
    momentum: float = 0.999  # share of a key encoder's weight that a step leaves as it was
    batch_norm_groups: int = 8  # read with BatchNorm only: statistics are taken over this many groups of the batch

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MocoV3Config:
    """Settings of MoCo v3: no queue, both directions, a predictor; the defaults are those published for ResNet-50.

    The other videos of the batch are the negatives, so it wants large batches (published: 4096).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v3"] = "moco_v3"
    temperature: float = 1.0  # divides the cosines
    dimension: int = 256  # F
    hidden: int = 4096  # units between the layers of projector and predictor
    momentum: float = 0.99  # share of a key encoder's weight that a step leaves as it was, at the start; at the end 1
    # Read with BatchNorm only. 1 is allowed: v3 was published with SyncBN, whose statistics are the whole batch's. The
    # negatives are of the same batch as the key, so these do not tell which key is whose as they do beside a queue.
    batch_norm_groups: int = 8

    def __post_init__(self) -> None:
        """Checks the ranges."""
        _check(self)


MethodConfig = MocoV1Config | MocoV2Config | MocoV3Config

METHODS: dict[str, type[MethodConfig]] = {"moco_v1": MocoV1Config, "moco_v2": MocoV2Config, "moco_v3": MocoV3Config}


def leaks(config: MethodConfig, batch_norm: bool) -> bool:
    """Whether an encoder's BatchNorm over the whole batch would tell which key is a query's own (v1 and v2)."""
    return batch_norm and config.batch_norm_groups == 1 and not isinstance(config, MocoV3Config)


def _check(config: MethodConfig) -> None:
    if not 0 < config.temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, but got {config.temperature}")
    if not 0 <= config.momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), but got {config.momentum}")
    for name in ("dimension", "queue", "hidden", "batch_norm_groups"):
        if getattr(config, name, 1) < 1:
            raise ValueError(f"{name} must be at least 1, but got {getattr(config, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossModalConfig:
    """Settings of the contrast between the features of a video, say its picture and its sound."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    weight: float = 0.5  # share of the loss; the rest is that of two views of all features. 0 leaves it out
    mix: float = 0.0  # alpha of the Beta distribution that videos are mixed by (1 = evenly); 0 mixes none

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.weight < 1:
            raise ValueError(f"weight must be in [0, 1), but got {self.weight}")
        if not 0 <= self.mix < math.inf:
            raise ValueError(f"mix must be finite and not negative, but got {self.mix}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one batch gives: scalars on its device. `correct` and `spread` are those of the two views of all features.

    correct: fraction of queries to which their own key is nearer than every other: of 1 + K keys, for v3 of B. A tie
        is an error, so collapsed embeddings score 0.
    spread: about 1 when the queries spread over the whole sphere, 0 when they have collapsed to a point; see `spread`.
    """

    loss: Tensor  # to call backward on; float32
    correct: Tensor
    spread: Tensor


class Queue(nn.Module):
    """The last K keys, oldest overwritten first; full of random directions at the start, as published.

    Both buffers are saved with the model. A batch may have any size, also more than K keys.
    """

    keys: Tensor
    head: Tensor

    def __init__(self, size: int, dimension: int, generator: torch.Generator) -> None:
        """Draws the K = `size` first keys."""
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dimension, generator=generator), dim=1))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64))  # where the oldest key is

    @torch.no_grad()
    def push(self, keys_BF: Tensor) -> None:
        """Puts the keys in the place of the oldest ones; of more than K, the last K."""
        last = keys_BF[-len(self.keys) :].to(self.keys.dtype)
        slots = (self.head + torch.arange(len(last), device=self.head.device)) % len(self.keys)
        self.keys.index_copy_(0, slots, last)
        self.head.copy_((self.head + len(last)) % len(self.keys))


def info_nce(
    queries_BF: Tensor, keys_BF: Tensor, negatives_KF: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """mean_b -log( exp(q_b k_b / T) / (exp(q_b k_b / T) + sum_n exp(q_b n / T)) ), in float32 also under autocast.

    Args:
        queries_BF: of length 1, as all the others.
        keys_BF: row b is the key of query b.
        negatives_KF: the other keys; None takes the keys of the batch's other rows.
        temperature: T.

    Returns:
        The loss, and the fraction of queries to which their own key is nearer than all others. A tie is an error, and
        so is what may be one but for rounding.

    Raises:
        ValueError: there is no other key.
    """
    if negatives_KF is None and len(keys_BF) < 2:
        raise ValueError(f"a batch without a queue must have at least 2 videos, but got {len(keys_BF)}")
    with torch.autocast(queries_BF.device.type, enabled=False):
        queries_BF, keys_BF = queries_BF.float() / temperature, keys_BF.float()
        if negatives_KF is None:
            logits_BB = queries_BF @ keys_BF.T
            own_B = logits_BB.diagonal()
            others_BK = logits_BB.masked_fill(
                torch.eye(len(keys_BF), dtype=torch.bool, device=keys_BF.device), -torch.inf
            )
        else:
            own_B = (queries_BF * keys_BF).sum(dim=1)
            others_BK = queries_BF @ negatives_KF.float().T
        # -log(e^p / (e^p + e^n)) = log(1 + e^(n - p)): without one more [B, K] in which both stand side by side.
        loss = softplus(others_BK.logsumexp(dim=1) - own_B).mean()
        margin_B = own_B.detach() - others_BK.detach().amax(dim=1)
        correct = (margin_B > TIE / temperature).float().mean()
    return loss, correct


def spread(embeddings_BF: Tensor) -> Tensor:
    """sqrt(F) * mean_f std_b(e_bf) of embeddings of length 1, with the biased std.

    1 is the most there is: all dimensions vary as much as on the whole sphere, about a mean of 0. 0 is a collapse.
    """
    return embeddings_BF.detach().float().std(dim=0, correction=0).mean() * math.sqrt(embeddings_BF.shape[1])


def momentum_at(momentum: float, progress: float) -> float:
    """1 - (1 - momentum) (1 + cos(pi progress)) / 2: from `momentum` up to 1, as in v3."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


@torch.no_grad()
def ema_(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Moves a module towards another of the same kind: target <- momentum * target + (1 - momentum) * source.

    Over parameters only, as published: BatchNorm's running statistics evolve by the target's own batches.
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)


def projector(config: MethodConfig, units: int, batch_norm: bool, generator: torch.Generator) -> nn.Module:
    """[B, units] -> [B, F]: what is put on an encoder, of queries and of keys, and thrown away after the training.

    NOTE: weights start as all of ours do (models.layers.linear); the published ones as torch's, or for v3's ViT by
    Xavier.
    """
    if isinstance(config, MocoV1Config):
        return linear(units, config.dimension, generator)
    if isinstance(config, MocoV2Config):
        return nn.Sequential(linear(units, units, generator), nn.ReLU(), linear(units, config.dimension, generator))
    return nn.Sequential(
        _without_bias(linear(units, config.hidden, generator)),
        _norm(config.hidden, batch_norm),
        nn.ReLU(),
        _without_bias(linear(config.hidden, config.dimension, generator)),
        _norm(config.dimension, batch_norm).requires_grad_(False),  # published: without weight and bias; they stay 1, 0
    )


def predictor(config: MethodConfig, batch_norm: bool, generator: torch.Generator) -> nn.Module:
    """[B, F] -> [B, F]: what v3 puts on the projector of the queries alone; nothing for v1 and v2."""
    if not isinstance(config, MocoV3Config):
        return nn.Identity()
    return nn.Sequential(
        _without_bias(linear(config.dimension, config.hidden, generator)),
        _norm(config.hidden, batch_norm),
        nn.ReLU(),
        _without_bias(linear(config.hidden, config.dimension, generator)),  # no norm behind it, as for ResNet
    )


def _norm(units: int, batch_norm: bool) -> nn.Module:
    """As the encoder has it. NOTE: published with BatchNorm; LayerNorm keeps a row from depending on the others."""
    return BatchNorm(units) if batch_norm else nn.LayerNorm(units)


def _without_bias(layer: nn.Linear) -> nn.Linear:
    layer.register_parameter("bias", None)
    return layer


@contextmanager
def grouped_statistics(module: nn.Module, groups: int) -> Iterator[None]:
    """Every BatchNorm in the module takes its statistics over this many groups of the batch, within the context."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    before = [norm.groups for norm in norms]
    for norm in norms:
        norm.groups = groups
    try:
        yield
    finally:
        for norm, were in zip(norms, before, strict=True):
            norm.groups = were


class Contrast(nn.Module):
    """An encoder in contrastive training: with its momentum twin, the heads of both, and the queues.

    The parameters to train are those with requires_grad; those of the twins have none. All that a resumed training
    needs is in the state. What is drawn comes from the given generators, but for the encoder's dropout, which follows
    torch's global one as everywhere; it is on for queries and keys, one more difference between two views.

    With BatchNorm, a batch must have a multiple of `batch_norm_groups` videos, two a group at least. The groups of the
    queries are rows of the batch, the keys' groups are those of a shuffled batch: a query shares statistics with other
    rows than its key, and cannot tell its key by them (Shuffling BN, on one device). NOTE: published over 8 GPUs, each
    with its own statistics; v3 with the whole batch's on all of them.
    The encoder leaves `forward` with groups = 1, as it came; its running statistics are those of views.

    With `cross_modal`, a feature's tower with a head of its own is an encoder of that feature. Of every two features
    of a video each one's query must find the other one's key. The loss is (1 - weight) * that of the views + weight *
    the mean over the ordered pairs of features.
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
        """Builds on the given encoder, which is trained in place; heads and queues are drawn from `generator` (CPU).

        Raises:
            ValueError: the encoder, the views or the cross-modal part do not fit the features, or statistics of the
                whole batch would tell v1 and v2 the keys.
        """
        super().__init__()
        if list(features.values()) != encoder.widths:
            raise ValueError(
                f"features must have the encoder's widths {encoder.widths}, but got {list(features.values())}"
            )
        check(views, features)
        if cross_modal is not None and len(features) < 2:
            raise ValueError(f"cross_modal must be left out for data with one feature, but got {', '.join(features)}")
        batch_norm = any(isinstance(module, BatchNorm) for module in encoder.modules())
        if leaks(config, batch_norm):
            raise ValueError(
                f"batch_norm_groups must be at least 2 for {config.kind} on an encoder with BatchNorm: over the whole "
                "batch its statistics leak which key is a query's own, but got 1"
            )
        self.config, self.features, self.views = config, dict(features), views
        self.cross_modal = cross_modal if cross_modal is not None and cross_modal.weight else None
        self.groups = config.batch_norm_groups if batch_norm else 1
        self.encoder = encoder
        # One of each for the encoder (number 0) and with `cross_modal` for each tower (number 1, 2, ...).
        trunks = [encoder.joint, *(encoder.towers if self.cross_modal else [])]
        units = [trunk.linear.out_features for trunk in trunks if isinstance(trunk, Block)]
        self.projectors = nn.ModuleList(projector(config, inputs, batch_norm, generator) for inputs in units)
        self.predictors = nn.ModuleList(predictor(config, batch_norm, generator) for _ in units)
        self.queues = nn.ModuleList()
        if not isinstance(config, MocoV3Config):
            self.queues.extend(Queue(config.queue, config.dimension, generator) for _ in units)
        self.key_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.key_projectors = copy.deepcopy(self.projectors).requires_grad_(False)

    def forward(self, features_BD: Tensor, progress: float, generator: torch.Generator) -> Step:
        """The loss of a batch; in training also the twins' step, before their forward, and the queues', after it.

        Args:
            features_BD: of any float dtype, not normalised, features side by side in the order of `features`.
            progress: of the whole training, from 0 to 1.
            generator: on the features' device.
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
            loss = 4 * self.config.temperature * loss  # published: the sum of two directions, each times 2 T
        elif self.training:
            for number, keys_BF in enumerate(keys):
                self._queue(number).push(keys_BF)
        return Step(loss=loss, correct=correct, spread=spreading)

    def _between_views(
        self, normalized_BD: Tensor, order_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """(loss, correct, spread, keys to enqueue) of two views of all features: v3 looks both ways, v1 and v2 one."""
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
        """(mean loss over the ordered pairs of features, keys to enqueue of each)."""
        mixed_BD = mix(normalized_BD, alpha, generator) if alpha else normalized_BD
        emphasised_BD = mixed_BD * self.encoder.emphasis_D  # as `encode` gives the towers their columns
        parts = list(enumerate(torch.split(emphasised_BD, self.encoder.widths, dim=1), start=1))
        queries = {number: self._queries(number, part) for number, part in parts}
        keys = {number: self._keys(number, part, order_B) for number, part in parts}
        losses = [self._info_nce(queries[one], keys[other], other)[0] for one, other in permutations(queries, 2)]
        return torch.stack(losses).mean(), list(keys.values())

    def _queries(self, number: int, x: Tensor) -> Tensor:
        """Embeddings [B, F] of length 1 in float32: of all features for number 0, else of that tower's feature."""
        projected: Tensor = self.projectors[number](_trunk(self.encoder, number, x))
        return F.normalize(self.predictors[number](projected).float(), dim=1)

    @torch.no_grad()
    def _keys(self, number: int, x: Tensor, order_B: Tensor) -> Tensor:
        """The same by the twins, computed in the order given and put back into the batch's own."""
        projected: Tensor = self.key_projectors[number](_trunk(self.key_encoder, number, x[order_B]))
        shuffled_BF = F.normalize(projected.float(), dim=1)
        return torch.empty_like(shuffled_BF).index_copy_(0, order_B, shuffled_BF)

    def _info_nce(self, queries_BF: Tensor, keys_BF: Tensor, number: int) -> tuple[Tensor, Tensor]:
        # A copy of the queue: backward needs these keys, and by then they are overwritten.
        negatives_KF = self._queue(number).keys.clone() if self.queues else None
        return info_nce(queries_BF, keys_BF, negatives_KF, self.config.temperature)

    def _queue(self, number: int) -> Queue:
        queue = self.queues[number]
        assert isinstance(queue, Queue)
        return queue


def _trunk(encoder: FusedEncoder, number: int, x: Tensor) -> Tensor:
    """What a head stands on: the whole encoder for number 0, else one tower."""
    units: Tensor = encoder.towers[number - 1](x) if number else encoder.encode(x)
    return units

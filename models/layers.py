"""What two models share: the input normalisation, the initialisation, the sizes and statistics a model is built from.

Shapes   B videos in the batch   D features, all names side by side   C classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

NORMALIZE_EPSILON = 1e-12  # as published; far below any real variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the data fixes about a model."""

    features: Mapping[
        str, int
    ]  # width of each feature by name; a row of the input is their concatenation in this order
    num_classes: int
    level: Literal["video", "frame", "segment"] = "video"  # video: features_BD; else frames_BTD and mask_BT
    max_frames: int = 300  # T is no more than this

    def __post_init__(self) -> None:
        """Checks that there is something to learn from and something to predict."""
        if not self.features or any(width < 1 for width in self.features.values()):
            raise ValueError(
                f"features must name at least one feature, each of width >= 1, but got {dict(self.features)}"
            )
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {self.num_classes}")

    @property
    def width(self) -> int:
        """D: the width of a row of the input."""
        return sum(self.features.values())


def check_per_feature(name: str, given: Mapping[str, Any], sizes: Sizes) -> None:
    """Refuse a setting that does not have one value for each feature of the data.

    Raises:
        ValueError: says which are missing, and which are no feature.
    """
    missing = [feature for feature in sizes.features if feature not in given]
    unknown = [feature for feature in given if feature not in sizes.features]
    if missing or unknown:
        raise ValueError(
            f"{name} must name every feature of the data once ({', '.join(sizes.features)}), but "
            + " and ".join(
                f"{', '.join(names)} {what}"
                for names, what in ((missing, "is missing"), (unknown, "is not a feature"))
                if names
            )
        )


def check_positive(config: Any, *names: str) -> None:
    """Refuse numbers below 1, in settings and in those that have one for each feature.

    Raises:
        ValueError: says which setting, and its value.
    """
    for name in names:
        value = getattr(config, name)
        for path, number in value.items() if isinstance(value, Mapping) else [("", value)]:
            if number < 1:
                raise ValueError(f"{name}{path and '.' + path} must be at least 1, but got {number}")


def check_momentum(batch_norm_momentum: float) -> None:
    """Refuse a weight of a new batch outside of (0, 1].

    Raises:
        ValueError: says the value.
    """
    if not 0 < batch_norm_momentum <= 1:
        raise ValueError(f"batch_norm_momentum must be in (0, 1], but got {batch_norm_momentum}")


class Statistics(Protocol):
    """What a model reads of its training videos, as tensors or as arrays."""

    @property
    def num_videos(self) -> int:
        """N: videos that were counted."""

    @property
    def mean_D(self) -> Any:
        """Mean of every feature."""

    @property
    def variance_D(self) -> Any:
        """Population variance of every feature."""

    @property
    def label_counts_C(self) -> Any:
        """Videos that carry each class."""

    @property
    def rated_counts_C(self) -> Any:
        """Videos for which each class is rated; None: all of them, for every class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """Statistics held as tensors."""

    num_videos: int
    mean_D: Tensor
    variance_D: Tensor
    label_counts_C: Tensor
    rated_counts_C: Tensor | None = None


def tensor(values: Any) -> Tensor:
    """A tensor as it is, an array as a copy: it may be a read-only memory map, which torch does not wrap."""
    return values.detach() if isinstance(values, Tensor) else torch.tensor(values)


def widened(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Normalize(nn.Module):
    """(x - mean) / sqrt(variance + 1e-12) per feature; a feature without variance is only centred.

    The statistics are buffers: they are saved with the weights, so a model needs no shards to run.
    float16 and bfloat16 inputs are upcast to float32 before the subtraction.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, mean_D: Any, variance_D: Any) -> None:
        """Takes tensors or arrays of the same length D."""
        super().__init__()
        mean, variance = tensor(mean_D), tensor(variance_D)
        if mean.ndim != 1 or mean.shape != variance.shape:
            raise ValueError(
                "mean and variance must be vectors of one length, "
                f"but got {tuple(mean.shape)} and {tuple(variance.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all()):
            raise ValueError("mean and variance must be finite and variance not negative, but some are not")
        scale = torch.where(variance > 0, (variance.double() + NORMALIZE_EPSILON).rsqrt(), 1.0)
        self.register_buffer("mean_D", mean.float().clone())
        self.register_buffer("scale_D", scale.float())

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, D] of any float dtype -> [B, D] float32."""
        return (features_BD.float() - self.mean_D) * self.scale_D


class L2Normalize(nn.Module):
    """x / |x| over all features together, as published: rgb and audio share one length. Zeros stay zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of any float dtype -> [..., D] float32 of length 1."""
        return l2_normalize(x.float(), dim=-1)


NormalizeKind = Literal["standard", "l2", "none"]


def normalizer(kind: NormalizeKind, statistics: Statistics) -> nn.Module:
    """The module that a model's setting `normalize` names."""
    match kind:
        case "standard":
            return Normalize(statistics.mean_D, statistics.variance_D)
        case "l2":
            return L2Normalize()
        case "none":
            return nn.Identity()


def l2_normalize(x: Tensor, dim: int) -> Tensor:
    """Scale x by 1 / sqrt(max(sum x^2, 1e-12)): zeros, which have no direction, stay zeros with a finite gradient."""
    return x * x.square().sum(dim, keepdim=True).clamp(min=NORMALIZE_EPSILON).rsqrt()


class Dropout(nn.Module):
    """Zeroes a unit with the probability `p` in training and divides the others by 1 - p.

    On a CPU torch draws a mask number by number on one thread: 23 ms of a training step of 190 (1024 x 2304, bf16).
    Here 16 random bits a unit make it 5, with p rounded to a multiple of 1/65536.
    """

    def __init__(self, p: float) -> None:
        """Takes p in [0, 1)."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype -> the same."""
        if not self.training or not self.p:
            return x
        if x.is_cuda:
            return F.dropout(x, self.p)
        dropped = min(round(self.p * 65536), 65535)  # of the 65536 values of 16 bits
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
        return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm whose batch statistics may be taken over groups of the batch: row b belongs to group b % groups.

    With groups = 1 it is torch's. With more, a row is normalised by its own group alone, as on that many GPUs without
    synchronisation; the running statistics move once, by the mean over the groups (SplitBatchNorm of MoCo's
    single-GPU notebook). In evaluation there are no groups.

    With `over_ranks`, the batch is that of all ranks of torch.distributed, whose rows may differ in number: they train
    as one process on all rows would. (torch's SyncBatchNorm does so on GPUs only.)
    """

    groups = 1
    over_ranks = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, units] -> [B, units]; in training B must be a multiple of `groups`, with two rows in each."""
        if self.training and self.over_ranks:
            return self._over_ranks(x)
        if not self.training or self.groups == 1:
            return super().forward(x)
        batch, units = x.shape
        if batch % self.groups or batch < 2 * self.groups:
            raise ValueError(f"a batch of {batch} rows has no {self.groups} equal groups of at least 2 rows")
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        # A row of the view is one row of every group, side by side: each group has columns of its own.
        means, variances = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        weight, bias = self.weight.repeat(self.groups), self.bias.repeat(self.groups)
        momentum = 0.1 if self.momentum is None else self.momentum
        normed = F.batch_norm(x.view(-1, units * self.groups), means, variances, weight, bias, True, momentum, self.eps)
        self.running_mean.copy_(means.view(self.groups, units).mean(dim=0))
        self.running_var.copy_(variances.view(self.groups, units).mean(dim=0))
        self.num_batches_tracked.add_(1)
        return normed.view(batch, units)

    def _over_ranks(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        wide = widened(x)
        sums = _sum_over_ranks(torch.cat([wide.sum(dim=0), wide.new_full((1,), len(x))]))
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        centred = wide - mean
        variance = _sum_over_ranks(centred.square().sum(dim=0)) / rows
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), momentum)
            self.num_batches_tracked.add_(1)
        return ((variance + self.eps).rsqrt() * centred * self.weight + self.bias).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Every rank gets the sum, so the gradient of each rank's part is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total


def rated_counts(statistics: Statistics) -> Tensor:
    """N_c, the videos that could carry each class and of which its labels are a share: those for which it is rated.

    A class that is never rated counts as one that all videos are rated for and none has. Its output then starts below
    those of the classes that are learned, and does not fill the lists of a video's most probable ones.

    Returns:
        [C] float64.
    """
    all_C = torch.full_like(tensor(statistics.label_counts_C).double(), statistics.num_videos)
    if statistics.rated_counts_C is None:
        return all_C
    rated_C = tensor(statistics.rated_counts_C).double()
    return torch.where(rated_C > 0, rated_C, all_C)


def prior_log_odds(statistics: Statistics) -> Tensor:
    """log((n_c + 1/2) / (N_c - n_c + 1/2)): output biases that predict each class at its frequency where it is rated.

    The halves keep a class without a positive, or with nothing else, finite.

    Returns:
        [C] float32.
    """
    counts_C, rated_C = tensor(statistics.label_counts_C).double(), rated_counts(statistics)
    if (wrong_C := (counts_C < 0) | (counts_C > rated_C)).any():
        at = int(wrong_C.int().argmax())
        raise ValueError(f"class {at} is a label of {counts_C[at]:.0f} videos, of {rated_C[at]:.0f} that could have it")
    return ((counts_C + 0.5) / (rated_C - counts_C + 0.5)).log().float()


def start_at_prior(head: nn.Linear, statistics: Statistics) -> None:
    """Set the biases of an output layer so that it predicts each class at its frequency."""
    with torch.no_grad():
        head.bias.copy_(prior_log_odds(statistics))


def linear(in_features: int, out_features: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer as published: weights from a normal of std 1/sqrt(fan_in) truncated at 2 std, biases 0.

    Values beyond 2 std are redrawn, not clipped, so the weights' real std is 0.88 of the nominal one.
    """
    layer = _undrawn(in_features, out_features, bias=True)
    std = 1 / math.sqrt(in_features)
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    return layer


def xavier_linear(
    in_features: int, out_features: int, generator: torch.Generator | None = None, *, bias: bool = True
) -> nn.Linear:
    """A linear layer as TensorFlow's slim starts it: uniform, variance 2 / (fan_in + fan_out); biases 0."""
    layer = _undrawn(in_features, out_features, bias=bias)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    return layer


def normal_linear(
    in_features: int,
    out_features: int,
    generator: torch.Generator | None = None,
    *,
    std: float,
    bias_std: float | None = None,
) -> nn.Linear:
    """A linear layer whose weights are drawn from N(0, std), and its biases from N(0, bias_std); None: no biases."""
    layer = _undrawn(in_features, out_features, bias=bias_std is not None)
    nn.init.normal_(layer.weight, std=std, generator=generator)
    if bias_std is not None:
        nn.init.normal_(layer.bias, std=bias_std, generator=generator)
    return layer


def _undrawn(in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
    """Without torch's own draws, which would move its global generator; biases 0."""
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device=torch.get_default_device())
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def matrices(module: nn.Module) -> list[Tensor]:
    """The weight matrices of a module and all within it: what l1 and l2 fall on. No biases, no norms, no centres."""
    return [parameter for parameter in module.parameters() if parameter.ndim == 2]

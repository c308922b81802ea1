"""Views of precomputed features: random changes that make two different examples of one video.

Features come normalised, so 1.0 is one standard deviation and 0.0 the mean of a column. A view never writes into its
input, draws from the given generator only (which is on the features' device) and never makes the host wait for a
device.

To add a view, write a function, give it an entry in VIEWS, and add the setting of that name to ViewsConfig.

Shapes   B videos in the batch   D features, all names side by side in the order of the data
Sources  SCARF (arXiv 2106.15147): corrupt; FuseMix (arXiv 2312.10144): mix
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from data.ranges import HUGE, Range, Share, UpToAll, check_ranges

View = Callable[[Tensor, Mapping[str, int], Any, torch.Generator], Tensor]  # x_BD, features, amount, generator


def corrupt(
    x_BD: Tensor, features: Mapping[str, int], rate: float | Mapping[str, float], generator: torch.Generator
) -> Tensor:
    """Replaces each value, with probability `rate`, by the value of another video in the same column.

    So a replacement is a draw from the marginal distribution of its column. Each column is shifted by its own random
    number of rows from 1 to B - 1, so the replacements in one video come from many videos.

    NOTE: SCARF replaces the same number of values in every video, and corrupts only one of the two views.

    Args:
        x_BD: at least two videos.
        features: width of each feature by name, in the order of a row's columns.
        rate: in [0, 1), rounded to a multiple of 1/65536; one for all features, or one for each by name.
        generator: on the device of `x_BD`.

    Raises:
        ValueError: there is no other video.
    """
    batch, width = x_BD.shape
    if batch < 2:
        raise ValueError(f"a batch to corrupt must have at least 2 videos, but got {batch}")
    rates = [rate[name] if isinstance(rate, Mapping) else rate for name in features]
    shifts_D = torch.randint(1, batch, (width,), generator=generator, device=x_BD.device)
    rows_B = torch.arange(batch, device=x_BD.device)
    others_BD = x_BD.gather(0, (rows_B[:, None] + shifts_D).remainder_(batch))
    # 16 random bits for each value, as in models.layers.Dropout: on a CPU, torch draws a mask number by number.
    bits = torch.empty(-(-x_BD.numel() // 4), dtype=torch.int64, device=x_BD.device)
    bits_BD = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[: x_BD.numel()].view(x_BD.shape)
    # Each feature is compared with a plain number: a tensor of rates would have to be copied to the device.
    replaced = [
        part < min(round(rate * 65536), 65535) - 32768
        for part, rate in zip(torch.split(bits_BD, list(features.values()), dim=1), rates, strict=True)
    ]
    return torch.where(torch.cat(replaced, dim=1), others_BD, x_BD)


def drop(x_BD: Tensor, features: Mapping[str, int], probability: float, generator: torch.Generator) -> Tensor:
    """Sets one feature of a video to 0, all its columns, with the given probability; which one is drawn uniformly.

    Args:
        x_BD: normalised features.
        features: width of each feature by name, in the order of a row's columns.
        probability: in [0, 1], that a video loses a feature.
        generator: on the device of `x_BD`.

    Raises:
        ValueError: there is only one feature, and dropping it would leave nothing.
    """
    if len(features) < 2:
        raise ValueError(f"features must name at least 2 features to drop one, but got {len(features)}")
    batch, device = len(x_BD), x_BD.device
    dropping_B = torch.rand(batch, generator=generator, device=device) < probability
    chosen_B = torch.randint(len(features), (batch,), generator=generator, device=device)
    return torch.cat(
        [
            part.masked_fill((dropping_B & (chosen_B == number))[:, None], 0.0)
            for number, part in enumerate(torch.split(x_BD, list(features.values()), dim=1))
        ],
        dim=1,
    )


def noise(x_BD: Tensor, features: Mapping[str, int], sigma: float, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise to every value, with `sigma` standard deviations of its column; `features` have no effect."""
    return x_BD + torch.randn(x_BD.shape, generator=generator, dtype=x_BD.dtype, device=x_BD.device).mul_(sigma)


# In the order in which they are applied.
VIEWS: Mapping[str, View] = {"corruption": corrupt, "drop": drop, "noise": noise}


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig:
    """The amount of each view in VIEWS, by its name there; 0: the view is not applied."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Probability with which each value is replaced by that of another video in the same column: one number, or one for
    # each feature by name. 0: no value is replaced.
    corruption: Share | Mapping[str, Share] = 0.2
    # Probability with which a video loses one of its features: all columns of the feature become their mean.
    drop: UpToAll = 0.0
    # Standard deviation of the Gaussian noise that is added, in standard deviations of the column; 0: no noise.
    noise: Annotated[float, Range(0, HUGE)] = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


def check(config: ViewsConfig, features: Mapping[str, int]) -> None:
    """Refuses views that do not fit the features of the data, before a training begins.

    Raises:
        ValueError: `corruption` does not name exactly the features of the data, or `drop` would leave nothing of a
            video.
    """
    if isinstance(config.corruption, Mapping) and config.corruption.keys() != features.keys():
        raise ValueError(
            f"corruption must name every feature of the data once ({', '.join(features)}), "
            f"but got {', '.join(config.corruption) or 'none'}"
        )
    if config.drop and len(features) < 2:
        raise ValueError(f"drop must be 0 for data with one feature ({', '.join(features)}), but got {config.drop}")


def view(x_BD: Tensor, features: Mapping[str, int], config: ViewsConfig, generator: torch.Generator) -> Tensor:
    """One random view of every video: the views of VIEWS, one after another.

    Args:
        x_BD: normalised features; with corruption, of at least two videos.
        features: width of each feature by name, in the order of a row's columns.
        config: the amounts; `check` accepts them for these features.
        generator: the same state gives the same view.
    """
    for name, apply in VIEWS.items():
        amount = getattr(config, name)
        if any(amount.values()) if isinstance(amount, Mapping) else amount:
            x_BD = apply(x_BD, features, amount, generator)
    return x_BD


def mix(x_BD: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Mixes each video with a partner: lam x + (1 - lam) x[partner], lam drawn from Beta(alpha, alpha).

    The whole batch has one lam and one permutation, so that the features of a mixed video still belong together. With
    alpha = 1, lam is uniform in [0, 1].

    NOTE: FuseMix mixes the outputs of a frozen encoder of each modality; here these are the features of the data.
    """
    # torch.distributions takes no generator; this is the function that its Beta calls.
    shares = torch._sample_dirichlet(torch.full((2,), alpha, device=x_BD.device), generator=generator)
    partners_B = torch.randperm(len(x_BD), generator=generator, device=x_BD.device)
    return torch.lerp(x_BD[partners_B], x_BD, shares[0].to(x_BD.dtype))

"""Views of precomputed features: what makes two different examples of one video, for contrastive pretraining.

Shapes   B videos in the batch   D features of all names, side by side in the data's order
Features come normalised, so 1.0 is one standard deviation and 0.0 a column's mean. A view never writes into its input,
draws from the given generator alone (which lives on the features' device) and never makes the host wait for a device.
Sources  SCARF (arXiv 2106.15147): corrupt; FuseMix (arXiv 2312.10144): mix
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewsConfig:
    """What `view` does, in this order; 0 leaves a part out."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    corruption: float | Mapping[str, float] = 0.2  # probability that a value is another video's; or one by feature name
    drop: float = 0.0  # probability that a video loses one whole feature (all its columns become their mean)
    noise: float = 0.0  # standard deviation of Gaussian noise, in standard deviations of each column

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if isinstance(self.corruption, Mapping):
            rates = [(f"corruption.{name}", rate) for name, rate in self.corruption.items()]
        else:
            rates = [("corruption", self.corruption)]
        for name, rate in rates:
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), but got {rate}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be in [0, 1], but got {self.drop}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, but got {self.noise}")


def check(config: ViewsConfig, features: Mapping[str, int]) -> None:
    """Refuses views that the data cannot have, before anything trains.

    Raises:
        ValueError: corruption names other features than the data's, or drop would leave nothing of a video.
    """
    if isinstance(config.corruption, Mapping) and config.corruption.keys() != features.keys():
        raise ValueError(
            f"corruption must name every feature of the data once ({', '.join(features)}), "
            f"but got {', '.join(config.corruption) or 'none'}"
        )
    if config.drop and len(features) < 2:
        raise ValueError(f"drop must be 0 for data with one feature ({', '.join(features)}), but got {config.drop}")


def view(x_BD: Tensor, features: Mapping[str, int], config: ViewsConfig, generator: torch.Generator) -> Tensor:
    """One random view of every video: corrupted, then with a feature dropped, then with noise.

    Args:
        x_BD: normalised features; with corruption, of at least two videos.
        features: width of each feature by name, in the row's order.
        config: what to do, of features that `check` accepts.
        generator: the same state, the same view.
    """
    widths = list(features.values())
    rates = [config.corruption[n] if isinstance(config.corruption, Mapping) else config.corruption for n in features]
    if any(rates):
        x_BD = corrupt(x_BD, widths, rates, generator)
    if config.drop:
        x_BD = drop(x_BD, widths, config.drop, generator)
    if config.noise:
        x_BD = noise(x_BD, config.noise, generator)
    return x_BD


def corrupt(x_BD: Tensor, widths: Sequence[int], rate: float | Sequence[float], generator: torch.Generator) -> Tensor:
    """Replaces each value with probability `rate` by that of the same column of another video: a draw of its marginal.

    Which video, every column decides for itself: it is moved by a random number of rows from 1 to B - 1. So the values
    of a video that are replaced come from many videos.

    Args:
        x_BD: two videos at least.
        widths: of the features, in the row's order.
        rate: in [0, 1), rounded to a multiple of 1/65536; or one for each of `widths`.
        generator: on the device of `x_BD`.

    NOTE: SCARF replaces the same number of values in every video and leaves one of the two views as it is.

    Raises:
        ValueError: there is no other video.
    """
    batch, width = x_BD.shape
    if batch < 2:
        raise ValueError(f"a batch to corrupt must have at least 2 videos, but got {batch}")
    rates = list(rate) if isinstance(rate, Sequence) else [rate] * len(widths)
    shifts_D = torch.randint(1, batch, (width,), generator=generator, device=x_BD.device)
    rows_B = torch.arange(batch, device=x_BD.device)
    others_BD = x_BD.gather(0, (rows_B[:, None] + shifts_D).remainder_(batch))
    # 16 random bits a value, as in models.layers.Dropout: on a CPU torch draws a mask number by number.
    bits = torch.empty(-(-x_BD.numel() // 4), dtype=torch.int64, device=x_BD.device)
    bits_BD = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[: x_BD.numel()].view(x_BD.shape)
    # Compared with plain numbers, part by part: a tensor of rates would have to be copied to the device.
    replaced = [
        part < min(round(rate * 65536), 65535) - 32768
        for part, rate in zip(torch.split(bits_BD, list(widths), dim=1), rates, strict=True)
    ]
    return torch.where(torch.cat(replaced, dim=1), others_BD, x_BD)


def drop(x_BD: Tensor, widths: Sequence[int], probability: float, generator: torch.Generator) -> Tensor:
    """Sets one whole feature of a video, each as likely as the other, to 0 with the given probability; never two.

    Raises:
        ValueError: there is only one feature, and nothing would be left.
    """
    if len(widths) < 2:
        raise ValueError(f"widths must name at least 2 features to drop one, but got {len(widths)}")
    batch, device = len(x_BD), x_BD.device
    dropping_B = torch.rand(batch, generator=generator, device=device) < probability
    chosen_B = torch.randint(len(widths), (batch,), generator=generator, device=device)
    return torch.cat(
        [
            part.masked_fill((dropping_B & (chosen_B == number))[:, None], 0.0)
            for number, part in enumerate(torch.split(x_BD, list(widths), dim=1))
        ],
        dim=1,
    )


def noise(x_BD: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Adds Gaussian noise of `sigma` standard deviations to every value."""
    return x_BD + torch.randn(x_BD.shape, generator=generator, dtype=x_BD.dtype, device=x_BD.device).mul_(sigma)


def mix(x_BD: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Mixes two videos: lam x + (1 - lam) x[partner], lam ~ Beta(alpha, alpha).

    One lam and one permutation serve the whole batch, and so all features of a video: a mixed video's features still
    belong together. alpha 1 draws lam evenly from [0, 1].

    NOTE: FuseMix mixes what frozen encoders of each modality give. Here these are the data's features themselves.
    """
    # torch.distributions takes no generator; this is what its Beta calls.
    shares = torch._sample_dirichlet(torch.full((2,), alpha, device=x_BD.device), generator=generator)
    partners_B = torch.randperm(len(x_BD), generator=generator, device=x_BD.device)
    return torch.lerp(x_BD[partners_B], x_BD, shares[0].to(x_BD.dtype))

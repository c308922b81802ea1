"""Linear layers whose weights are drawn from a given generator, as the papers' implementations draw them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def linear(in_features: int, out_features: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer as in lidalei/youtube-8m: weights from a normal of std 1/sqrt(fan_in) cut at 2 std, biases 0.

    Values beyond 2 std are drawn again and not clipped, so the real std of the weights is 0.88 of the nominal one.
    """
    layer = _uninitialised(in_features, out_features, bias=True)
    std = 1 / math.sqrt(in_features)
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    return layer


def xavier_linear(
    in_features: int, out_features: int, generator: torch.Generator | None = None, *, bias: bool = True
) -> nn.Linear:
    """A linear layer as in TensorFlow's slim: weights uniform with variance 2 / (fan_in + fan_out), biases 0."""
    layer = _uninitialised(in_features, out_features, bias=bias)
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
    """A linear layer with weights from N(0, std) and biases from N(0, bias_std); None: a layer without biases.

    N(0, s) is the normal of mean 0 and standard deviation s, here and in every docstring of models/.
    """
    layer = _uninitialised(in_features, out_features, bias=bias_std is not None)
    nn.init.normal_(layer.weight, std=std, generator=generator)
    if bias_std is not None:
        nn.init.normal_(layer.bias, std=bias_std, generator=generator)
    return layer


def _uninitialised(in_features: int, out_features: int, *, bias: bool) -> nn.Linear:
    """A layer with biases 0 whose weights are not drawn yet: torch's own draw would advance its global generator."""
    layer = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device=torch.get_default_device())
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def matrices(module: nn.Module) -> list[Tensor]:
    """The weight matrices of a module, to which l1 and l2 apply: no biases, norms or cluster centres."""
    return [parameter for parameter in module.parameters() if parameter.ndim == 2]

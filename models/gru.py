"""GRU: layers that read a video's frames one after the other; what they hold at its end is the video.

    r, z, n = x W + h U + b, but tanh(n_x + r n_h) for the last;   h <- (1 - z) n + z h

Shapes   B videos   T frames of the longest of them   D features of a frame   H cells of a layer
Source   WILLOW (2017), GruModel
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .heads import HeadConfig
from .layers import NormalizeKind, Sizes, check_momentum, check_positive
from .recurrent import at_the_end, drawn, loop, reverse


@dataclass(frozen=True, slots=True, kw_only=True)
class GruConfig:
    """Settings of the GRU."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"

    kind: Literal["gru"] = "gru"
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    cells: int = 1200  # of each layer
    layers: int = 2
    state: Literal["all", "top"] = "all"  # of all layers, or of the last one
    gate_bias: float = 1.0  # where the biases of the reset and update gates start
    reverse: bool = False  # read the last frame first
    batch_norm_momentum: float = 0.1  # of the head's probability gating; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_positive(self, "cells", "layers")
        check_momentum(self.batch_norm_momentum)


class GruLayer(nn.Module):
    """One layer.

    NOTE: TensorFlow resets h before the recurrent product, here and in cuDNN r falls on the product: not the same
    weights, but the same idea.
    """

    def __init__(self, inputs: int, units: int, gate_bias: float, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; biases start at 0 but for the gates'."""
        super().__init__()
        self.units = units
        self.weight, self.recurrent = drawn(inputs, units, 3, generator)
        self.bias = nn.Parameter(torch.zeros(3, units).index_fill_(0, torch.tensor([0, 1]), gate_bias).flatten())

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> h after each frame [B, T, H]."""
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() is a constant to torch.export
        if torch.compiler.is_exporting():
            return loop(self._step, start_BH, x_BTD @ self.weight.T + self.bias)
        # Two biases for each gate, as cuDNN has it; the second is nothing.
        weights = [self.weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
        outputs_BTH, _ = torch.gru(x_BTD, start_BH[None], weights, True, 1, 0.0, self.training, False, True)
        return outputs_BTH

    def _step(self, hidden_BH: Tensor, gates_BG: Tensor) -> Tensor:
        reset, keep, new = gates_BG.chunk(3, dim=1)
        reset_h, keep_h, new_h = (hidden_BH @ self.recurrent.T).chunk(3, dim=1)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        kept = torch.sigmoid(keep + keep_h)
        return (1 - kept) * new + kept * hidden_BH


class Gru(nn.Module):
    """[B, T, D] -> [B, H layers], h of each layer; or [B, H], that of the last."""

    def __init__(self, config: GruConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`."""
        super().__init__()
        inputs = [sizes.width, *[config.cells] * (config.layers - 1)]
        self.layers = nn.ModuleList(GruLayer(width, config.cells, config.gate_bias, generator) for width in inputs)
        self.top, self.reverse = config.state == "top", config.reverse
        self.width = config.cells if self.top else config.layers * config.cells

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames -> states at each video's end."""
        if self.reverse:
            x_BTD = reverse(x_BTD, mask_BT)
        states = []
        for layer in self.layers:
            x_BTD = layer(x_BTD)
            states.append(at_the_end(x_BTD, mask_BT))
        return states[-1] if self.top else torch.cat(states, dim=1)

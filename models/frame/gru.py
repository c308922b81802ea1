"""GRU: layers that read a video's frames one after the other; what they hold at its end is the video.

    r, z, n = x W + h U + b, but tanh(n_x + r n_h) for the last;   h <- (1 - z) n + z h

Shapes   B videos   T frames of the longest of them   D features of a frame   H cells of a layer
Source   WILLOW (2017), GruModel
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.recurrent import Recurrent, RecurrentConfig, at_the_end, drawn, loop
from models.layers import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class GruConfig(RecurrentConfig):
    """Settings of the GRU."""

    kind: Literal["gru"] = "gru"
    cells: int = 1200
    gate_bias: float = 1.0  # where the biases of the reset and update gates start


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

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> h after each frame [B, T, H], and h at each video's end [B, H]."""
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() is a constant to torch.export
        if torch.compiler.is_exporting():
            outputs_BTH = loop(self._step, start_BH, x_BTD @ self.weight.T + self.bias)
        else:  # two biases for each gate, as cuDNN has it; the second is nothing
            weights = [self.weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
            outputs_BTH, _ = torch.gru(x_BTD, start_BH[None], weights, True, 1, 0.0, self.training, False, True)
        return outputs_BTH, at_the_end(outputs_BTH, mask_BT)

    def _step(self, hidden_BH: Tensor, gates_BG: Tensor) -> Tensor:
        reset, keep, new = gates_BG.chunk(3, dim=1)
        reset_h, keep_h, new_h = (hidden_BH @ self.recurrent.T).chunk(3, dim=1)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        kept = torch.sigmoid(keep + keep_h)
        return (1 - kept) * new + kept * hidden_BH


class Gru(Recurrent):
    """[B, T, D] -> [B, H layers], h of each layer; or [B, H], that of the last."""

    def __init__(self, config: GruConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`."""
        layer = partial(GruLayer, units=config.cells, gate_bias=config.gate_bias, generator=generator)
        super().__init__(layer, config, sizes, states=1)

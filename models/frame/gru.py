"""GRU: layers that read a video's frames in order; their states at its end represent the video.

    r, z = sigmoid(x W + h U + b);   n = tanh(x W + b + r * (h U));   h <- (1 - z) n + z h

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         H cells of a layer
Source   WILLOW (2017), GruModel
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from data.ranges import Count, Range
from models.frame.parts.recurrent import (
    Recurrent,
    RecurrentConfig,
    initial_weights,
    last_outputs,
    outside_half,
    scan_frames,
)
from models.inputs import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class GruConfig(RecurrentConfig):
    """Settings of the GRU. Only the probability gating of its head has a BatchNorm."""

    kind: Literal["gru"] = "gru"
    cells: Count = 1200
    gate_bias: Annotated[float, Range(-100, 100)] = 1.0  # initial value of the biases of the reset and update gates


class GruLayer(nn.Module):
    """One layer.

    NOTE: TensorFlow multiplies h by the reset gate before the recurrent product; here, as in cuDNN, the gate multiplies
    the product. Weights of one form do not fit the other.
    """

    def __init__(self, inputs: int, units: int, gate_bias: float, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; biases start at 0, those of the gates at `gate_bias`."""
        super().__init__()
        self.units = units
        self.weight, self.recurrent = initial_weights(inputs, units, 3, generator)
        self.bias = nn.Parameter(torch.zeros(3, units).index_fill_(0, torch.tensor([0, 1]), gate_bias).flatten())

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, T, D] and mask -> h after each frame [B, T, H], and h after each last frame [B, H]."""
        x_BTD = x_BTD.float()
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() would be a constant in torch.export
        if torch.compiler.is_exporting():
            outputs_BTH = scan_frames(self._cell, start_BH, x_BTD @ self.weight.T + self.bias)
        else:  # cuDNN has two biases for each gate; the second is 0
            weights = [self.weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
            with outside_half(x_BTD.device):
                outputs_BTH, _ = torch.gru(x_BTD, start_BH[None], weights, True, 1, 0.0, self.training, False, True)
        return outputs_BTH, last_outputs(outputs_BTH, mask_BT)

    def _cell(self, hidden_BH: Tensor, gates_BG: Tensor) -> Tensor:
        reset, keep, new = gates_BG.chunk(3, dim=1)
        reset_h, keep_h, new_h = (hidden_BH @ self.recurrent.T).chunk(3, dim=1)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        kept = torch.sigmoid(keep + keep_h)
        return (1 - kept) * new + kept * hidden_BH


class Gru(Recurrent):
    """Frames [B, T, D] -> h of every layer [B, H layers], or h of the last layer [B, H]."""

    def __init__(self, config: GruConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        layer = partial(GruLayer, units=config.cells, gate_bias=config.gate_bias, generator=generator)
        super().__init__(layer, config, sizes, states=1)

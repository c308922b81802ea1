"""LSTM: layers that read a video's frames in order; their states at its end represent the video.

    i, f, g, o = x W + h U + b;   c <- sigmoid(f) c + sigmoid(i) tanh(g);   h <- sigmoid(o) tanh(c)

Shapes   B videos in the batch   T frames of the longest   D features of a frame
         H cells of a layer
Source   google/youtube-8m and WILLOW (2017), LstmModel
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

SATURATED = 1e4  # a sigmoid gives exactly 1 for it in float32, and 0 for -SATURATED


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig(RecurrentConfig):
    """Settings of the LSTM. Its source trains it on 150 random frames of each video, at a learning rate of 0.001.

    Only the probability gating of the head has a BatchNorm.
    """

    kind: Literal["lstm"] = "lstm"
    cells: Count = 1024
    forget_bias: Annotated[float, Range(-100, 100)] = 1.0  # initial value of the biases of the forget gates


class LstmLayer(nn.Module):
    """One layer. Padding opens the forget gate and closes the input gate, so c keeps its value after the last frame."""

    on_padding_G1: Tensor

    def __init__(self, inputs: int, units: int, forget_bias: float, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; biases start at 0, those of the forget gates at `forget_bias`."""
        super().__init__()
        self.units = units
        self.weight, self.recurrent = initial_weights(inputs, units, 4, generator)
        self.bias = nn.Parameter(torch.zeros(4, units).index_fill_(0, torch.tensor([1]), forget_bias).flatten())
        # The weights of the input that is 1 on padding: they close the input gates and open the forget gates.
        on_padding = torch.tensor([[-SATURATED], [SATURATED], [0.0], [0.0]]).repeat_interleave(units, dim=0)
        self.register_buffer("on_padding_G1", on_padding, persistent=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, T, D] and mask -> h after each frame [B, T, H], and c and h after each last frame [B, 2 H]."""
        x_BTD = torch.cat([x_BTD.float(), (~mask_BT)[..., None].float()], dim=2)
        weight = torch.cat([self.weight, self.on_padding_G1], dim=1)
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() would be a constant in torch.export
        if torch.compiler.is_exporting():
            states_BTS = scan_frames(self._cell, torch.cat([start_BH, start_BH], dim=1), x_BTD @ weight.T + self.bias)
            outputs_BTH, cells_BTH = states_BTS.chunk(2, dim=2)
            cells_BH = cells_BTH[:, -1]
        else:  # cuDNN has two biases for each gate; the second is 0
            weights = [weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
            start = [start_BH[None], start_BH[None]]
            with outside_half(x_BTD.device):
                outputs_BTH, _, (cells_BH,) = torch.lstm(
                    x_BTD, start, weights, True, 1, 0.0, self.training, False, True
                )
        return outputs_BTH, torch.cat([cells_BH, last_outputs(outputs_BTH, mask_BT)], dim=1)

    def _cell(self, state_BS: Tensor, gates_BG: Tensor) -> Tensor:
        hidden_BH, cells_BH = state_BS.chunk(2, dim=1)
        enter, keep, new, leave = (gates_BG + hidden_BH @ self.recurrent.T).chunk(4, dim=1)
        cells_BH = torch.sigmoid(keep) * cells_BH + torch.sigmoid(enter) * torch.tanh(new)
        return torch.cat([torch.sigmoid(leave) * torch.tanh(cells_BH), cells_BH], dim=1)


class Lstm(Recurrent):
    """Frames [B, T, D] -> c and h of every layer [B, 2 H layers], or h of the last layer [B, H]."""

    def __init__(self, config: LstmConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; None: from torch's global generator."""
        layer = partial(LstmLayer, units=config.cells, forget_bias=config.forget_bias, generator=generator)
        super().__init__(layer, config, sizes, states=2)

"""LSTM: layers that read a video's frames one after the other; what they hold at its end is the video.

    i, f, g, o = x W + h U + b;   c <- sigmoid(f) c + sigmoid(i) tanh(g);   h <- sigmoid(o) tanh(c)

Shapes   B videos   T frames of the longest of them   D features of a frame   H cells of a layer
Source   google/youtube-8m and WILLOW (2017), LstmModel
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from models.frame.recurrent import Recurrent, RecurrentConfig, at_the_end, drawn, loop
from models.layers import Sizes

CLOSED = 1e4  # before a sigmoid: 1 in float32, and 0 for -CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig(RecurrentConfig):
    """Settings of the LSTM; published with a learning rate of 0.001 and 150 random frames of each video in training."""

    kind: Literal["lstm"] = "lstm"
    cells: int = 1024
    forget_bias: float = 1.0  # where the biases of the forget gates start


class LstmLayer(nn.Module):
    """One layer. Padding opens the forget gate and closes the input gate, so c stays what it was at the video's end."""

    def __init__(self, inputs: int, units: int, forget_bias: float, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; biases start at 0 but for the forget gates'."""
        super().__init__()
        self.units = units
        self.weight, self.recurrent = drawn(inputs, units, 4, generator)
        self.bias = nn.Parameter(torch.zeros(4, units).index_fill_(0, torch.tensor([1]), forget_bias).flatten())

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> h after each frame [B, T, H], and c and h at each video's end [B, 2 H]."""
        padding_BT1 = (~mask_BT)[..., None].to(x_BTD.dtype)
        close = torch.tensor([-CLOSED, CLOSED, 0.0, 0.0], device=x_BTD.device).repeat_interleave(self.units)
        weight = torch.cat([self.weight, close[:, None]], dim=1)
        x_BTD = torch.cat([x_BTD, padding_BT1], dim=2)
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() is a constant to torch.export
        if torch.compiler.is_exporting():
            states_BTS = loop(self._step, torch.cat([start_BH, start_BH], dim=1), x_BTD @ weight.T + self.bias)
            outputs_BTH, cells_BTH = states_BTS.chunk(2, dim=2)
            cells_BH = cells_BTH[:, -1]
        else:  # two biases for each gate, as cuDNN has it; the second is nothing
            weights = [weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
            start = [start_BH[None], start_BH[None]]
            outputs_BTH, _, (cells_BH,) = torch.lstm(x_BTD, start, weights, True, 1, 0.0, self.training, False, True)
        return outputs_BTH, torch.cat([cells_BH, at_the_end(outputs_BTH, mask_BT)], dim=1)

    def _step(self, state_BS: Tensor, gates_BG: Tensor) -> Tensor:
        hidden_BH, cells_BH = state_BS.chunk(2, dim=1)
        enter, keep, new, leave = (gates_BG + hidden_BH @ self.recurrent.T).chunk(4, dim=1)
        cells_BH = torch.sigmoid(keep) * cells_BH + torch.sigmoid(enter) * torch.tanh(new)
        return torch.cat([torch.sigmoid(leave) * torch.tanh(cells_BH), cells_BH], dim=1)


class Lstm(Recurrent):
    """[B, T, D] -> [B, 2 H layers], c and h of each layer; or [B, H], h of the last."""

    def __init__(self, config: LstmConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`."""
        layer = partial(LstmLayer, units=config.cells, forget_bias=config.forget_bias, generator=generator)
        super().__init__(layer, config, sizes, states=2)

"""LSTM: layers that read a video's frames one after the other; what they hold at its end is the video.

    i, f, g, o = x W + h U + b;   c <- sigmoid(f) c + sigmoid(i) tanh(g);   h <- sigmoid(o) tanh(c)

Shapes   B videos   T frames of the longest of them   D features of a frame   H cells of a layer
Source   google/youtube-8m and WILLOW (2017), LstmModel
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .heads import HeadConfig
from .layers import NormalizeKind, Sizes, check_momentum, check_positive
from .recurrent import at_the_end, drawn, loop, reverse

CLOSED = 1e4  # before a sigmoid: 1 in float32, and 0 for -CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmConfig:
    """Settings of the LSTM; published with a learning rate of 0.001 and 150 random frames of each video in training."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    level: ClassVar[str] = "frame"

    kind: Literal["lstm"] = "lstm"
    normalize: NormalizeKind = "l2"  # of a frame; standard: by the training frames' mean and variance
    cells: int = 1024  # of each layer
    layers: int = 2
    state: Literal["all", "top"] = "all"  # c and h of all layers; or, since 2019, h of the last one
    forget_bias: float = 1.0  # where the biases of the forget gates start
    reverse: bool = False  # read the last frame first
    batch_norm_momentum: float = 0.1  # of the head's probability gating; published: 0.001
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_positive(self, "cells", "layers")
        check_momentum(self.batch_norm_momentum)


class LstmLayer(nn.Module):
    """One layer. Padding opens the forget gate and closes the input gate, so c stays what it was at the video's end."""

    def __init__(self, inputs: int, units: int, forget_bias: float, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`; biases start at 0 but for the forget gates'."""
        super().__init__()
        self.units = units
        self.weight, self.recurrent = drawn(inputs, units, 4, generator)
        self.bias = nn.Parameter(torch.zeros(4, units).index_fill_(0, torch.tensor([1]), forget_bias).flatten())

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> h after each frame [B, T, H], and c at the end [B, H]."""
        padding_BT1 = (~mask_BT)[..., None].to(x_BTD.dtype)
        close = torch.tensor([-CLOSED, CLOSED, 0.0, 0.0], device=x_BTD.device).repeat_interleave(self.units)
        weight = torch.cat([self.weight, close[:, None]], dim=1)
        x_BTD = torch.cat([x_BTD, padding_BT1], dim=2)
        start_BH = x_BTD.new_zeros(x_BTD.shape[0], self.units)  # len() is a constant to torch.export
        if torch.compiler.is_exporting():
            states_BTS = loop(self._step, torch.cat([start_BH, start_BH], dim=1), x_BTD @ weight.T + self.bias)
            return states_BTS[..., : self.units], states_BTS[:, -1, self.units :]
        # Two biases for each gate, as cuDNN has it; the second is nothing.
        weights = [weight, self.recurrent, self.bias, torch.zeros_like(self.bias)]
        start_1BH = start_BH[None]
        outputs_BTH, _, cells_1BH = torch.lstm(
            x_BTD, [start_1BH, start_1BH], weights, True, 1, 0.0, self.training, False, True
        )
        return outputs_BTH, cells_1BH[0]

    def _step(self, state_BS: Tensor, gates_BG: Tensor) -> Tensor:
        hidden_BH, cells_BH = state_BS.chunk(2, dim=1)
        enter, keep, new, leave = (gates_BG + hidden_BH @ self.recurrent.T).chunk(4, dim=1)
        cells_BH = torch.sigmoid(keep) * cells_BH + torch.sigmoid(enter) * torch.tanh(new)
        return torch.cat([torch.sigmoid(leave) * torch.tanh(cells_BH), cells_BH], dim=1)


class Lstm(nn.Module):
    """[B, T, D] -> [B, 2 H layers], c and h of each layer; or [B, H], h of the last."""

    def __init__(self, config: LstmConfig, sizes: Sizes, generator: torch.Generator | None) -> None:
        """Draws the weights from `generator`."""
        super().__init__()
        inputs = [sizes.width, *[config.cells] * (config.layers - 1)]
        self.layers = nn.ModuleList(LstmLayer(width, config.cells, config.forget_bias, generator) for width in inputs)
        self.top, self.reverse = config.state == "top", config.reverse
        self.width = config.cells if self.top else 2 * config.layers * config.cells

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames -> states at each video's end."""
        if self.reverse:
            x_BTD = reverse(x_BTD, mask_BT)
        states = []
        for layer in self.layers:
            x_BTD, cells_BH = layer(x_BTD, mask_BT)
            states += [cells_BH, at_the_end(x_BTD, mask_BT)]
        return states[-1] if self.top else torch.cat(states, dim=1)

"""What LSTM and GRU share: layers upon layers, a video's end, and a loop that torch.export keeps a loop.

The real frames of a video come first, its padding after them, so that no state before its end has seen padding.

Shapes   B videos   T frames of the longest of them   D features of a frame   H units
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.frame.frame_model import FrameModelConfig
from models.layers import Sizes

Step = Callable[[Tensor, Tensor], Tensor]  # (state, gates' inputs of one frame) -> next state


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig(FrameModelConfig):
    """Settings of both. BatchNorm is in the head's probability gating alone."""

    positive: ClassVar[tuple[str, ...]] = ("cells", "layers")

    cells: int  # of each layer
    layers: int = 2
    state: Literal["all", "top"] = "all"  # at a video's end: of all layers; or, as published in 2019, h of the last
    reverse: bool = False  # read the last frame first


class Recurrent(nn.Module):
    """[B, T, D] -> [B, S layers], the states of all layers at a video's end; or [B, H], h of the last."""

    def __init__(self, layer: Callable[[int], nn.Module], config: RecurrentConfig, sizes: Sizes, states: int) -> None:
        """Stacks the layers.

        Args:
            layer: makes one of a number of inputs; forward(x_BTD, mask_BT) -> h after each frame [B, T, H], and its
                states at each video's end [B, S].
            config: of the model.
            sizes: of the data.
            states: S, in units of H.
        """
        super().__init__()
        inputs = [sizes.width, *[config.cells] * (config.layers - 1)]
        self.layers = nn.ModuleList(map(layer, inputs))
        self.top, self.reverse = config.state == "top", config.reverse
        self.width = config.cells if self.top else states * config.layers * config.cells

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames -> states at each video's end."""
        if self.reverse:
            x_BTD = reverse(x_BTD, mask_BT)
        states = []
        for layer in self.layers:
            x_BTD, states_BS = layer(x_BTD, mask_BT)
            states.append(states_BS)
        return at_the_end(x_BTD, mask_BT) if self.top else torch.cat(states, dim=1)


def at_the_end(outputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """The output at each video's last real frame, [B, H]."""
    last_B = (mask_BT.sum(dim=1) - 1).clamp(min=0)
    return outputs_BTH.gather(1, last_B[:, None, None].expand(-1, 1, outputs_BTH.shape[2])).squeeze(1)


def reverse(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The real frames of each video from the last to the first; the padding stays behind them."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    places_BT = torch.where(mask_BT, mask_BT.sum(dim=1, keepdim=True) - 1 - places_T, places_T)
    return x_BTD.gather(1, places_BT[..., None].expand_as(x_BTD))


def loop(step: Step, state_BS: Tensor, gates_BTG: Tensor) -> Tensor:
    """The states after each frame, [B, T, S]: for torch.export, which would unroll torch.lstm to a fixed number."""
    from torch._higher_order_ops.scan import scan  # there is no public name for it yet

    def body(state_BS: Tensor, gates_BG: Tensor) -> tuple[Tensor, Tensor]:
        after_BS = step(state_BS, gates_BG)
        return after_BS, after_BS.clone()

    _, states_TBS = scan(body, state_BS, gates_BTG.transpose(0, 1))
    return states_TBS.transpose(0, 1)


def drawn(inputs: int, units: int, gates: int, generator: torch.Generator | None) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [gates * units, inputs] and [gates * units, units], as TensorFlow starts them: together one Xavier."""
    whole = nn.init.xavier_uniform_(torch.empty(gates * units, inputs + units), generator=generator)
    return nn.Parameter(whole[:, :inputs].clone()), nn.Parameter(whole[:, inputs:].clone())

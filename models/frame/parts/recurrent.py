"""What LSTM and GRU share: a stack of layers, the states at a video's end, and a loop that torch.export keeps a loop.

The padding of a video follows its real frames, so no state up to the last real frame depends on padding.

Shapes   B videos in the batch   T frames of the longest   D features of a frame   H units
         S states of a layer, side by side: H for a GRU, 2 H for an LSTM   G gates of a layer, side by side
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.ranges import Count, Layers
from models.frame.parts.frame_model import FrameModelConfig
from models.inputs import Sizes

Cell = Callable[[Tensor, Tensor], Tensor]  # (state_BS, gates' inputs of one frame [B, G]) -> next state_BS


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig(FrameModelConfig):
    """Settings of LSTM and GRU. Of these models, only the head's probability gating has a BatchNorm."""

    cells: Count  # number of units of each recurrent layer
    layers: Layers = 2  # number of recurrent layers, stacked
    # What represents the video after its last frame. all: the states of all layers. top: the output of the last layer,
    # as in google/youtube-8m since 2019.
    state: Literal["all", "top"] = "all"
    reverse: bool = False  # true: the frames are read from last to first


class Recurrent(nn.Module):
    """A stack of recurrent layers."""

    def __init__(self, layer: Callable[[int], nn.Module], config: RecurrentConfig, sizes: Sizes, states: int) -> None:
        """Stacks the layers.

        Args:
            layer: makes a layer for a given number of inputs; its forward(x_BTD, mask_BT) gives h after each frame
                [B, T, H] and its states after each video's last frame [B, S].
            config: of the model.
            sizes: of the data.
            states: S / H.
        """
        super().__init__()
        inputs = [sizes.width, *[config.cells] * (config.layers - 1)]
        self.layers = nn.ModuleList(map(layer, inputs))
        self.top, self.reverse = config.state == "top", config.reverse
        self.width = config.cells if self.top else states * config.layers * config.cells

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Normalised frames [B, T, D] and their mask -> states of all layers [B, S layers], or h of the last [B, H]."""
        if self.reverse:
            x_BTD = reverse(x_BTD, mask_BT)
        states = []
        for layer in self.layers:
            x_BTD, states_BS = layer(x_BTD, mask_BT)
            states.append(states_BS)
        return last_outputs(x_BTD, mask_BT) if self.top else torch.cat(states, dim=1)


def last_outputs(outputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Outputs [B, T, H] -> the output at each video's last real frame [B, H]; at frame 0 of a video without frames."""
    last_B = (mask_BT.sum(dim=1) - 1).clamp(min=0)
    return outputs_BTH.gather(1, last_B[:, None, None].expand(-1, 1, outputs_BTH.shape[2])).squeeze(1)


def reverse(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T, D] with the real frames of each video from last to first; the padding still follows them."""
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    sources_BT = torch.where(mask_BT, mask_BT.sum(dim=1, keepdim=True) - 1 - positions_T, positions_T)
    return x_BTD.gather(1, sources_BT[..., None].expand_as(x_BTD))


def outside_half(device: torch.device) -> AbstractContextManager[Any]:
    """The context of torch.lstm and torch.gru on float32 tensors: without autocast, except on a CPU.

    Autocast gives cuDNN's recurrent kernels float16 whatever its own type is (`_cudnn_rnn_cast_reflatten` in
    ATen/cudnn/AutocastRNN.cpp), and in float16 small gradients become 0 where the loss is not scaled. In float32, cuDNN
    uses TF32. On a CPU autocast means bfloat16, which needs no scaling and is faster; but oneDNN has no bfloat16 LSTM
    without AVX-512, and raises a RuntimeError.
    """
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX2":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def scan_frames(cell: Cell, state_BS: Tensor, gates_BTG: Tensor) -> Tensor:
    """The states after each frame [B, T, S]; for torch.export, which would unroll torch.lstm to a fixed number."""
    from torch._higher_order_ops.scan import scan  # torch has no public name for it yet

    def body(state_BS: Tensor, gates_BG: Tensor) -> tuple[Tensor, Tensor]:
        after_BS = cell(state_BS, gates_BG)
        return after_BS, after_BS.clone()

    _, states_TBS = scan(body, state_BS, gates_BTG.transpose(0, 1))
    return states_TBS.transpose(0, 1)


def initial_weights(
    inputs: int, units: int, gates: int, generator: torch.Generator | None
) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights of the inputs [gates * units, inputs] and of the state [gates * units, units].

    As in TensorFlow, both are parts of one matrix that is initialised by Xavier's rule.
    """
    whole = nn.init.xavier_uniform_(torch.empty(gates * units, inputs + units), generator=generator)
    return nn.Parameter(whole[:, :inputs].clone()), nn.Parameter(whole[:, inputs:].clone())

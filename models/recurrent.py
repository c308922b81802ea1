"""What LSTM and GRU share: where a video ends, its frames in reverse, and a loop that torch.export keeps a loop.

The real frames of a video come first, its padding after them, so that no state before its end has seen padding.

Shapes   B videos   T frames of the longest of them   D features of a frame   H units
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], Tensor]  # (state, gates' inputs of one frame) -> next state


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

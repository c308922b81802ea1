"""An ensemble as one model: the weighted mean of its members' probabilities, as logits.

Shapes   B videos in the batch   C classes   M members
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Its members side by side, each with its own normalisation; all take the same inputs.

    No experiment can name it: it is made of models that have been trained (tuner/export/ensemble.py).
    """

    log_weights_M: Tensor

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        """Takes members that give logits_BC, and a weight for each.

        Raises:
            ValueError: no member, not one weight a member, or weights that are not positive or do not sum to 1.
        """
        super().__init__()
        if not members or len(weights) != len(members):
            raise ValueError(f"an ensemble has a weight for every member, but got {len(weights)} for {len(members)}")
        if not all(weight > 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"the weights must be positive and sum to 1, but got {list(weights)}")
        self.members = nn.ModuleList(members)
        self.register_buffer("log_weights_M", torch.tensor(weights, dtype=torch.float64).log().float())

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices of all members."""
        return [matrix for member in self.members for matrix in member.regularized]  # type: ignore[union-attr]

    def forward(self, features: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """What the members take -> logits_BC, the log-odds of sum_m w_m sigmoid(z_m)."""
        inputs = (features,) if mask_BT is None else (features, mask_BT)
        return mean_log_odds([member(*inputs) for member in self.members], self.log_weights_M)


def mean_log_odds(logits_MBC: Sequence[Tensor], log_weights_M: Tensor) -> Tensor:
    """Log-odds log(p / (1 - p)) of p = sum_m w_m sigmoid(z_m), in float32.

    p and 1 - p are both summed in log space: p itself is 1, or 0, in float32 for logits that are still told apart.
    """
    stacked_MBC = torch.stack(tuple(logits_MBC)).float()
    weights_M11 = log_weights_M[:, None, None]
    positive_BC = torch.logsumexp(F.logsigmoid(stacked_MBC) + weights_M11, dim=0)
    negative_BC = torch.logsumexp(F.logsigmoid(-stacked_MBC) + weights_M11, dim=0)
    return positive_BC - negative_BC

"""An ensemble as one model: the weighted mean of its members' probabilities, as logits.

Shapes   B videos in the batch   C classes   M members
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Members with a shared input, each with its own normalisation.

    It has no entry in models/registry.py: tuner/export/ensemble.py makes it of trained models.
    """

    log_weights_M: Tensor

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        """Takes members, models that give logits_BC, and the weight of each.

        Raises:
            ValueError: there is no member, the numbers of members and weights differ, or the weights are not positive
                with the sum 1.
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
        """The weight matrices of all members, to which l1 and l2 apply."""
        return [matrix for member in self.members for matrix in member.regularized]  # type: ignore[union-attr]

    def forward(self, features: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The inputs of the members -> logits_BC, the log-odds of sum_m w_m sigmoid(z_m)."""
        inputs = (features,) if mask_BT is None else (features, mask_BT)
        return mean_log_odds([member(*inputs) for member in self.members], self.log_weights_M)


def mean_log_odds(logits_MBC: Sequence[Tensor], log_weights_M: Tensor) -> Tensor:
    """Log-odds log(p / (1 - p)) of p = sum_m w_m sigmoid(z_m), in float32.

    p and 1 - p are both summed in log space: in float32, p itself is rounded to 1 or 0 while logits still differ.

    Args:
        logits_MBC: of each member, any float dtype.
        log_weights_M: log w_m.

    Returns:
        [B, C] float32.
    """
    stacked_MBC = torch.stack(tuple(logits_MBC)).float()
    weights_M11 = log_weights_M[:, None, None]
    positive_BC = torch.logsumexp(F.logsigmoid(stacked_MBC) + weights_M11, dim=0)
    negative_BC = torch.logsumexp(F.logsigmoid(-stacked_MBC) + weights_M11, dim=0)
    return positive_BC - negative_BC

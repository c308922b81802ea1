"""The best classes of a video: ranked by logit, equal logits by class index, as the metrics rank them.

Shapes   B videos in the batch   C classes   K = min(top_k, C)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `--help` needs no torch
    from torch import Tensor


def best_classes(logits_BC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best classes of every video, best first; of equal logits, the lower class comes first.

    Returns:
        The classes [B, K] (int64) and their probabilities [B, K] (float64).
    """
    import torch

    num_classes = logits_BC.shape[1]
    # One integer holds both: the order of the logit, and below it the class, counted down. topk alone does not define
    # the order of equal logits, and in bf16 many logits are equal.
    keys_BC = (sort_keys(logits_BC) << 32) + torch.arange(num_classes - 1, -1, -1, device=logits_BC.device)
    keys_BK = keys_BC.topk(min(top_k, num_classes), dim=1).values
    classes_BK = num_classes - 1 - (keys_BK & 0xFFFF_FFFF)
    return classes_BK, logits_BC.gather(1, classes_BK).double().sigmoid()


def sort_keys(scores: Tensor) -> Tensor:
    """Integers (int64, in the range of int32) that sort as the scores do: their bits as float32, -0 equal to 0."""
    import torch

    bits = (scores.float() + 0.0).view(torch.int32).long()  # adding 0 turns -0 into 0
    return torch.where(bits < 0, bits ^ 0x7FFF_FFFF, bits)

"""The contrastive loss, and the spread of embeddings that shows a collapse.

Shapes   B videos in the batch   F dimensions of an embedding   K keys that are not the query's own
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.losses.sparse_cross_entropy import softplus

TIE = 1e-6  # cosines that differ by no more are equal: float32 sums in another order differ as much


def info_nce(
    queries_BF: Tensor, keys_BF: Tensor, negatives_KF: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """mean_b -log( exp(q_b k_b / T) / (exp(q_b k_b / T) + sum_n exp(q_b n / T)) ), in float32 also under autocast.

    Args:
        queries_BF: rows of length 1.
        keys_BF: rows of length 1; row b is the key of query b.
        negatives_KF: the other keys, of length 1; None: the keys of the batch's other rows.
        temperature: T.

    Returns:
        The loss, and the fraction of the queries whose own key is nearer than every other key. A tie, up to rounding,
        counts as an error.

    Raises:
        ValueError: there is no other key.
    """
    if negatives_KF is None and len(keys_BF) < 2:
        raise ValueError(f"a batch without a queue must have at least 2 videos, but got {len(keys_BF)}")
    with torch.autocast(queries_BF.device.type, enabled=False):
        queries_BF, keys_BF = queries_BF.float() / temperature, keys_BF.float()
        if negatives_KF is None:
            logits_BB = queries_BF @ keys_BF.T
            own_B = logits_BB.diagonal()
            others_BK = logits_BB.masked_fill(
                torch.eye(len(keys_BF), dtype=torch.bool, device=keys_BF.device), -torch.inf
            )
        else:
            own_B = (queries_BF * keys_BF).sum(dim=1)
            others_BK = queries_BF @ negatives_KF.float().T
        # -log(e^p / (e^p + e^n)) = log(1 + e^(n - p)) needs no second [B, K] tensor that holds both.
        loss = softplus(others_BK.logsumexp(dim=1) - own_B).mean()
        margin_B = own_B.detach() - others_BK.detach().amax(dim=1)
        correct = (margin_B > TIE / temperature).float().mean()
    return loss, correct


def spread(embeddings_BF: Tensor) -> Tensor:
    """sqrt(F) * mean_f std_b(e_bf) of embeddings of length 1, with the biased standard deviation.

    Between 0, where all embeddings are equal (a collapse), and 1, where they vary as on the whole sphere around 0.
    """
    return embeddings_BF.detach().float().std(dim=0, correction=0).mean() * math.sqrt(embeddings_BF.shape[1])

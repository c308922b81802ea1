"""Random draws and the definition of the contrastive loss, for tests of contrastive training."""

import math

import torch


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def nce(query, key, others, temperature):
    """The definition for one query, in Python: -log of the own key's share."""
    own = math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / temperature)
    rest = sum(math.exp(sum(a * b for a, b in zip(query, other, strict=True)) / temperature) for other in others)
    return -math.log(own / (own + rest))

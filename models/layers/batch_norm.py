"""BatchNorm over groups of a batch, or over the batches of all ranks.

Shapes   B videos in the batch   U units
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from models.tensors import upcast


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm whose batch statistics may be computed over groups of the batch: row b belongs to group b % groups.

    With groups = 1 it is torch's. With more groups, a row is normalised by the statistics of its own group, as on that
    many GPUs without synchronisation; the running statistics are updated once, by the mean over the groups
    (SplitBatchNorm in the single-GPU notebook of facebookresearch/moco). In evaluation, groups have no effect.

    With `over_ranks`, the batch is that of all ranks of torch.distributed together, whose numbers of rows may differ:
    the ranks train as one process would on all rows. (torch's SyncBatchNorm runs on GPUs only.)
    """

    groups = 1
    over_ranks = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, U] -> [B, U].

        Raises:
            ValueError: in training, B is not a multiple of `groups` with at least two rows for each group.
        """
        if self.training and self.over_ranks:
            return self._over_ranks(x)
        if not self.training or self.groups == 1:
            return super().forward(x)
        batch, units = x.shape
        if batch % self.groups or batch < 2 * self.groups:
            raise ValueError(f"a batch of {batch} rows has no {self.groups} equal groups of at least 2 rows")
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        # A row of the view holds one row of every group side by side, so that each group has its own columns.
        means, variances = self.running_mean.repeat(self.groups), self.running_var.repeat(self.groups)
        weight, bias = self.weight.repeat(self.groups), self.bias.repeat(self.groups)
        momentum = 0.1 if self.momentum is None else self.momentum
        normed = F.batch_norm(x.view(-1, units * self.groups), means, variances, weight, bias, True, momentum, self.eps)
        self.running_mean.copy_(means.view(self.groups, units).mean(dim=0))
        self.running_var.copy_(variances.view(self.groups, units).mean(dim=0))
        self.num_batches_tracked.add_(1)
        return normed.view(batch, units)

    def _over_ranks(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        wide = upcast(x)
        sums = _sum_over_ranks(torch.cat([wide.sum(dim=0), wide.new_full((1,), len(x))]))
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        centred = wide - mean
        variance = _sum_over_ranks(centred.square().sum(dim=0)) / rows
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), momentum)
            self.num_batches_tracked.add_(1)
        return ((variance + self.eps).rsqrt() * centred * self.weight + self.bias).to(x.dtype)


@contextmanager
def grouped_statistics(module: nn.Module, groups: int) -> Iterator[None]:
    """Within the context, every BatchNorm in `module` computes its batch statistics over `groups` groups."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    before = [norm.groups for norm in norms]
    for norm in norms:
        norm.groups = groups
    try:
        yield
    finally:
        for norm, number in zip(norms, before, strict=True):
            norm.groups = number


class _SumOverRanks(torch.autograd.Function):
    """Every rank receives the sum, so the gradient of each rank's part is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total

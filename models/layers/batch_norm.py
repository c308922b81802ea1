"""BatchNorm over groups of a batch, over the batches of all ranks, or over rows that are real and not padding.

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

from models.tensors import in_pieces


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

    def forward(self, x: Tensor, real_B: Tensor | None = None) -> Tensor:
        """[B, U] -> [B, U].

        Args:
            x: of any float dtype.
            real_B: bool. The batch statistics are those of the rows where it is True, as if the others were not there;
                the others must be finite, and give 0 in training. None: all rows are real. In evaluation it has no
                effect.

        Raises:
            ValueError: in training, B is not a multiple of `groups` with at least two rows for each group, or there are
                groups and real_B.
        """
        if self.training and (self.over_ranks or real_B is not None):
            return self._own_statistics(x, real_B)
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

    def _own_statistics(self, x: Tensor, real_B: Tensor | None) -> Tensor:
        if self.groups > 1:
            raise ValueError(f"groups must be 1 over ranks and over rows that are real, but got {self.groups}")
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        normed, mean, variance, rows = _Normed.apply(  # type: ignore[no-untyped-call]
            x, real_B, self.weight, self.bias, self.eps, self.over_ranks
        )
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1).clamp(min=1)), momentum)
            self.num_batches_tracked.add_(1)
        return normed


def batch_norms(module: nn.Module) -> list[BatchNorm]:
    """The layers in `module` by which the videos of a batch depend on each other in training.

    Raises:
        ValueError: one is a BatchNorm of torch, of whatever dimension: it has the statistics of a process's whole
            batch, neither those of a group nor those of all ranks; says which.
    """
    norms = []
    for name, part in module.named_modules():
        if isinstance(part, BatchNorm):
            norms.append(part)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):  # the base of all, SyncBatchNorm and lazy ones too
            raise ValueError(
                f"{name or 'the model'} is torch's {type(part).__name__}, whose statistics are always those of a "
                "process's whole batch; use models.layers.BatchNorm instead"
            )
    return norms


@contextmanager
def grouped_statistics(module: nn.Module, groups: int) -> Iterator[None]:
    """Within the context, every BatchNorm in `module` computes its batch statistics over `groups` groups.

    Raises:
        ValueError: a BatchNorm has no groups; see `batch_norms`.
    """
    norms = batch_norms(module)
    before = [norm.groups for norm in norms]
    for norm in norms:
        norm.groups = groups
    try:
        yield
    finally:
        for norm, number in zip(norms, before, strict=True):
            norm.groups = number


class _Normed(torch.autograd.Function):
    """weight (x - mean) / sqrt(variance + epsilon) + bias with the statistics of the real rows, and 0 in other rows.

    All shapes are known to the host, so CUDA is not waited for. The variance is a second pass over the rows: in one
    pass, a large mean would cost it its digits. Saves x alone of the large tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, real_B: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float, over_ranks: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the normed rows [B, U]; and mean [U], biased variance [U] and number of all ranks' real rows."""
        real_B1 = (torch.ones_like(x[:, 0], dtype=torch.bool) if real_B is None else real_B)[:, None].to(weight.dtype)
        sums = [(real * part).sum(dim=0) for real, part in in_pieces(real_B1, x)]
        sums_V = _over_ranks(torch.cat([torch.stack(sums).sum(dim=0), real_B1.sum(dim=0)]), over_ranks)
        rows = sums_V[-1].clamp(min=1)
        mean = sums_V[:-1] / rows
        squares = [(part - mean).mul_(real).square_().sum(dim=0) for real, part in in_pieces(real_B1, x)]
        variance = _over_ranks(torch.stack(squares).sum(dim=0), over_ranks) / rows
        scale = weight * (variance + epsilon).rsqrt()
        shift = bias - mean * scale
        normed = torch.empty_like(x)
        for out, real, part in in_pieces(normed, real_B1, x):
            out.copy_(torch.addcmul(shift, part, scale).mul_(real))
        ctx.save_for_backward(x, real_B1, mean, variance, rows, weight)
        ctx.epsilon, ctx.over_ranks = epsilon, over_ranks
        ctx.mark_non_differentiable(mean, variance, rows)
        return normed, mean, variance, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, None, Tensor, Tensor, None, None]:
        """With z = (x - mean) / root, dx = weight / root (g - mean(g) - z mean(g z)), the means over the real rows."""
        x, real_B1, mean, variance, rows, weight = ctx.saved_tensors
        inverse_root = (variance + ctx.epsilon).rsqrt()
        of_bias, of_weight = [], []
        for real, part, g in in_pieces(real_B1, x, grad):
            real_g = real * g
            of_bias.append(real_g.sum(dim=0))
            of_weight.append(real_g.mul_(part - mean).sum(dim=0))
        grad_bias, grad_weight = torch.stack(of_bias).sum(dim=0), torch.stack(of_weight).sum(dim=0) * inverse_root
        if not ctx.needs_input_grad[0]:  # the input of the model, on every rank
            return None, None, grad_weight, grad_bias, None, None
        sums_V = _over_ranks(torch.cat([grad_bias, grad_weight]), ctx.over_ranks) / rows
        mean_g, mean_gz = sums_V.chunk(2)
        scale = weight * inverse_root
        slope = -scale * inverse_root * mean_gz  # dx = scale g + slope x + shift
        shift = -scale * mean_g - slope * mean
        grad_x = torch.empty_like(x)
        for out, real, part, g in in_pieces(grad_x, real_B1, x, grad):
            out.copy_(torch.addcmul(shift, part, slope).addcmul_(g, scale).mul_(real))
        return grad_x, None, grad_weight, grad_bias, None, None


def _over_ranks(sums: Tensor, over_ranks: bool) -> Tensor:
    """The sums of all ranks, in place (collective); without `over_ranks` this rank's."""
    if over_ranks:
        distributed.all_reduce(sums)
    return sums

"""The trace that finds where a step would make the host wait for a GPU."""

import numpy as np
import pytest
import torch

from tests.support.operator_trace import host_looks

X = torch.arange(6.0)


class Masked(torch.autograd.Function):
    """Reads a value in its backward alone."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * float(grad.sum())


def backward():
    Masked.apply(X.clone().requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (lambda: X[X > 2], {"aten::nonzero"}),
        (lambda: X.clone().index_put_((X > 2,), X[:3]), {"aten::nonzero"}),
        (lambda: X.sum().item(), {"aten::item", "aten::_local_scalar_dense"}),
        (lambda: float(X.sum()), {"aten::item", "aten::_local_scalar_dense"}),
        (lambda: X.any() or X, {"aten::is_nonzero", "aten::item", "aten::_local_scalar_dense"}),
        (lambda: X.repeat_interleave(X.long()), {"aten::item", "aten::_local_scalar_dense"}),
        (lambda: torch.bincount(X.long()), {"aten::bincount"}),
        (lambda: torch.equal(X, X), {"aten::equal"}),
        (backward, {"aten::item", "aten::_local_scalar_dense"}),
        (lambda: X.tolist(), {"tolist"}),
        (lambda: np.asarray(X), {"numpy"}),
        (lambda: X.cpu(), {"cpu"}),
        (lambda: X.to("meta"), {"to another device"}),
        (lambda: torch.tensor([1.0, 2.0]), {"torch.tensor"}),
    ],
)
def test_each_look_of_the_host_is_found(action, found):
    assert found <= host_looks(action).keys()


def test_work_that_stays_on_the_device_is_no_look():
    layer = torch.nn.Linear(6, 3)
    looks = host_looks(lambda: torch.where(X > 2, layer(X.to(X.device)).sum(), 0.0).mean().backward())
    assert looks == {}


def test_the_fused_step_of_adam_is_no_look():
    """Its CPU kernel reads the number of the step; CUDA's does not."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = torch.optim.Adam([weight], fused=True)
    optimizer.step()
    assert host_looks(optimizer.step) == {}

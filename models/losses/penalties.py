"""l1 and l2 penalties on weight matrices, for the whole model or for single layers, with gradients in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from data.ranges import Factor, check_ranges

Convention = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPenalty:
    """The l1 and l2 of one layer, which replace those of the whole model there."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    l1: Factor = 0.0  # l1 of this layer, in place of loss.l1; 0: no such penalty
    l2: Factor = 0.0  # l2 of this layer, in place of loss.l2; 0: no such penalty

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges(self)


class Penalised(NamedTuple):
    """A weight matrix and its penalty factors."""

    matrix: Tensor
    l1: float
    l2: float


def penalised(
    model: nn.Module, l1: float = 0.0, l2: float = 0.0, layers: Mapping[str, LayerPenalty] | None = None
) -> list[Penalised]:
    """The weight matrices with a penalty.

    Args:
        model: has `regularized`, the matrices to which l1 and l2 apply.
        l1: factor of these matrices.
        l2: factor of these matrices.
        layers: penalties by layer, named by a prefix of its parameters' names: `head`, `encoder.joint.0`. They apply to
            all parameters of the layer with two or more dimensions. Where two prefixes match, the longer one applies.

    Raises:
        ValueError: the model has no such layer.
    """
    layers = layers or {}
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    for layer in layers:
        if not any(_below(name, layer) for name in matrices):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in matrices))
            raise ValueError(f"layers: the model has no layer {layer!r}; those with weight matrices are {known}")
    regularized = {id(matrix) for matrix in model.regularized}  # type: ignore[union-attr]
    found = []
    for name, matrix in matrices.items():
        own = max((layer for layer in layers if _below(name, layer)), key=len, default=None)
        if own is not None:
            found.append(Penalised(matrix, layers[own].l1, layers[own].l2))
        elif id(matrix) in regularized:
            found.append(Penalised(matrix, l1, l2))
    return [entry for entry in found if entry.l1 or entry.l2]


def _below(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def penalty(entries: Iterable[Penalised], convention: Convention = "mean") -> Tensor:
    """sum_W l1 mean|W| + l2 mean(W^2) / 2; with the convention `sum`, sums instead of the means.

    The MLP of lidalei/youtube-8m has the mean, slim's l2_regularizer the sum with the factor 1/2. The logistic
    regression of lidalei and Keras have the sum without it: their l2 is half of ours.

    Returns:
        A scalar. In training, add_penalty_gradients is several times faster than the backward of this.
    """
    total = torch.zeros(())
    for matrix, l1, l2 in entries:
        share = 1 / matrix.numel() if convention == "mean" else 1.0
        if l1:
            total = total.to(matrix.device) + l1 * share * torch.linalg.vector_norm(matrix, 1)
        if l2:
            total = total.to(matrix.device) + l2 * share / 2 * matrix.square().sum()
    return total


@torch.no_grad()
def add_penalty_gradients(entries: Iterable[Penalised], convention: Convention = "mean") -> None:
    """Adds the gradient of `penalty` to every matrix's .grad in place: l1 sign(W) + l2 W, for `mean` over W's size.

    Call it between backward and clipping.

    Raises:
        ValueError: a matrix has no gradient.
    """
    for matrix, l1, l2 in entries:
        share = 1 / matrix.numel() if convention == "mean" else 1.0
        if matrix.grad is None:
            raise ValueError("every matrix must have a gradient, but got one without: call backward first")
        if l1:
            matrix.grad.add_(matrix.sign(), alpha=l1 * share)
        if l2:
            matrix.grad.add_(matrix, alpha=l2 * share)

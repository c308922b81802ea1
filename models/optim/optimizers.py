"""Settings of an optimizer, the optimizer that they describe, and a step that may be skipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from data.ranges import HUGE, TINY, Positive, Range, Share, check_ranges
from models.optim.clipping import ClipConfig
from models.optim.registry import OPTIMIZERS
from models.optim.schedule import ScheduleConfig

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(OPTIMIZERS)]  # read at run time: by pydantic, by the errors and by the documentation


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimizer. A setting that has no effect on the kind must be left out."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # The kind of optimizer. rmsprop_tf: RMSProp as in TensorFlow 1. lars: SGD with a step scaled to each matrix.
    kind: Kind
    learning_rate: Annotated[float, Range(TINY, 1e38)]  # the largest learning rate, which `schedule` may lower
    decay: Share | None = None  # rmsprop_tf: decay of the running mean of the squared gradient at each step; null: 0.9
    # rmsprop_tf, sgd, lars: share of the last movement that is added to a step; null: 0.9 for lars, 0 for the others.
    momentum: Share | None = None
    nesterov: bool = False  # sgd: Nesterov momentum; needs a momentum above 0
    # rmsprop_tf, adam, adamw: number that keeps a step finite. rmsprop_tf adds it to the mean square before the root is
    # taken; null: 1e-10. adam and adamw add it to the root; null: 1e-08.
    epsilon: Positive | None = None
    beta1: Share | None = None  # adam, adamw: decay of the running mean of the gradient at each step; null: 0.9
    # adam, adamw: decay of the running mean of the squared gradient at each step; null: 0.999.
    beta2: Share | None = None
    # adamw, sgd, lars: decay of weight matrices; biases are not decayed. adamw: a step subtracts learning rate times
    # weight_decay times weight; null: 0.01. sgd, lars: weight_decay times weight is added to the gradient; null: 0 for
    # sgd, 1e-06 for lars.
    weight_decay: Annotated[float, Range(0, HUGE)] | None = None
    # lars: length of a step at a learning rate of 1, as a fraction of the norm of the weight matrix; null: 0.001.
    trust: Positive | None = None
    # How the learning rate changes in the course of the training.
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)  # limit on the norm of the gradient

    def __post_init__(self) -> None:
        """Checks the ranges, and refuses a setting that has no effect on the kind."""
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"kind must be one of {', '.join(OPTIMIZERS)}, but got {self.kind!r}")
        has = OPTIMIZERS[self.kind].settings
        for name in ("decay", "momentum", "epsilon", "beta1", "beta2", "weight_decay", "trust"):
            value = getattr(self, name)
            if value is not None and name not in has:
                raise ValueError(f"{name} has no effect on {self.kind}, which has {', '.join(has)}, but got {value}")
        check_ranges(self)
        if self.nesterov and not (self.kind == "sgd" and self.momentum):
            raise ValueError(f"nesterov needs sgd with a momentum, but got {self.kind} with momentum {self.momentum}")

    @property
    def settings(self) -> dict[str, float]:
        """The settings of the kind: the given values, and its defaults for the others."""
        defaults = OPTIMIZERS[self.kind].settings
        given = {name: getattr(self, name) for name in defaults}
        return {name: default if given[name] is None else float(given[name]) for name, default in defaults.items()}


def build(config: OptimizerConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """Builds the optimizer of a configuration, for parameters that are already on their device.

    On CUDA the learning rate is a scalar on the device, so that a CUDA graph of a step takes another rate in each
    replay; on a CPU it is a number, which no step has to read from a tensor.
    """
    parameters = list(parameters)
    device = parameters[0].device
    nesterov = {"nesterov": True} if config.nesterov else {}  # of sgd alone
    lr = torch.tensor(config.learning_rate, device=device) if device.type == "cuda" else config.learning_rate
    return OPTIMIZERS[config.kind].make(parameters, lr=lr, **config.settings, **nesterov)


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restores what `state_dict` of an optimizer of the same configuration gave, on any device.

    Only the state of each parameter is taken. The settings, the learning rate among them, stay those of `build`: they
    are the same but for those that the device demands.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, built in zip(optimizer.param_groups, settings, strict=True):
        group.update(built)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of the following steps; on CUDA the host does not wait."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def step(optimizer: Optimizer, skip: Tensor | None = None) -> None:
    """Takes a step of an optimizer from `build`; where `skip` is True, weights and state stay as they are, bit for bit.

    Args:
        optimizer: its parameters have their gradients.
        skip: a bool scalar on the parameters' device, say ~isfinite(loss), whose value the host does not wait for; None
            for a step that is never skipped. With `skip`, the gradients may hold any value, NaN included, and cannot be
            used afterwards.
    """
    if skip is None:
        optimizer.step()
        return
    # The protocol of torch's fused optimizers, made for GradScaler: where found_inf is 1, they write nothing.
    optimizer.found_inf = skip.to(torch.float32)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]

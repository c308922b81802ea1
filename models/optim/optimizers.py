"""TF-style RMSProp, Adam(W), SGD, LARS; learning rates by examples seen; clipping; a step that may be skipped."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from models.optim.lars import LARS

# What each kind reads, with the published (rmsprop_tf, lars: MoCo v3's) or usual defaults.
SETTINGS: dict[str, dict[str, float]] = {
    "rmsprop_tf": {"decay": 0.9, "momentum": 0.0, "epsilon": 1e-10},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "lars": {"momentum": 0.9, "trust": 0.001, "weight_decay": 1e-6},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves with the examples seen."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["constant", "staircase", "cosine", "step"] = "constant"
    decay: float = 0.95  # staircase: factor of every stair
    decay_examples: int = 4_000_000  # staircase: examples from stair to stair
    milestones: tuple[float, ...] = (0.6, 0.8)  # step: fractions of all examples at which the rate falls (MoCo v1)
    factor: float = 0.1  # step: to this share of what it was
    final: float = 0.0  # cosine: fraction of the peak that is left at the end
    warmup: float = 0.0  # fraction of all examples over which the rate rises linearly from 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], but got {self.decay}")
        if self.decay_examples < 1:
            raise ValueError(f"decay_examples must be at least 1, but got {self.decay_examples}")
        if any(not 0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones must be in (0, 1), but got {', '.join(map(str, self.milestones))}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1], but got {self.factor}")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final must be in [0, 1], but got {self.final}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), but got {self.warmup}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """How large a gradient may be."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["none", "per_variable", "global"] = "none"  # the published systems clip per variable
    norm: float = 1.0  # largest Euclidean norm: of each parameter's gradient, or of all together

    def __post_init__(self) -> None:
        """Checks the range."""
        if not self.norm > 0:
            raise ValueError(f"norm must be positive, but got {self.norm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimizer. None means the default in SETTINGS; what the kind does not read stays None."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["rmsprop_tf", "adam", "adamw", "sgd", "lars"]
    learning_rate: float  # the schedule's peak
    decay: float | None = None  # rmsprop_tf: of the running mean square
    momentum: float | None = None  # rmsprop_tf, sgd, lars
    nesterov: bool = False  # sgd with momentum
    epsilon: float | None = None  # rmsprop_tf (inside the root), adam and adamw (outside)
    beta1: float | None = None  # adam, adamw: decay of the mean
    beta2: float | None = None  # adam, adamw: decay of the mean square
    weight_decay: float | None = None  # of matrices alone; adamw: times the rate; sgd, lars: added to the gradient
    trust: float | None = None  # lars: length of a step at a rate of 1, as a share of each matrix's norm
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)

    def __post_init__(self) -> None:
        """Checks the ranges, and that no setting is given that the kind does not read."""
        if self.kind not in SETTINGS:
            raise ValueError(f"kind must be one of {', '.join(SETTINGS)}, but got {self.kind!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, but got {self.learning_rate}")
        for name in ("decay", "momentum", "epsilon", "beta1", "beta2", "weight_decay", "trust"):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in SETTINGS[self.kind]:
                raise ValueError(
                    f"{name} has no effect on {self.kind}, which has {', '.join(SETTINGS[self.kind])}, but got {value}"
                )
            if name in ("epsilon", "trust") and not value > 0:
                raise ValueError(f"{name} must be positive, but got {value}")
            if name == "weight_decay" and not value >= 0:
                raise ValueError(f"weight_decay must not be negative, but got {value}")
            if name not in ("epsilon", "trust", "weight_decay") and not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), but got {value}")
        if self.nesterov and not (self.kind == "sgd" and self.momentum):
            raise ValueError(f"nesterov needs sgd with a momentum, but got {self.kind} with momentum {self.momentum}")

    def setting(self, name: str) -> float:
        """The value of a setting of this kind: the given one, else the kind's default."""
        value = getattr(self, name)
        return SETTINGS[self.kind][name] if value is None else float(value)


def learning_rate_at(config: OptimizerConfig, examples_seen: int, total_examples: int) -> float:
    """The learning rate of the step that comes after `examples_seen` examples of `total_examples`.

    constant:   peak
    staircase:  peak * decay ** floor(examples_seen / decay_examples)
    cosine:     peak * (final + (1 - final) * (1 + cos(pi t)) / 2), t = progress from 0 to 1 after the warm-up
    step:       peak * factor ** (milestones that lie behind)

    all of it times examples_seen / (warmup * total_examples) during the warm-up. Past the end the rate stays.
    """
    if examples_seen < 0 or total_examples < 1:
        raise ValueError(
            f"examples_seen must be >= 0 and total_examples >= 1, but got {examples_seen} and {total_examples}"
        )
    schedule = config.schedule
    warmup_examples = schedule.warmup * total_examples
    rate = config.learning_rate
    if schedule.kind == "staircase":
        rate *= schedule.decay ** (examples_seen // schedule.decay_examples)
    elif schedule.kind == "cosine":
        progress = (examples_seen - warmup_examples) / (total_examples - warmup_examples)
        half_wave = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
        rate *= schedule.final + (1 - schedule.final) * half_wave
    elif schedule.kind == "step":
        rate *= schedule.factor ** sum(examples_seen >= m * total_examples for m in schedule.milestones)
    return rate * min(examples_seen / warmup_examples, 1.0) if warmup_examples else rate


def build(config: OptimizerConfig, parameters: Iterable[Tensor]) -> Optimizer:
    """The optimizer that a configuration describes, over parameters that are already on their device."""
    parameters = list(parameters)
    if config.kind == "rmsprop_tf":
        return RMSpropTF(
            parameters,
            lr=config.learning_rate,
            decay=config.setting("decay"),
            momentum=config.setting("momentum"),
            epsilon=config.setting("epsilon"),
        )
    if config.kind == "adam":
        betas = (config.setting("beta1"), config.setting("beta2"))
        return Adam(parameters, lr=config.learning_rate, betas=betas, eps=config.setting("epsilon"), fused=True)
    if config.kind == "lars":
        settings = {name: config.setting(name) for name in SETTINGS["lars"]}
        return LARS(parameters, lr=config.learning_rate, **settings)
    groups = _decayed(parameters, config.setting("weight_decay"))
    if config.kind == "adamw":
        betas = (config.setting("beta1"), config.setting("beta2"))
        return AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.setting("epsilon"), fused=True)
    momentum = config.setting("momentum")
    sgd = SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=config.nesterov, fused=True)
    if momentum:
        # Torch makes the buffers uninitialised at the first step and relies on it to fill them; it may be skipped.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _decayed(parameters: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters, with and without decay.

    NOTE: MoCo v1 and v2 decay every parameter; v3 and most since leave out biases and gains, and so do we.
    """
    if not weight_decay:
        return [{"params": parameters, "weight_decay": 0.0}]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def step(optimizer: Optimizer, skip: Tensor | None = None) -> None:
    """One step of an optimizer from `build`; where `skip` is true, nothing: weights and state stay bit for bit.

    Args:
        optimizer: has its gradients.
        skip: a bool scalar on the parameters' device (say, ~isfinite(loss)), or None for a plain step. Nobody waits for
            its value. The gradients may then be anything, NaN included; they are not usable afterwards.
    """
    if skip is None:
        optimizer.step()
        return
    # The protocol of torch's own fused optimizers (written for GradScaler): they undo nothing, they do not write.
    optimizer.found_inf = skip.to(torch.float32)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


@torch.no_grad()
def clip(parameters: Iterable[Tensor], config: ClipConfig) -> None:
    """Scales gradients in place so that no norm exceeds config.norm: g * min(1, norm / ||g||).

    per_variable: each parameter's gradient by its own norm (as TensorFlow's clip_by_norm and the published systems).
    global: all by the norm of all together, so their direction stays.
    Parameters without a gradient are passed over. Nothing waits for a device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if config.kind == "none" or not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    if config.kind == "global":
        norms = torch.linalg.vector_norm(norms).expand(len(gradients))
    # A zero gradient gives a scale of infinity, cut to 1.
    for gradient, scale in zip(gradients, (config.norm / norms).clamp(max=1).unbind(), strict=True):
        gradient.mul_(scale)


class RMSpropTF(Optimizer):
    """RMSProp as TensorFlow 1 has it, which the published settings were found with.

    square = decay * square + (1 - decay) * g^2        starts at ones
    moved  = momentum * moved + lr * g / sqrt(square + epsilon)
    weight = weight - moved

    NOTE: torch.optim.RMSprop starts the square at zero, adds epsilon outside the root and multiplies by the learning
    rate after the momentum. At g = 0.1 its first step is 30 times larger.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        foreach: bool | None = None,
    ) -> None:
        """Keeps the mean square of every parameter, and with a momentum what was moved last.

        Args:
            parameters: on their device.
            lr: learning rate.
            decay: of the mean square.
            momentum: of the movement; 0 keeps no buffer.
            epsilon: added to the mean square, inside the root.
            foreach: one kernel over all parameters at a time; None does so on CUDA. On a CPU, piece by piece is faster.
        """
        super().__init__(parameters, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})
        self.foreach = foreach
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["square"] = torch.ones_like(parameter)
                if momentum:
                    self.state[parameter]["moved"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; where the attribute `found_inf` (set by `models.optimizers.step`) is 1, nothing."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            foreach = parameters[0].is_cuda if self.foreach is None else self.foreach
            if foreach:
                self._step_foreach(group, parameters, found_inf)
            elif found_inf is None or not found_inf.item():
                for parameter in parameters:
                    self._step_one(group, parameter, parameter.grad)

    def _step_one(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        state["square"].mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
        root = (state["square"] + group["epsilon"]).sqrt_()
        if group["momentum"]:
            state["moved"].mul_(group["momentum"]).addcdiv_(gradient, root, value=group["lr"])
            parameter.sub_(state["moved"])
        else:
            parameter.addcdiv_(gradient, root, value=-group["lr"])

    def _step_foreach(self, group: dict[str, Any], parameters: list[Tensor], found_inf: Tensor | None) -> None:
        """The same for all parameters at once. A skipped step is one with zero gradients and both decays at 1."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares = [self.state[p]["square"] for p in parameters]
        decay, momentum = group["decay"], group["momentum"]
        if found_inf is not None:
            skip = found_inf.bool()
            for gradient in gradients:
                gradient.masked_fill_(skip, 0.0)
            decay, momentum = torch.where(skip, 1.0, decay), torch.where(skip, 1.0, momentum)
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - group["decay"])
        roots = torch._foreach_add(squares, group["epsilon"])
        torch._foreach_sqrt_(roots)
        if not group["momentum"]:
            torch._foreach_addcdiv_(parameters, gradients, roots, value=-group["lr"])
            return
        moved = [self.state[p]["moved"] for p in parameters]
        torch._foreach_mul_(moved, momentum)
        torch._foreach_addcdiv_(moved, gradients, roots, value=group["lr"])
        step = moved if found_inf is None else torch._foreach_mul(moved, torch.where(skip, 0.0, 1.0))
        torch._foreach_sub_(parameters, step)

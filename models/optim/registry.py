"""The table of optimizers: what `optimizer.kind` may be, and which settings have an effect on it.

To add an optimizer, write a file with a function or class that takes the parameters, `lr` and the optimizer's settings
by name, and give it an entry in OPTIMIZERS. Its step must do nothing where its attribute `found_inf` is 1, as torch's
fused optimizers do. A setting that no other optimizer has also needs a field in models/optim/optimizers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from models.optim.adam import adam, adamw
from models.optim.lars import LARS
from models.optim.rmsprop_tf import RMSpropTF
from models.optim.sgd import sgd


@dataclass(frozen=True, slots=True)
class OptimizerKind:
    """An optimizer and its settings."""

    make: Callable[..., Optimizer]  # takes the parameters, and by name lr and the settings
    settings: Mapping[str, float]  # those with an effect, and their defaults
    states: int = 0  # tensors of a weight's size that it keeps for each weight, beside one for a momentum


# The defaults are those of the sources (rmsprop_tf: TensorFlow; lars: MoCo v3) or the usual ones.
OPTIMIZERS: Mapping[str, OptimizerKind] = {
    "rmsprop_tf": OptimizerKind(RMSpropTF, {"decay": 0.9, "momentum": 0.0, "epsilon": 1e-10}, states=1),
    "adam": OptimizerKind(adam, {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}, states=2),
    "adamw": OptimizerKind(adamw, {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}, states=2),
    "sgd": OptimizerKind(sgd, {"momentum": 0.0, "weight_decay": 0.0}),
    "lars": OptimizerKind(LARS, {"momentum": 0.9, "trust": 0.001, "weight_decay": 1e-6}),
}

"""What shapes a trial beside its data: the settings of model, optimizer, loss and training, all frozen."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from models.fused_mlp import FusedMLPConfig
from models.losses import LossConfig
from models.optimizers import OptimizerConfig
from tuner.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how a trial trains."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    batch_size: int = 1024  # videos a step
    epochs: int = 20  # passes over the training videos
    precision: Precision = "auto"  # of the matrix products; auto: bf16 where the hardware has it
    seed: int | Literal["per_trial"] = 1  # of weights, order, dropout and bootstrap; per_trial: 1 + the trial's number

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Everything that shapes one trial beside its data."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: FusedMLPConfig
    optimizer: OptimizerConfig
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def settings(self) -> dict[str, Any]:
        """The same as a plain nested dict: what checkpoints and exports store."""
        return asdict(self)

    def seed(self, number: int) -> int:
        """The seed of trial `number`: the same for all (paired comparison) unless training.seed is `per_trial`."""
        return 1 + number if self.training.seed == "per_trial" else self.training.seed

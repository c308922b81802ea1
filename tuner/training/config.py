"""What shapes a trial beside its data, all frozen: one class for each pipeline.

TrialConfig         supervised: a model learns from labelled videos
ContrastiveConfig   an encoder learns from videos without labels, then a classifier on top of it from labels
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from data.sampling import FramesConfig
from models import FusedMLPConfig, LinearConfig, LogisticConfig, ModelConfig
from models.contrastive.moco import METHODS, CrossModalConfig, MethodConfig, leaks
from models.contrastive.views import ViewsConfig
from models.contrastive.views import check as check_views
from models.losses.losses import LossConfig
from models.optim.averaging import AverageConfig
from models.optim.optimizers import OptimizerConfig, ScheduleConfig
from tuner.training.precision import Precision

Seed = int | Literal["per_trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and how a trial trains."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    batch_size: int = 1024  # videos a step, on all workers of the trial together
    accumulate: int = 1  # parts that they are trained in, one after the other: less memory, the same gradient
    epochs: int = 20  # passes over the training videos
    average: AverageConfig | None = None  # of the weights over the steps: what is validated and exported
    precision: Precision = "auto"  # of the matrix products; auto: bf16 where the hardware has it
    seed: Seed = 1  # of weights, order, dropout and bootstrap; per_trial: 1 + the trial's number
    frames: FramesConfig = field(default_factory=FramesConfig)  # of each video, where the data has frames

    def __post_init__(self) -> None:
        _check_at_least_1(self, "batch_size", "accumulate", "epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, but got {self.batch_size} and {self.accumulate}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Everything that shapes one supervised trial beside its data."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: ModelConfig
    optimizer: OptimizerConfig | None = None  # None: of `linear`, which takes no steps
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if isinstance(self.model, LinearConfig):
            if self.loss != LossConfig():
                raise ValueError("loss has no effect on model.kind linear: model.penalty alone shapes its fit")
        elif self.optimizer is None:
            raise ValueError(f"optimizer is missing, which model.kind {self.model.kind} learns by")

    @property
    def epochs(self) -> int:
        """How many epochs the trial has; what is fitted in closed form has one."""
        return 1 if isinstance(self.model, LinearConfig) else self.training.epochs

    @property
    def settings(self) -> dict[str, Any]:
        """The same as a plain nested dict: what checkpoints and exports store."""
        return asdict(self)

    def seed(self, number: int) -> int:
        """The seed of trial `number`: the same for all (paired comparison) unless training.seed is `per_trial`."""
        return _seed(self.training.seed, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """The first half of a contrastive trial. None means the method's published default (models/contrastive/moco.py)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v1", "moco_v2", "moco_v3"]
    temperature: float | None = None  # the similarities are divided by it
    dimension: int | None = None  # width of queries and keys
    queue: int | None = None  # moco_v1, moco_v2: keys of earlier batches that are kept as negatives
    momentum: float | None = None  # of the key encoder; moco_v3: where its rise to 1 begins
    hidden: int | None = None  # moco_v3: units of projector and predictor
    batch_norm_groups: int | None = None  # a batch's BatchNorm statistics are those of so many groups, keys shuffled
    views: ViewsConfig = field(default_factory=ViewsConfig)
    cross_modal: CrossModalConfig | None = None  # a further loss between the towers of the features
    optimizer: OptimizerConfig | None = None  # None: the method's published one, its rate scaled to the batch
    batch_size: int = 1024  # videos a step
    epochs: int = 20  # passes over the training videos, labelled or not

    def __post_init__(self) -> None:
        _check_at_least_1(self, "batch_size", "epochs")
        groups = self.method.batch_norm_groups
        if self.batch_size % groups or self.batch_size < 2 * groups:
            raise ValueError(
                f"batch_size must be a multiple of batch_norm_groups, at least 2 videos for each, "
                f"but got {self.batch_size} and {groups}"
            )

    @property
    def method(self) -> MethodConfig:
        """The settings of the method alone.

        Raises:
            ValueError: a setting is out of its range, or one is given that the method does not have.
        """
        cls = METHODS[self.kind]
        known = {setting.name for setting in fields(cls)}
        given = {name: getattr(self, name) for name in METHOD_SETTINGS if getattr(self, name) is not None}
        for name, value in given.items():
            if name not in known:
                has = ", ".join(setting for setting in METHOD_SETTINGS if setting in known)
                raise ValueError(f"{name} has no effect on {self.kind}, which has {has}, but got {value}")
        return cls(**given)

    @property
    def chosen_optimizer(self) -> OptimizerConfig:
        """The optimizer that is given, else the published one of the method.

        NOTE: MoCo v3's is LARS for ResNets and AdamW for transformers; the latter, with a tenth of the epochs to warm
        up, stands here for both.
        """
        if self.optimizer is not None:
            return self.optimizer
        scale = self.batch_size / 256
        if self.kind == "moco_v3":
            schedule = ScheduleConfig(kind="cosine", warmup=0.1)
            return OptimizerConfig(kind="adamw", learning_rate=1.5e-4 * scale, weight_decay=0.1, schedule=schedule)
        schedule = ScheduleConfig(kind="step" if self.kind == "moco_v1" else "cosine")
        return OptimizerConfig(
            kind="sgd", learning_rate=0.03 * scale, momentum=0.9, weight_decay=1e-4, schedule=schedule
        )


METHOD_SETTINGS = ("temperature", "dimension", "queue", "momentum", "hidden", "batch_norm_groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The second half of a contrastive trial: a classifier on the pretrained encoder."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["linear", "fine_tune"] = "linear"  # on the frozen encoder; or the whole of it learns on
    start: Literal["ridge", "prior"] = "ridge"  # its first weights: the closed-form probe's, or none but the prior's
    dropout: float | None = None  # fine_tune: the model's from here on; None: as in pretraining
    optimizer: OptimizerConfig
    loss: LossConfig = field(default_factory=LossConfig)
    average: AverageConfig | None = None  # of the probe's weights over its steps: what is validated and exported
    batch_size: int = 1024  # videos a step
    epochs: int = 20  # passes over the labelled videos

    def __post_init__(self) -> None:
        _check_at_least_1(self, "batch_size", "epochs")
        if self.dropout is not None and self.kind != "fine_tune":
            raise ValueError(f"dropout has no effect on a {self.kind} probe, only on fine_tune, but got {self.dropout}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), but got {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BothHalvesConfig:
    """What the two halves of a contrastive trial share."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    precision: Precision = "auto"  # of the matrix products; auto: bf16 where the hardware has it
    seed: Seed = 1  # of weights, order, views, dropout and bootstrap; per_trial: 1 + the trial's number


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """Everything that shapes one contrastive trial beside its data. Its epochs count through both halves."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: FusedMLPConfig  # the encoder is all of it but the output layer, which is the probe
    pretrain: PretrainConfig
    probe: ProbeConfig
    training: BothHalvesConfig = field(default_factory=BothHalvesConfig)

    def __post_init__(self) -> None:
        if leaks(self.pretrain.method, batch_norm=self.model.norm == "batch_norm"):
            raise ValueError(
                "pretrain.batch_norm_groups must be at least 2 with model.norm batch_norm, for statistics of the "
                "whole batch give the keys away; or take layer_norm"
            )
        try:
            check_views(self.pretrain.views, self.model.towers)
        except ValueError as error:
            raise ValueError(f"pretrain.views.{error}") from error
        if self.pretrain.cross_modal is not None and len(self.model.towers) < 2:
            raise ValueError("pretrain.cross_modal needs two features, but model.towers has one")

    @property
    def epochs(self) -> int:
        """How many epochs both halves have together."""
        return self.pretrain.epochs + self.probe.epochs

    @property
    def settings(self) -> dict[str, Any]:
        """The same as a plain nested dict: what checkpoints and exports store."""
        return asdict(self)

    def seed(self, number: int) -> int:
        """The seed of trial `number`: the same for all (paired comparison) unless training.seed is `per_trial`."""
        return _seed(self.training.seed, number)

    @property
    def second_half(self) -> TrialConfig:
        """The probe as the supervised trial that it is: of the embeddings, or of the whole model."""
        probe, training = self.probe, self.training
        dropout = self.model.dropout if probe.dropout is None else probe.dropout
        return TrialConfig(
            model=replace(self.model, dropout=dropout) if probe.kind == "fine_tune" else LogisticConfig(),
            optimizer=probe.optimizer,
            loss=probe.loss,
            training=TrainingConfig(
                batch_size=probe.batch_size,
                epochs=probe.epochs,
                average=probe.average,
                precision=training.precision,
                seed=training.seed,
            ),
        )


Trial = TrialConfig | ContrastiveConfig


def without_effect(trial: Trial) -> list[str]:
    """The paths of the settings that differ from their defaults for nothing: all of steps, where a closed form fits."""
    if not (isinstance(trial, TrialConfig) and isinstance(trial.model, LinearConfig)):
        return []
    heeded = TrainingConfig(precision=trial.training.precision)
    names = (setting.name for setting in fields(TrainingConfig))
    differing = [f"training.{name}" for name in names if getattr(trial.training, name) != getattr(heeded, name)]
    return differing if trial.optimizer is None else ["optimizer", *differing]


def _seed(seed: Seed, number: int) -> int:
    return 1 + number if seed == "per_trial" else seed


def _check_at_least_1(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, but got {getattr(config, name)}")

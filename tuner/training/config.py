"""The settings of a trial, beside its data: one class for each pipeline, all frozen.

TrialConfig         supervised: a model learns from labelled videos
ContrastiveConfig   contrastive: an encoder learns from videos without labels, then a classifier on it from labels

The comment at a field is its text in docs/settings.md (tuner/config/reference.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from data import ranges
from data.ranges import Count, Share, check_ranges
from data.sampling import FramesConfig
from models import FusedMLPConfig, LinearConfig, LogisticConfig, ModelConfig
from models.contrastive.contrast import CrossModalConfig
from models.contrastive.methods import METHODS, MethodConfig, Temperature, leaks
from models.contrastive.views import ViewsConfig
from models.contrastive.views import check as check_views
from models.losses import LossConfig
from models.optim import AverageConfig, OptimizerConfig, ScheduleConfig
from tuner.training.precision import Precision

Seed = ranges.Seed | Literal["per_trial"]
CudaGraph = Literal["auto"] | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How long and on what batches a supervised trial trains."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Number of videos in a step, over all workers of the trial together; a multiple of accumulate.
    batch_size: Count = 1024
    # Number of parts into which a batch is split to use less memory; the gradient is that of the whole batch.
    accumulate: Count = 1
    epochs: Count = 20  # number of passes over the training videos
    # An exponential average of the weights over the steps, which is validated and exported in place of the last
    # weights; null: no average.
    average: AverageConfig | None = None
    # Number format of the matrix products; auto: bf16 where the hardware computes in it, else fp32.
    precision: Precision = "auto"
    # Seed of the initial weights, the order of the videos, dropout and bootstrap, the same in every trial; per_trial: 1
    # plus the number of the trial.
    seed: Seed = 1
    # The frames of each video that a training step sees; has no effect on video-level models.
    frames: FramesConfig = field(default_factory=FramesConfig)
    # Whether a CUDA graph takes the training steps, with the same results in less time. auto: where a trial trains on
    # one GPU, at level video, with accumulate 1. true: as auto, but where it is not possible the trial fails. false:
    # never.
    cuda_graph: CudaGraph = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, but got {self.batch_size} and {self.accumulate}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """The settings of a supervised trial."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: ModelConfig  # the network; its kind says which
    optimizer: OptimizerConfig | None = None  # how the weights are updated; model.kind linear has none
    loss: LossConfig = field(default_factory=LossConfig)  # what training minimises
    training: TrainingConfig = field(default_factory=TrainingConfig)  # how long and on what batches

    def __post_init__(self) -> None:
        if isinstance(self.model, LinearConfig):
            if self.loss != LossConfig():
                raise ValueError("loss has no effect on model.kind linear, whose only penalty is model.penalty")
        elif self.optimizer is None:
            raise ValueError(f"optimizer is missing; model.kind {self.model.kind} needs one")

    @property
    def epochs(self) -> int:
        """The number of epochs of the trial: one where the model is fitted in closed form."""
        return 1 if isinstance(self.model, LinearConfig) else self.training.epochs

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as a plain nested dict, as checkpoints and exports store them."""
        return asdict(self)

    def seed(self, number: int) -> int:
        """The seed of trial `number`: the same for all trials, so that they compare, unless `seed` is per_trial."""
        return trial_seed(self.training.seed, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """The first phase of a contrastive trial: the encoder learns without labels."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["moco_v1", "moco_v2", "moco_v3"]  # the contrastive method
    # Number by which the cosine similarities are divided; null: 0.07 for moco_v1, 0.2 for moco_v2, 1 for moco_v3, as in
    # the papers.
    temperature: Temperature | None = None
    # Width of the embeddings that are compared; null: 128 for moco_v1 and moco_v2, 256 for moco_v3, as in the papers.
    dimension: Count | None = None
    # moco_v1, moco_v2: number of embeddings of earlier batches that serve as negatives; null: 65536, as in the papers.
    queue: Count | None = None
    # Share of its weights that the momentum encoder keeps in a step; with moco_v3 it is the initial share, which rises
    # to 1. null: 0.999 for moco_v1 and moco_v2, 0.99 for moco_v3, as in the papers.
    momentum: Share | None = None
    # moco_v3: number of units between the layers of the projector and of the predictor; null: 4096, as in the paper.
    hidden: Count | None = None
    # Number of groups of a batch, each with its own BatchNorm statistics. The keys are shuffled over the groups, so
    # that the statistics do not reveal which key belongs to a query. null: 8; has no effect with model.norm layer_norm.
    batch_norm_groups: Count | None = None
    views: ViewsConfig = field(default_factory=ViewsConfig)  # the random changes that make two views of a video
    cross_modal: CrossModalConfig | None = None  # a second contrast, between the features of a video; null: none
    # The optimizer of pretraining; null: that of the method's paper, with the learning rate proportional to batch_size
    # (moco_v3: AdamW).
    optimizer: OptimizerConfig | None = None
    # Number of videos in a step of pretraining; a multiple of batch_norm_groups, with at least 2 videos for each.
    batch_size: Count = 1024
    epochs: Count = 20  # number of passes over all training videos, with and without labels

    def __post_init__(self) -> None:
        check_ranges(self)
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
        """The optimizer that is given, else the one of the method's paper.

        NOTE: MoCo v3 uses LARS for ResNets and AdamW for transformers. Here the default is AdamW, with a tenth of the
        epochs to warm up.
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
    """The second phase of a contrastive trial: a classifier on the pretrained encoder."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # What the second phase trains. linear: only an output layer; the encoder keeps its pretrained weights. fine_tune:
    # all weights.
    kind: Literal["linear", "fine_tune"] = "linear"
    # Initial weights of the output layer. ridge: those of the ridge regression of the labels on the embeddings, solved
    # in closed form after pretraining. prior: random weights, and biases as model.prior_bias says.
    start: Literal["ridge", "prior"] = "ridge"
    dropout: Share | None = None  # fine_tune: model.dropout in this phase; null: as in pretraining
    optimizer: OptimizerConfig  # how the weights are updated in the second phase
    loss: LossConfig = field(default_factory=LossConfig)  # what the second phase minimises
    # An exponential average of the weights over the steps, which is validated and exported in place of the last
    # weights; null: no average.
    average: AverageConfig | None = None
    batch_size: Count = 1024  # number of videos in a step of the second phase
    epochs: Count = 20  # number of passes over the labelled training videos

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.dropout is not None and self.kind != "fine_tune":
            raise ValueError(f"dropout has no effect on a {self.kind} probe, only on fine_tune, but got {self.dropout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasesConfig:
    """The settings that both phases of a contrastive trial share."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Number format of the matrix products; auto: bf16 where the hardware computes in it, else fp32.
    precision: Precision = "auto"
    # Seed of the initial weights, the order of the videos, the views, dropout and bootstrap, the same in every trial;
    # per_trial: 1 plus the number of the trial.
    seed: Seed = 1
    # Whether a CUDA graph takes the steps of the second phase. auto: where a trial trains on a GPU. true: as auto, but
    # where it is not possible the trial fails. false: never.
    cuda_graph: CudaGraph = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveConfig:
    """The settings of a contrastive trial. One count of epochs covers both phases."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: FusedMLPConfig  # the encoder, and on it the output layer, which is the probe
    pretrain: PretrainConfig  # the first phase: the encoder learns without labels
    probe: ProbeConfig  # the second phase: the classifier learns from labels
    training: PhasesConfig = field(default_factory=PhasesConfig)  # what both phases share

    def __post_init__(self) -> None:
        if leaks(self.pretrain.method, batch_norm=self.model.norm == "batch_norm"):
            raise ValueError(
                "pretrain.batch_norm_groups must be at least 2 with model.norm batch_norm, because statistics of the "
                "whole batch reveal which key belongs to a query; or set model.norm to layer_norm"
            )
        try:
            check_views(self.pretrain.views, self.model.towers)
        except ValueError as error:
            raise ValueError(f"pretrain.views.{error}") from error
        if self.pretrain.cross_modal is not None and len(self.model.towers) < 2:
            raise ValueError("pretrain.cross_modal needs two features, but model.towers has one")

    @property
    def epochs(self) -> int:
        """The number of epochs of both phases together."""
        return self.pretrain.epochs + self.probe.epochs

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as a plain nested dict, as checkpoints and exports store them."""
        return asdict(self)

    def seed(self, number: int) -> int:
        """The seed of trial `number`: the same for all trials, so that they compare, unless `seed` is per_trial."""
        return trial_seed(self.training.seed, number)

    @property
    def probe_trial(self) -> TrialConfig:
        """The probe as a supervised trial: on the embeddings, or of the whole model."""
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
                cuda_graph=training.cuda_graph,
            ),
        )


Trial = TrialConfig | ContrastiveConfig


def without_effect(trial: Trial) -> list[str]:
    """The paths of the settings that are not at their defaults but have no effect: those of steps, in a closed form."""
    if not (isinstance(trial, TrialConfig) and isinstance(trial.model, LinearConfig)):
        return []
    used = TrainingConfig(precision=trial.training.precision)
    names = (setting.name for setting in fields(TrainingConfig))
    differing = [f"training.{name}" for name in names if getattr(trial.training, name) != getattr(used, name)]
    return differing if trial.optimizer is None else ["optimizer", *differing]


LEFT_OUT = object()  # the value of a setting that is left out


def flatten(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values of nested settings by yaml path, such as `optimizer.learning_rate`, as MLflow and tables show them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        below = f"{path}.{key}" if path else key
        flat |= flatten(value, below) if isinstance(value, Mapping) else {below: value}
    return flat


def differences(
    stored: Any,
    given: Any,
    path: str = "",
    *,
    show: Callable[[Any], str] = str,
    is_value: Callable[[Mapping[str, Any]], bool] = lambda value: False,
    implied: Callable[[str], Any] = lambda path: LEFT_OUT,
) -> list[str]:
    """Where two nested settings differ, a line for each path: `model.hidden: 8 -> 16`.

    Args:
        stored: the first settings.
        given: the second settings.
        path: of both in the settings that they are part of.
        show: the text of a value.
        is_value: whether a mapping is compared as one value, such as a distribution.
        implied: the value of a setting that one of the two leaves out, by its path.
    """
    for value in (stored, given):
        if not isinstance(value, Mapping) or is_value(value):
            return [] if stored == given else [f"{path}: {_shown(stored, show)} -> {_shown(given, show)}"]
    lines = []
    for key in dict.fromkeys([*stored, *given]):
        below = f"{path}.{key}" if path else key
        one, other = (settings[key] if key in settings else implied(below) for settings in (stored, given))
        lines += differences(one, other, below, show=show, is_value=is_value, implied=implied)
    return lines


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    return "left out" if value is LEFT_OUT else show(value)


def trial_seed(seed: Seed, number: int) -> int:
    """The seed of trial `number` with a setting `training.seed`."""
    return 1 + number if seed == "per_trial" else seed

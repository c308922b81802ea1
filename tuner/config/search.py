"""The blocks `search` and `resources`: how an experiment is searched, and what a trial uses of the cluster."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from data.ranges import Count, Range, Seed, UpToAll, check_ranges
from tuner.config.yaml_tree import shown

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """`90s`, `30m`, `4h` or `1h30m` in seconds; any other type of value unchanged."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        raise ValueError(f"must be a number of seconds, or a time such as 90s, 30m, 4h or 1h30m (got {shown(value)})")
    return float(sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", value)))


# At most ten years: the clocks of threads and of Ray take no more than some centuries.
Seconds = Annotated[float, Range(0, 10 * 365 * 86400, "low"), BeforeValidator(_seconds)]
Trials = Annotated[int, Range(1, 1_000_000)]
Failures = Annotated[int, Range(0, 1_000_000)]
Cpus = Annotated[float, Range(0.01, 100_000)]
Gpus = Annotated[float, Range(0, 1024)]
Workers = Annotated[int, Range(1, 10_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """The sampler, which proposes the values of each trial."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # How the values of a trial are chosen. tpe: a tree-structured Parzen estimator, on the newest 250 finished trials
    # and the best 25. random: independent draws. gp: a Gaussian process, for at most some hundred trials, as its time
    # grows with their cube. cmaes: the evolution strategy CMA-ES. qmc: a Sobol sequence. grid: every combination of
    # options, whole numbers and steps once.
    kind: Literal["tpe", "random", "gp", "cmaes", "qmc", "grid"] = "tpe"
    seed: Seed = 1  # seed of the sampler; the same seed gives the same proposals where one trial runs at a time

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The scheduler, which stops trials early; it compares `gap` at equal epochs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # When a trial is stopped early. asha: when it is not among the best at a rung; the rungs are after `grace` epochs,
    # `grace` times `reduction` epochs, and so on. median: when it is below the median of the other trials. none: never.
    kind: Literal["asha", "median", "none"] = "asha"
    grace: Count = 1  # number of epochs that every trial trains before it can be stopped
    reduction: Annotated[float, Range(1.01, 1000)] = 3.0  # asha: one in this many trials continues at each rung

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauConfig:
    """Ends the search when it no longer improves."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    trials: Trials  # number of finished trials in a row without an improvement after which the search ends
    min_gain: UpToAll = 0.0  # gain of the best score (GAP, from 0 to 1) above which it counts as an improvement

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresConfig:
    """How many failures a search tolerates."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # How many times a trial is resumed from its last checkpoint after one of its workers has died, before it counts as
    # failed.
    per_trial: Failures = 2
    per_search: Failures = 10  # how many failed trials the search tolerates; one more ends it

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How the space is searched, and when the search ends.

    The score of a trial is the best GAP (global average precision) of its epochs on the validation videos.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Number of trials; leave it out with the grid sampler, which has one trial for each combination.
    trials: Trials = 20
    # Configurations to try after the defaults, before the sampler proposes any: the settings of each by path, such as
    # {optimizer.learning_rate: 0.002, model.dropout: 0.3}; what is left out has its default.
    first: tuple[dict[str, Any], ...] = ()
    # Earlier searches whose trials teach the sampler: ids of searches, or names of experiments, which mean all of their
    # searches. Trials of the same data and the same fixed settings count; of a search on other data, the best
    # configurations are tried first.
    warm_start: tuple[str, ...] = ()
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # the sampler, which chooses the values of each trial
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)  # the scheduler, which stops trials early
    # Time after which the search ends and stops the trials that run, all attempts together; null: no limit.
    time_budget: Seconds | None = None
    # Score (GAP, from 0 to 1) with which the search ends once a trial has reached it; null: none.
    goal: Annotated[float, Range(0, 1, "low")] | None = None
    # Time after which an epoch counts as hanging: the trial is resumed from its last checkpoint in another worker;
    # null: no limit.
    epoch_timeout: Seconds | None = None
    # Number of trials that may run at the same time; auto: as many as fit on the cluster.
    max_concurrent: Literal["auto"] | Trials = "auto"
    # Number of trials after which a worker's process ends and a new one takes its place; null: the process trains all
    # trials of its slot.
    trials_per_worker: Trials | None = None
    # Number of the best trials that keep their weights, for exports and ensembles; the checkpoints of the other trials
    # are removed as soon as they have ended; all: every finished trial keeps its weights.
    keep: Literal["all"] | Trials = 3
    plateau: PlateauConfig | None = None  # ends the search when the best score no longer improves; null: never
    failures: FailuresConfig = field(default_factory=FailuresConfig)  # how many failures the search tolerates

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartableConfig:
    """Nodes of one type that an autoscaler can start, where `ray up` does not say so (KubeRay)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    nodes: Workers  # largest number of nodes of this type that may run
    cpu: Annotated[float, Range(1, 100_000)]  # number of CPUs of a node of this type
    gpu: Gpus = 0  # number of GPUs of a node of this type

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticConfig:
    """A range of workers: the trial restarts from its checkpoint with more or fewer of them as nodes come and go."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    min: Workers = 1  # smallest number of workers with which the trial trains
    max: Workers  # largest number of workers that the trial uses

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min > self.max:
            raise ValueError(f"min must be from 1 to max, which is {self.max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesConfig:
    """What a trial uses of the cluster."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Number of GPUs of a worker, or a share of one, at least 0.01; auto: one where the cluster has GPUs or can start
    # some, else none.
    gpu: Literal["auto"] | Gpus = "auto"
    # Number of CPUs of a worker; auto: those of a node divided by the workers on it, at least 1.
    cpu: Literal["auto"] | Cpus = "auto"
    # Number of workers of a trial, which share each batch; or {min: 1, max: 4}: as many as fit, while
    # nodes come and go.
    workers: Workers | ElasticConfig = 1
    # Nodes of one type that an autoscaler can start, which count as available before they run; null: only running nodes
    # and those of `ray up` count.
    startable: StartableConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.gpu != "auto" and not (0.01 <= self.gpu <= 1 or self.gpu % 1 == 0):
            raise ValueError(
                f"gpu must be a share of one GPU, at least 0.01, or a whole number of them, but got {self.gpu}"
            )

    @property
    def min_workers(self) -> int:
        """The smallest number of workers that train a trial."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The largest number of workers that train a trial, where the cluster holds so many."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

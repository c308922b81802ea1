"""How an experiment is searched, and what its trials hold of the cluster: the blocks `search` and `resources`."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from tuner.config.yaml_tree import shown

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """`90s`, `30m`, `4h`, `1h30m` in seconds; anything else as it is."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        raise ValueError(f"must be a number of seconds, or a time such as 90s, 30m, 4h or 1h30m (got {shown(value)})")
    return float(sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", value)))


Seconds = Annotated[float, BeforeValidator(_seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """Who proposes the next trial."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # tpe: of more than 250 finished trials it looks at the newest 250 and the best 25 (tuner/search/tpe.py).
    # gp looks at all, and its time grows with their cube: for some hundred trials.
    # grid tries every combination once: of options, whole numbers and steps.
    kind: Literal["tpe", "random", "gp", "cmaes", "qmc", "grid"] = "tpe"
    seed: int = 1  # the same proposals again, with one trial at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who stops a trial early, comparing `gap` at equal epochs."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: Literal["asha", "median", "none"] = "asha"
    grace: int = 1  # epochs that every trial gets
    reduction: float = 3.0  # asha: the best 1 in so many goes on at every rung

    def __post_init__(self) -> None:
        if self.grace < 1:
            raise ValueError(f"grace must be at least 1, but got {self.grace}")
        if not self.reduction > 1:
            raise ValueError(f"reduction must be above 1, but got {self.reduction}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauConfig:
    """Ends the search when it has stopped to improve."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    trials: int  # finished trials in a row without an improvement
    min_gain: float = 0.0  # what counts as one: more than this

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}")
        if self.min_gain < 0:
            raise ValueError(f"min_gain must not be negative, but got {self.min_gain}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresConfig:
    """How much may go wrong."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    per_trial: int = 2  # times that a trial goes on from its last checkpoint after its worker died
    per_search: int = 10  # failed trials that are put up with; one more ends the search

    def __post_init__(self) -> None:
        for name in ("per_trial", "per_search"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How the space is searched, and when the search ends."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    metric: Literal["gap_best"] = "gap_best"  # a trial's score: the best GAP of its epochs
    mode: Literal["max"] = "max"
    trials: int = 20  # a grid has as many as there are combinations
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    time_budget: Seconds | None = None  # seconds, or 90s, 30m, 4h; trials that run then are ended
    epoch_timeout: Seconds | None = None  # an epoch that takes longer hangs: its worker is ended, its trial goes on
    max_concurrent: Literal["auto"] | int = "auto"  # trials at a time; auto: as many as the cluster holds
    overlap: bool = True  # the next trial's processes start while the last one trains
    plateau: PlateauConfig | None = None
    failures: FailuresConfig = field(default_factory=FailuresConfig)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, but got {self.trials}")
        for name in ("time_budget", "epoch_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} must be above 0 seconds, but got {seconds}")
        if self.max_concurrent != "auto" and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent must be at least 1, but got {self.max_concurrent}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartableConfig:
    """Nodes of one kind that an autoscaler may start, where this program cannot read it from `ray up` (KubeRay)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    nodes: int  # at the most
    cpu: float  # of each
    gpu: float = 0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.cpu < 1 or self.gpu < 0:
            raise ValueError(f"needs nodes and cpu of at least 1, but got nodes {self.nodes} and cpu {self.cpu}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticConfig:
    """Between how many workers a trial may have: it restarts from its checkpoint when nodes come or go."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    min: int = 1
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"min must be from 1 to max, which is {self.max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcesConfig:
    """What one trial holds of the cluster."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    gpu: Literal["auto"] | float = "auto"  # GPUs of a worker; auto: one where the cluster has GPUs or may start some
    cpu: Literal["auto"] | float = "auto"  # CPUs of a worker; auto: the node's CPUs over the workers on it, at least 1
    workers: int | ElasticConfig = 1  # of a trial, which share every batch; {min: 1, max: 4}: as nodes come and go
    startable: StartableConfig | None = None  # what counts as there although no node of it runs yet

    def __post_init__(self) -> None:
        if self.gpu != "auto" and self.gpu < 0:
            raise ValueError(f"gpu must not be negative, but got {self.gpu}")
        if self.gpu != "auto" and self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu must be a share of one GPU or a whole number of them, but got {self.gpu}")
        if self.cpu != "auto" and not self.cpu > 0:
            raise ValueError(f"cpu must be above 0, but got {self.cpu}")
        if self.min_workers < 1:
            raise ValueError(f"workers must be at least 1, but got {self.workers}")

    @property
    def min_workers(self) -> int:
        """With which a trial trains at all."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """With which it trains where the cluster has room."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

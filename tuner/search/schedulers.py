"""Which trial stops early: Tune's schedulers on `epoch`, that know the epochs of the search so far.

A resumed search is a new Tuner with a new scheduler. Each trial's journaled epochs are told to it first, so that a rung
of successive halving compares a trial of today with those of yesterday.
"""

from collections import defaultdict
from statistics import fmean, median
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tuner.config.search import SchedulerConfig
from tuner.storage.journal import SearchHistory, TrialHistory, Unsaved
from tuner.workers.trial import epochs_of

# `epoch` never restarts; Tune's training_iteration does, with every restart of a trial's actor.
CLOCK = "epoch"
# Trials that the median is taken of, at the least.
FEWEST_OTHERS = 3


class ReplayingScheduler(Unsaved, TrialScheduler):
    """A scheduler of Tune's that is told the journal's epochs first; a trial in its last epoch ends by itself."""

    def __init__(self, config: SchedulerConfig, search: SearchHistory, max_epochs: int) -> None:
        """Make the scheduler and replay the trials that are over."""
        super().__init__()
        self.name = config.kind
        self._inner = _build(config, max_epochs)
        self._search = search
        self.stopped: set[str] = set()  # trials that it stopped, by our id
        for trial in search.trials.values():
            if trial.status != "running":
                past = _Past(trial)
                self._inner.on_trial_add(None, past)
                self._replay(past, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a trial; one that goes on after a resume brings its epochs along."""
        self._inner.on_trial_add(tune_controller, trial)
        self._replay(trial, self._search.trials[trial.config["trial_id"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide after an epoch. The last one never stops a trial: killing what ends by itself costs seconds."""
        if CLOCK not in result:
            return TrialScheduler.CONTINUE
        decision = TrialScheduler.CONTINUE
        for epoch, metrics in epochs_of(result):
            decision = self._inner.on_trial_result(tune_controller, trial, {**metrics, CLOCK: epoch})
        if decision == TrialScheduler.STOP and result[CLOCK] < result["epochs"]:
            self.stopped.add(trial.config["trial_id"])
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that failed."""
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note the end of a trial."""
        if CLOCK in result and "gap" in result:
            self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that was terminated."""
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """First come, first served."""
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        """For Tune's log."""
        return str(self._inner.debug_string())

    @property
    def metric(self) -> str:
        """What epochs are compared by: the GAP of that epoch, not the best so far."""
        return "gap"

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune offers its own metric (the trial's score); this scheduler has its own."""
        return True

    def _replay(self, trial: Any, record: TrialHistory) -> None:
        for epoch, metrics in sorted(record.reports.items()):
            self._inner.on_trial_result(None, trial, {CLOCK: epoch, **metrics})


class MedianRule(FIFOScheduler):
    """Stops a trial whose best epoch is below the median of what the others averaged up to the same epoch.

    The rule of Golovin et al. (Google Vizier, 2017, section 3.2.2), as Tune's MedianStoppingRule has it. Tune's asks
    the controller to pause trials while there are few, and fails on an epoch told twice: neither can be replayed.
    """

    def __init__(self, grace: int) -> None:
        """Every trial gets `grace` epochs."""
        super().__init__()
        self._grace = grace
        self._gaps: dict[str, dict[int, float]] = defaultdict(dict)  # by trial and epoch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide after an epoch, by the epochs that others told so far."""
        id, now = trial.config["trial_id"], result[CLOCK]
        self._gaps[id][now] = result["gap"]
        if now < self._grace:
            return TrialScheduler.CONTINUE
        averages = [
            fmean(gap for epoch, gap in gaps.items() if self._grace <= epoch <= now)
            for other, gaps in self._gaps.items()
            if other != id and max(gaps) >= now
        ]
        if len(averages) < FEWEST_OTHERS or max(self._gaps[id].values()) >= median(averages):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP


class _Past:
    """A trial that is over, as far as a scheduler looks at it."""

    def __init__(self, record: TrialHistory) -> None:
        self.trial_id = record.id
        self.config = {"trial_id": record.id}


def _build(config: SchedulerConfig, max_epochs: int) -> TrialScheduler:
    match config.kind:
        case "asha":
            return AsyncHyperBandScheduler(
                time_attr=CLOCK,
                metric="gap",
                mode="max",
                max_t=max_epochs + 1,
                grace_period=min(config.grace, max_epochs),
                reduction_factor=config.reduction,
            )
        case "median":
            return MedianRule(config.grace)
        case _:
            return FIFOScheduler()

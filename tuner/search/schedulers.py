"""The schedulers, which stop trials early: a registry by `search.scheduler.kind`.

To add one, add an entry to `SCHEDULERS` and its name to `SchedulerConfig.kind` (tuner/config/search.py). The entry
makes a scheduler of Ray Tune that decides by `epoch`. A resumed search is a new Tuner with a new scheduler, which first
receives the epochs in the journal, so that a trial of today is compared with those of yesterday. So two kinds cannot be
used: those that pause trials, such as Tune's synchronous HyperBand, because they need Tune's controller then; and those
that draw at random, such as HyperBand with several brackets, because they would decide otherwise than before.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean, median
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from tuner.config.search import SchedulerConfig
from tuner.storage.journal import SearchHistory, Unsaved
from tuner.workers.messages import epochs_of

# Tune's own clock, training_iteration, counts reports and begins again in another slot; the epoch does not.
CLOCK = "epoch"
# The median is taken of at least this many other trials.
MIN_OTHERS = 3


class ReplayingScheduler(Unsaved, FIFOScheduler):
    """A scheduler of Tune that first receives the epochs in the journal, and stops no trial after its last epoch.

    It receives them in the order in which they were reported, so it decides again as it did then: a driver that was
    killed may have recorded an epoch and not the decision that followed. The inner scheduler receives nothing but
    epochs, since the journal has nothing else for it.
    """

    def __init__(self, config: SchedulerConfig, search: SearchHistory, max_epochs: int) -> None:
        """Make the scheduler and give it the epochs in the journal.

        Args:
            config: which scheduler, and its settings.
            search: the journal of the search.
            max_epochs: the largest number of epochs that a trial of the search can have.
        """
        super().__init__()
        self.name = config.kind
        self._inner = SCHEDULERS[config.kind](config, max_epochs)
        self._search = search
        self._trials: dict[str, _Trial] = {}  # by their id in the journal
        # The epochs after which it stopped trials, by id; at first of those that have not ended in the journal.
        self.stopped: dict[str, int] = {}
        for id, epoch in search.reported:
            trial = search.trials[id]
            decision = self._decide(id, epoch, trial.reports[epoch])
            if decision == TrialScheduler.STOP and trial.status == "running" and epoch == trial.last_epoch:
                self.stopped[id] = epoch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide after an epoch. The last epoch never stops a trial: it ends anyway, and stopping it takes seconds.

        Where a report has several epochs, the first one that stops the trial counts.
        """
        if CLOCK not in result:
            return TrialScheduler.CONTINUE
        history = self._search.trials[trial.config["trial_id"]]
        for epoch, metrics in epochs_of(result):
            if epoch in history.reports:
                continue  # the decision was made when it was recorded
            if self._decide(history.id, epoch, metrics) == TrialScheduler.STOP and epoch < result["epochs"]:
                self.stopped[history.id] = epoch
                return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none: Tune then starts the trials in their order, and the newest one takes the slot that becomes free.

        A trial that is chosen would take this slot, and give up the slot that is starting for it.
        """

    def debug_string(self) -> str:
        """A line for Tune's log."""
        return str(self._inner.debug_string())

    @property
    def metric(self) -> str:
        """The metric that is compared: the GAP of an epoch, not the best GAP so far."""
        return "gap"

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Ignore the metric of the search, which is a trial's score; a scheduler compares `metric`."""
        return True

    def _decide(self, id: str, epoch: int, metrics: Mapping[str, Any]) -> str:
        if id not in self._trials:
            self._trials[id] = _Trial(id)
            self._inner.on_trial_add(None, self._trials[id])
        return str(self._inner.on_trial_result(None, self._trials[id], {**metrics, CLOCK: epoch}))


class MedianRule(FIFOScheduler):
    """Stops a trial whose best epoch is below the median of the other trials' averages up to the same epoch.

    This is the rule of Golovin et al. (Google Vizier, 2017, section 3.2.2), as in Tune's MedianStoppingRule. Tune's
    class pauses trials through the controller while there are few, and fails where an epoch is reported twice. A
    resumed search, which replays the journal without a controller, can use neither.
    """

    def __init__(self, grace: int) -> None:
        """Let every trial train `grace` epochs."""
        super().__init__()
        self._grace = grace
        self._gaps: dict[str, dict[int, float]] = defaultdict(dict)  # by trial and epoch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide after an epoch, by the epochs that other trials have reported so far."""
        id, now = trial.config["trial_id"], result[CLOCK]
        self._gaps[id][now] = result["gap"]
        if now < self._grace:
            return TrialScheduler.CONTINUE
        averages = [
            fmean(gap for epoch, gap in gaps.items() if self._grace <= epoch <= now)
            for other, gaps in self._gaps.items()
            if other != id and max(gaps) >= now
        ]
        if len(averages) < MIN_OTHERS or max(self._gaps[id].values()) >= median(averages):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP


class _Trial:
    """A trial under its id in the journal, which all drivers of a search know; it has what schedulers read."""

    def __init__(self, id: str) -> None:
        self.trial_id = id
        self.config = {"trial_id": id}


def _asha(config: SchedulerConfig, max_epochs: int) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        time_attr=CLOCK,
        metric="gap",
        mode="max",
        max_t=max_epochs + 1,
        grace_period=min(config.grace, max_epochs),
        reduction_factor=config.reduction,
    )


# Makes a scheduler from the settings and the largest number of epochs that a trial can have.
SCHEDULERS: dict[str, Callable[[SchedulerConfig, int], TrialScheduler]] = {
    "asha": _asha,
    "median": lambda config, max_epochs: MedianRule(config.grace),
    "none": lambda config, max_epochs: FIFOScheduler(),
}

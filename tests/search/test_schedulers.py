"""Which trials are stopped early, and that a search which was cut anywhere and resumed stops the same ones."""

import copy
from collections.abc import Iterator
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from tuner.config.search import SchedulerConfig
from tuner.search.schedulers import SCHEDULERS, ReplayingScheduler
from tuner.storage.journal import SearchHistory, TrialHistory

EPOCHS = 9
ASHA = SchedulerConfig(kind="asha", grace=1, reduction=3)
MEDIAN = SchedulerConfig(kind="median", grace=2)
NONE = SchedulerConfig(kind="none")

Report = tuple[int, float]  # trial number, the GAP of its next epoch


class Trial:
    """The part of Tune's trial that a scheduler reads; no two are equal, as with Tune's own."""

    def __init__(self, name: str, id: str) -> None:
        self.trial_id, self.config = name, {"trial_id": id}


class Search:
    """A search on its driver: Tune asks the scheduler about every epoch, then the journal records it."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.history = SearchHistory(id="s", experiment="tiny", fingerprint="f", planned=99, tracking_uri="-")
        self.running: dict[int, Trial] = {}  # Tune's trials by number
        self.drivers = 0
        self.drive()

    def drive(self) -> None:
        """Start a driver: it knows what is in the journal, and Tune's trials have new names."""
        self.drivers += 1
        self.history = copy.deepcopy(self.history)
        self.scheduler = ReplayingScheduler(self.config, self.history, EPOCHS)
        for number in self.running:
            self._add(number)

    def _add(self, number: int) -> None:
        id = f"s-{number}"
        self.running[number] = Trial(f"tune-{self.drivers}-{number}", id)
        self.scheduler.on_trial_add(None, self.running[number])

    def report(self, number: int, gap: float, *, killed: bool = False) -> str:
        """Report the next epoch of a trial, which starts if it is new; returns the decision.

        With `killed`, the driver is killed when the epoch is in the journal and the end of the trial is not.
        """
        id = f"s-{number}"
        if id not in self.history.trials:
            self.history.trials[id] = TrialHistory(number=number, id=id, values={}, sampler_state={})
            self._add(number)
        trial = self.history.trials[id]
        result = {"epoch": len(trial.reports) + 1, "epochs": EPOCHS, "gap": gap}
        decision = self.scheduler.on_trial_result(None, self.running[number], result)
        trial.reports[result["epoch"]] = {"gap": gap}
        self.history.reported.append((id, result["epoch"]))
        if killed:
            self.drive()
        if decision == TrialScheduler.STOP or result["epoch"] == EPOCHS:
            self.history.trials[id].status = "finished"
            del self.running[number]
        return decision

    def repeat(self, number: int) -> str:
        """Report what a trial reports first after its worker died: all of its epochs again."""
        trial = self.history.trials[f"s-{number}"]
        history = [{"epoch": epoch, **trial.reports[epoch]} for epoch in sorted(trial.reports)]
        result = {"epoch": len(history), "epochs": EPOCHS, **history[-1], "history": history}
        return self.scheduler.on_trial_result(None, self.running[number], result)

    def is_over(self, number: int) -> bool:
        return f"s-{number}" in self.history.trials and number not in self.running


def decisions(
    config: SchedulerConfig, stream: list[Report], *, cut: int | None = None
) -> Iterator[tuple[int, int, str]]:
    """(trial, epoch, decision) for a stream of reports; the driver dies before report `cut`."""
    search = Search(config)
    for step, (number, gap) in enumerate(stream):
        if step == cut:
            search.drive()
        if not search.is_over(number):
            decision = search.report(number, gap)
            yield number, len(search.history.trials[f"s-{number}"].reports), decision


@pytest.mark.parametrize("config", [ASHA, MEDIAN, NONE], ids=lambda config: config.kind)
@settings(max_examples=60, deadline=None)
@given(stream=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=50), cut=st.integers(0, 50))
def test_a_driver_that_was_killed_before_it_recorded_a_stop_decides_it_again(
    config: SchedulerConfig, stream: list[Report], cut: int
) -> None:
    search = Search(config)
    for step, (number, gap) in enumerate(stream):
        if search.is_over(number):
            continue
        decision = search.report(number, gap, killed=step == cut)
        if step == cut and (epoch := len(search.history.trials[f"s-{number}"].reports)) < EPOCHS:
            stopped = {f"s-{number}": epoch} if decision == TrialScheduler.STOP else {}
            assert search.scheduler.stopped == stopped


def test_of_several_epochs_in_a_report_the_first_that_stops_the_trial_counts() -> None:
    search = Search(ASHA)
    search.report(0, 0.9)
    trial = Trial("tune", "s-1")
    search.history.trials["s-1"] = TrialHistory(number=1, id="s-1", values={}, sampler_state={})
    epochs = [{"epoch": epoch, "gap": 0.5} for epoch in (1, 2)]
    result = {**epochs[-1], "epochs": EPOCHS, "history": epochs}
    assert search.scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP
    assert search.scheduler.stopped == {"s-1": 1}


streams = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=50)


@pytest.mark.parametrize("config", [ASHA, MEDIAN, NONE], ids=lambda config: config.kind)
@settings(max_examples=60, deadline=None)
@given(stream=streams, cut=st.integers(0, 50))
def test_a_search_that_was_cut_anywhere_decides_as_the_uninterrupted_one(
    config: SchedulerConfig, stream: list[Report], cut: int
) -> None:
    assert list(decisions(config, stream, cut=cut)) == list(decisions(config, stream))


@pytest.mark.parametrize("config", [ASHA, MEDIAN, NONE], ids=lambda config: config.kind)
@settings(max_examples=60, deadline=None)
@given(stream=streams)
def test_epochs_reported_again_change_no_later_decision(config: SchedulerConfig, stream: list[Report]) -> None:
    plain, repeating = Search(config), Search(config)
    for number, gap in stream:
        if plain.is_over(number):
            continue
        if number in repeating.running:
            assert repeating.repeat(number) == TrialScheduler.CONTINUE  # it was not stopped when they were new
        assert repeating.report(number, gap) == plain.report(number, gap)


def test_asha_stops_a_trial_that_is_not_in_the_best_third_of_a_rung() -> None:
    search = Search(ASHA)
    for number, gap in enumerate((0.9, 0.8, 0.7, 0.6)):
        decision = search.report(number, gap)
        assert decision == (TrialScheduler.CONTINUE if number == 0 else TrialScheduler.STOP)
    assert search.scheduler.stopped == {"s-1": 1, "s-2": 1, "s-3": 1}
    assert search.report(4, 0.95) == TrialScheduler.CONTINUE


def test_asha_decides_only_at_its_rungs() -> None:
    search = Search(ASHA)
    for _ in range(EPOCHS):
        search.report(0, 0.9)
    assert search.report(1, 0.95) == TrialScheduler.CONTINUE  # epoch 1 is a rung
    assert search.report(1, 0.1) == TrialScheduler.CONTINUE  # epoch 2 is none
    assert search.report(1, 0.1) == TrialScheduler.STOP  # epoch 3 is


@pytest.mark.parametrize("config", [ASHA, MEDIAN], ids=lambda config: config.kind)
def test_the_last_epoch_stops_no_trial(config: SchedulerConfig) -> None:
    search = Search(config)
    for number in range(4):
        for _ in range(EPOCHS):
            search.report(number, 0.5)
    *_, last = [search.report(9, 0.5) for _ in range(EPOCHS - 1)] + [search.report(9, 0.0)]
    assert last == TrialScheduler.CONTINUE
    assert search.scheduler.stopped == {}


def test_asha_lets_a_trial_of_fewer_epochs_complete() -> None:
    search = Search(ASHA)
    for _ in range(EPOCHS):
        search.report(0, 0.9)
    trial = Trial("short", "s-1")
    search.history.trials["s-1"] = TrialHistory(number=1, id="s-1", values={}, sampler_state={})
    search.scheduler.on_trial_add(None, trial)
    for epoch, gap in ((1, 0.95), (2, 0.1), (3, 0.1)):
        result = {"epoch": epoch, "epochs": 3, "gap": gap}
        assert search.scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE


def test_median_stops_a_trial_whose_best_is_below_the_average_of_the_others() -> None:
    search = Search(MEDIAN)
    for number, gap in enumerate((0.4, 0.5, 0.6)):
        for _ in range(3):
            assert search.report(number, gap) == TrialScheduler.CONTINUE
    assert search.report(3, 0.1) == TrialScheduler.CONTINUE  # every trial trains `grace` epochs
    assert search.report(3, 0.2) == TrialScheduler.STOP
    assert search.report(4, 0.1) == TrialScheduler.CONTINUE
    assert search.report(4, 0.55) == TrialScheduler.CONTINUE
    assert search.report(4, 0.1) == TrialScheduler.CONTINUE  # its best counts, not its last


def test_median_waits_for_three_others() -> None:
    search = Search(MEDIAN)
    for number, gap in enumerate((0.9, 0.8, 0.1)):
        for _ in range(3):
            assert search.report(number, gap) == TrialScheduler.CONTINUE


def test_no_scheduler_stops_no_trial() -> None:
    assert {decision for _, _, decision in decisions(NONE, [(n % 4, 1 / (1 + n)) for n in range(36)])} == {"CONTINUE"}


def test_a_report_of_an_error_is_no_epoch() -> None:
    search = Search(ASHA)
    search.report(0, 0.9)
    assert search.scheduler.on_trial_result(None, search.running[0], {"error": "it broke"}) == TrialScheduler.CONTINUE


def test_a_failed_trial_stays_in_its_rungs_after_a_resume() -> None:
    search = Search(ASHA)
    search.report(0, 0.9)
    search.scheduler.on_trial_error(None, search.running.pop(0))
    search.history.trials["s-0"].status = "failed"
    search.drive()
    assert search.report(1, 0.5) == TrialScheduler.STOP


def test_the_settings_allow_exactly_the_schedulers_that_exist() -> None:
    assert list(get_args(get_type_hints(SchedulerConfig)["kind"])) == list(SCHEDULERS)

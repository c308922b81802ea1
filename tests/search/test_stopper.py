"""When a search ends before its last planned trial."""

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.config.experiment import Experiment, load
from tuner.config.search import FailuresConfig, PlateauConfig
from tuner.search import stopper
from tuner.search.stopper import StopRule, sigterm_as_interrupt
from tuner.storage.journal import SearchHistory, TrialHistory

EXPERIMENT = """\
experiments:
  tiny:
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {kind: fused_mlp, towers: {rgb: 4}, hidden: 4}
    optimizer: {kind: adam, learning_rate: 0.01}
"""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopper, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT)
    return load(tmp_path / "experiments.yaml", "tiny")


def with_search(experiment: Experiment, **settings: Any) -> Experiment:
    return replace(experiment, search=replace(experiment.search, **settings))


def search_of(*scores: float | None) -> SearchHistory:
    """A search whose trials ended with these scores, None for a failed one."""
    search = SearchHistory(id="s", experiment="tiny", fingerprint="f", planned=99, tracking_uri="-")
    for number, score in enumerate(scores):
        trial = TrialHistory(number=number, id=f"t{number}", values={}, sampler_state={})
        trial.status = "failed" if score is None else "finished"
        trial.reports = {} if score is None else {1: {"gap": score}}
        search.trials[trial.id] = trial
    return search


def test_nothing_ends_a_search_that_has_no_rule(experiment: Experiment, clock: Clock) -> None:
    rule = StopRule(experiment, search_of(0.5, 0.4, 0.3))
    clock.now += 10**9
    assert not rule.stop_all() and rule.reason is None
    assert not rule("t0", {"gap": 0.0})  # the scheduler stops single trials


def test_the_time_budget_ends_a_search(experiment: Experiment, clock: Clock) -> None:
    rule = StopRule(with_search(experiment, time_budget=60.0), search_of())
    clock.now += 60
    assert not rule.stop_all()
    clock.now += 0.1
    assert rule.stop_all() and rule.reason == "time_budget"


def test_a_resumed_search_has_what_is_left_of_its_time_budget(experiment: Experiment, clock: Clock) -> None:
    limited, search = with_search(experiment, time_budget=60.0), search_of()
    search.seconds = 50.0  # of earlier drivers
    rule = StopRule(limited, search)
    clock.now += 9
    assert not rule.stop_all() and not rule.is_out_of_time
    clock.now += 2
    assert rule.stop_all() and rule.reason == "time_budget"
    search.seconds = 61.0
    assert StopRule(limited, search).is_out_of_time


def test_a_trial_that_reaches_the_goal_ends_the_search(experiment: Experiment, clock: Clock) -> None:
    search = search_of(0.5)
    rule = StopRule(with_search(experiment, goal=0.69), search)
    for epoch, (gap, ends) in enumerate([(0.6, False), (0.6899, False), (0.69, True), (0.5, True)], start=2):
        search.trials["t0"].reports[epoch] = {"gap": gap}
        search.reported.append(("t0", epoch))
        assert rule.stop_all() == ends
    assert rule.reason == "goal"
    resumed = StopRule(with_search(experiment, goal=0.69), search)
    assert resumed.stop_all() and resumed.reason == "goal"


def test_a_search_that_has_ended_keeps_its_first_reason(experiment: Experiment, clock: Clock) -> None:
    search = search_of(None, None)
    rule = StopRule(with_search(experiment, time_budget=60.0, failures=FailuresConfig(per_search=1)), search)
    assert rule.stop_all()
    clock.now += 100
    search.trials.clear()
    assert rule.stop_all() and rule.reason == "failures"


@pytest.mark.parametrize("scores, ends", [((None,) * 2, False), ((None,) * 3, True), ((None, 0.5, None), False)])
def test_more_failures_than_allowed_end_a_search(experiment: Experiment, scores: Any, ends: bool) -> None:
    rule = StopRule(with_search(experiment, failures=FailuresConfig(per_search=2)), search_of(*scores))
    assert rule.stop_all() == ends
    assert rule.reason == ("failures" if ends else None)


@pytest.mark.parametrize(
    "scores, min_gain, ends",
    [
        ((0.5,), 0.0, False),  # nothing to compare to
        ((0.5, 0.4, 0.3), 0.0, False),  # only two since the best
        ((0.5, 0.4, 0.3, 0.2), 0.0, True),
        ((0.5, 0.4, 0.3, 0.6), 0.0, False),
        ((0.5, 0.5, 0.5, 0.5), 0.0, True),  # as good is no gain
        ((0.5, 0.5, 0.5, 0.505), 0.01, True),
        ((0.5, 0.5, 0.5, 0.52), 0.01, False),
        ((0.5, 0.4, None, None, 0.3), 0.0, False),  # a failed trial says nothing
        ((0.3, 0.5, 0.4, 0.4, 0.4), 0.0, True),
    ],
)
def test_a_plateau_ends_a_search(experiment: Experiment, scores: Any, min_gain: float, ends: bool) -> None:
    plateau = PlateauConfig(trials=3, min_gain=min_gain)
    rule = StopRule(with_search(experiment, plateau=plateau), search_of(*scores))
    assert rule.stop_all() == ends
    assert rule.reason == ("plateau" if ends else None)


def test_running_trials_do_not_count_for_a_plateau(experiment: Experiment) -> None:
    search = search_of(0.5, 0.4, 0.4, 0.4)
    search.trials["t3"].status = "running"
    assert not StopRule(with_search(experiment, plateau=PlateauConfig(trials=3)), search).stop_all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_and_a_second_one_the_program(experiment: Experiment, number: signal.Signals) -> None:
    rule = StopRule(experiment, search_of())
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with rule.signals():
        assert not rule.stop_all()
        signal.raise_signal(number)
        assert rule.stop_all() and rule.interrupted and rule.reason is None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_does_what_ctrl_c_does_before_and_after_the_trials() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_fatal_error_ends_the_search_as_a_signal_does_and_the_first_is_kept(experiment: Experiment) -> None:
    rule = StopRule(experiment, search_of())
    rule.halt("no room")
    rule.halt("no shard")
    assert rule.stop_all() and rule.interrupted and rule.fatal_error == "no room" and rule.reason is None


def test_the_wall_clock_does_not_matter(experiment: Experiment, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = StopRule(with_search(experiment, time_budget=60.0), search_of())
    for jump in (-1e6, 1e9):
        monkeypatch.setattr("time.time", lambda jump=jump: 1.7e9 + jump)
        assert not rule.stop_all()
    clock.now += 61
    assert rule.stop_all() and rule.reason == "time_budget"

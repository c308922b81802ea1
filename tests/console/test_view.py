"""The live view: how far the search is, its best trial, and the trials that run."""

import io
import threading
import time
from itertools import pairwise
from typing import Any, Literal

import pytest
from rich.console import Console as RichConsole
from rich.live import Live

from tests.support.trials import metrics, search, trial
from tuner.console import (
    SearchView,
)
from tuner.console.view import MAX_RUNNING
from tuner.storage.journal import SearchHistory, TrialHistory


def view_of(
    history: SearchHistory, monkeypatch: pytest.MonkeyPatch, seconds: float = 125.0, results: str = ""
) -> tuple[SearchView, Any]:
    """A view of a search that has run for `seconds`, and a function that renders it to lines."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = SearchView(history, results)
    now += seconds

    def render(width: int = 120) -> list[str]:
        recorder = RichConsole(width=width, height=40, file=io.StringIO(), record=True)
        recorder.print(view)
        return [line.rstrip() for line in recorder.export_text().splitlines()]

    return view, render


def end(view: SearchView, one: TrialHistory, status: Literal["finished", "failed"] = "finished") -> None:
    one.status = status
    view.ended(one)


def test_the_view_shows_how_far_the_search_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed, running = trial(0, 0.5), trial(1), (trial(2, 0.55), trial(3, 0.52))
    history = search(done, failed, *running, trial(4))  # the last one waits for a slot
    view, render = view_of(history, monkeypatch, results="mlflow ui")
    end(view, done)
    end(view, failed, "failed")
    for one in running:
        view.reported(one, 1, 3, metrics(one.reports[1]["gap"]))
    assert render() == [
        "tiny  20260102-030405-0001   1 done  2 running  1 waiting  1 failed  of 6   2 min 05 s, about 0 s left",
        "best 002 GAP 0.5500 (+0.0500 over trial 0)",
        "  002 0.5500  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "  003 0.5200  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "  000 0.5000  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "trial 002  epoch 1/3  loss 4.568  GAP 0.5500  12,346 videos/s",
        "trial 003  epoch 1/3  loss 4.568  GAP 0.5200  12,346 videos/s",
        "24,691 videos/s in training",
        "MLflow: mlflow ui",
    ]


def test_trials_that_have_started_run_and_others_of_the_journal_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed search has several unfinished trials, of which one has a slot."""
    unfinished = [trial(number, 0.5) for number in range(3)]
    view, render = view_of(search(*unfinished), monkeypatch)
    assert "0 running  3 waiting" in render()[0]
    view.began(unfinished[1])
    assert "1 running  2 waiting" in render()[0]
    view.reported(unfinished[1], 2, 3, metrics(0.5))
    assert "1 running  2 waiting" in render()[0]
    end(view, unfinished[1])
    assert "1 done  0 running  2 waiting" in render()[0]


def test_a_narrow_terminal_cuts_neither_the_time_left_nor_the_link() -> None:
    link = "mlflow ui --backend-store-uri sqlite:////a/folder/with/a/rather/long/name/mlflow.db"
    shown = io.StringIO()
    console = RichConsole(width=50, file=shown, force_terminal=True, color_system=None, soft_wrap=True)  # as Console's
    with Live(SearchView(search(trial(0)), link), console=console, auto_refresh=False):
        pass
    assert "time left: not known yet" in " ".join(shown.getvalue().split())
    assert link.replace(" ", "") in "".join(shown.getvalue().split())


def test_the_time_left_follows_the_epochs_and_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six trials of four epochs of ten seconds; a trial that is stopped early moves the estimate by its own share."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    history = search()
    view = SearchView(history)
    now += 60  # Ray starts, the workers import torch: no pace of an epoch
    said = []
    for number, epochs in enumerate((4, 4, 1, 4, 4, 4)):
        one = trial(number)
        history.trials[one.id] = one
        view.began(one)
        for epoch in range(1, epochs + 1):
            now += 10
            one.reports[epoch] = metrics(0.5)
            view.reported(one, epoch, 4, metrics(0.5))
            said.append(view._timing.left())
        end(view, one)
    assert said[0] is None and said[1] == pytest.approx(220)  # 22 of 24 epochs
    known = [left for left in said if left is not None]
    assert all(later <= earlier for earlier, later in pairwise(known)), known
    assert known[-1] == 0
    now += 5
    assert view._timing.left() == 0


def test_the_view_renders_while_trials_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich renders from another thread, which would end with the exception of a dictionary that changes meanwhile."""
    history = search(planned=5000)
    view = SearchView(history, "mlflow ui")
    ended, errors = threading.Event(), []

    def render() -> None:
        while not ended.is_set():
            try:
                RichConsole(file=io.StringIO()).print(view)
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    for number in range(2000):
        one = trial(number, 0.5)
        history.trials[one.id] = one
        view.began(one)
        view.reported(one, 1, 3, metrics(0.5))
        if number % 2:
            end(view, one)
    ended.set()
    thread.join()
    assert not errors


def test_the_view_of_a_new_search_has_no_best_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    _, render = view_of(search(), monkeypatch, seconds=3)
    assert render() == [
        "tiny  20260102-030405-0001   0 done  0 running  0 failed  of 6   3 s, time left: not known yet",
        "no epoch finished yet",
    ]


def test_the_view_lists_a_limited_number_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(number, 0.5) for number in range(40)]
    view, render = view_of(search(*trials, planned=40), monkeypatch)
    for one in trials:
        view.reported(one, 1, 3, metrics(0.5))
    assert sum("epoch 1/3" in line for line in render()) == MAX_RUNNING


def test_a_trial_that_ended_leaves_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trial(0, 0.5)
    view, render = view_of(search(one), monkeypatch)
    view.reported(one, 1, 3, metrics(0.5))
    end(view, one)
    assert not any("epoch 1/3" in line or "videos/s" in line for line in render())

"""The live view: how far the search is, its best trial, and the trials that run."""

import io
import time
from typing import Any

import pytest
from rich.console import Console as RichConsole

from tests.support.trials import metrics, search, trial
from tuner.console import (
    SearchView,
)
from tuner.console.view import MAX_RUNNING
from tuner.storage.journal import SearchHistory


def view_of(history: SearchHistory, monkeypatch: pytest.MonkeyPatch, seconds: float = 125.0) -> tuple[SearchView, Any]:
    """A view of a search that has run for `seconds`, and a function that renders it to lines."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = SearchView(history)
    now += seconds

    def render(width: int = 120) -> list[str]:
        recorder = RichConsole(width=width, height=40, file=io.StringIO(), record=True)
        recorder.print(view)
        return [line.rstrip() for line in recorder.export_text().splitlines()]

    return view, render


def test_the_view_shows_how_far_the_search_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed = trial(0, 0.5, status="finished"), trial(1, status="failed")
    running = trial(2, 0.55), trial(3, 0.52)
    history = search(done, failed, *running)
    view, render = view_of(history, monkeypatch)
    for one in (done, failed):
        view.ended(one)
    for one in running:
        view.reported(one, 1, 3, metrics(one.reports[1]["gap"]))
    assert render() == [
        "tiny  20260102-030405-0001   1 done  2 running  1 failed  of 6   2 min 05 s, about 4 min 10 s left",
        "best 002 GAP 0.5500 (+0.0500 over trial 0)",
        "  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "trial 002  epoch 1/3  loss 4.568  GAP 0.5500  12,346 videos/s",
        "trial 003  epoch 1/3  loss 4.568  GAP 0.5200  12,346 videos/s",
        "24,691 videos/s in training",
    ]


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
    view.ended(one)
    assert not any("epoch 1/3" in line or "videos/s" in line for line in render())

"""What a user sees of a search: plain lines in a file, a live view in a terminal."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from data.cache.progress import BuildProgress
from tests.support.trials import SETTINGS, metrics, search, trial
from tuner.console import (
    Console,
    describe_settings,
    quiet,
)
from tuner.storage.journal import SearchHistory

Shown = tuple[Console, Callable[[], str]]  # a console, and a function that gives what it has printed


def building(done: int, *, waiting: bool = False) -> BuildProgress:
    return BuildProgress(
        shards_done=done, shards_total=4, num_videos=1234 * done // 4, num_skipped=0, waiting_for_lock=waiting
    )


def live(shown: Console, history: SearchHistory) -> None:
    """Show a small search from its start to its end."""
    first, second = trial(0, 0.5), trial(1, 0.6)
    with shown.searching(history):
        shown.trial_started(first, describe_settings(SETTINGS))
        history.trials[first.id] = first
        shown.trial_reported(first, 1, 3, metrics(0.5))
        first.status = "finished"
        shown.trial_ended(first)
        history.trials[second.id] = second
        shown.trial_reported(second, 1, 3, metrics(0.6))
        second.status, second.stopped_by = "finished", "asha"
        shown.trial_ended(second)
        third = trial(2, status="failed", error="TrialDiverged: the loss is not finite")
        history.trials[third.id] = third
        shown.trial_ended(third)


@contextmanager
def console_on(stdout: IO[str]) -> Iterator[Console]:
    """A console that writes to `stdout`; no fixture, because pytest replaces stdout for every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        made = Console()
    with made._out:
        yield made


@contextmanager
def terminal() -> Iterator[Shown]:
    """A terminal as stdout."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    shown = bytearray()

    def read() -> str:
        while True:
            try:
                shown.extend(os.read(ours, 1 << 16))
            except BlockingIOError:
                return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "30")):
            patch.setenv(name, value)
        patch.delenv("NO_COLOR", raising=False)
        with os.fdopen(theirs, "w") as stdout, console_on(stdout) as made:
            yield made, read
    os.close(ours)


@contextmanager
def file(path: Path) -> Iterator[Shown]:
    """A file as stdout."""
    with path.open("w") as stdout, console_on(stdout) as made:
        yield made, path.read_text


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Shown]:
    with file(tmp_path / "stdout") as shown:
        yield shown


@pytest.fixture
def in_terminal() -> Iterator[Shown]:
    with terminal() as shown:
        yield shown


def test_without_a_terminal_a_search_is_plain_lines(plain: Shown) -> None:
    shown, printed = plain
    live(shown, search())
    assert printed().splitlines() == [
        "trial 000  started  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "trial 000  epoch 1/3  loss 4.568  GAP 0.5000  12,346 videos/s  best 000 GAP 0.5000 (+0.0000 over trial 0)",
        "trial 000  GAP 0.5000 in epoch 1 of 1  best 000 GAP 0.5000 (+0.0000 over trial 0)",
        "trial 001  epoch 1/3  loss 4.568  GAP 0.6000  12,346 videos/s  best 001 GAP 0.6000 (+0.1000 over trial 0)",
        "trial 001  GAP 0.6000 in epoch 1 of 1  stopped by ASHA  best 001 GAP 0.6000 (+0.1000 over trial 0)",
        "trial 002  failed: TrialDiverged: the loss is not finite",
    ]


def test_lines_are_written_as_they_are(plain: Shown) -> None:
    long = "[bold]not markup[/bold] " + "x" * 300
    shown, printed = plain
    shown.print(long)
    assert printed() == long + "\n"


def test_decoding_is_a_line_without_a_terminal(plain: Shown) -> None:
    shown, printed = plain
    with shown.decoding() as show:
        for done in range(5):
            show(building(done))
    assert printed() == "decoded 4 shards: 1,234 videos\n"


def test_decoding_is_a_bar_in_a_terminal_and_leaves_nothing_running(in_terminal: Shown) -> None:
    shown, printed = in_terminal
    with pytest.raises(RuntimeError), shown.decoding() as show:
        show(building(0, waiting=True))
        for done in range(1, 5):
            show(building(done))
        raise RuntimeError  # a damaged shard
    assert "decoding shards" in printed()
    with shown.decoding() as show:  # rich refuses a second bar while the first one runs
        show(building(4))


def test_in_a_terminal_the_results_of_trials_stay_and_epochs_are_in_the_view(in_terminal: Shown) -> None:
    shown, printed = in_terminal
    live(shown, search())
    lines = [line.strip() for line in printed().splitlines()]
    kept = [line for line in lines if line.startswith("trial") and "epoch 1/3" not in line]
    assert any(line.startswith("trial 001  GAP 0.6000 in epoch 1 of 1  stopped by ASHA") for line in kept)
    assert "trial 002  failed: TrialDiverged: the loss is not finite" in kept
    assert not any("started" in line for line in kept)


def test_a_console_made_before_prints_through_quiet(plain: Shown, tmp_path: Path) -> None:
    shown, printed = plain
    with quiet(tmp_path / "ray.log"):
        shown.print("still seen")
    assert printed() == "still seen\n"


def test_output_of_libraries_does_not_appear_above_the_view(
    in_terminal: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, printed = in_terminal
    with shown.searching(search()):
        print("Ray says something")
    assert "Ray says something" not in printed()
    assert capsys.readouterr().out == "Ray says something\n"

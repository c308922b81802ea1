"""What a person sees of a search: plain lines in a file, one live view in a terminal, and none of Ray's noise."""

import io
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console as RichConsole

from data.cache.store import BuildProgress
from tuner import console
from tuner.console import (
    Console,
    SearchView,
    describe_epoch,
    describe_seconds,
    describe_settings,
    leader_table,
    quiet,
)
from tuner.storage.journal import SearchHistory, TrialHistory

VALUES = {"model.dropout": 0.45, "optimizer.learning_rate": 0.00123456, "loss.l2": "0"}


def trial(number: int, *gaps: float, status: Any = "running", **facts: Any) -> TrialHistory:
    record = TrialHistory(
        number=number, id=f"s-{number}", values=VALUES, settings=VALUES, sampler_state={}, status=status, **facts
    )
    record.reports = {epoch: metrics(gap) for epoch, gap in enumerate(gaps, start=1)}
    return record


def metrics(gap: float) -> dict[str, float]:
    return {"gap": gap, "loss_train": 4.5678, "videos_per_second": 12345.6}


def search(*trials: TrialHistory, planned: int = 6) -> SearchHistory:
    record = SearchHistory(
        id="20260102-030405-0001", experiment="tiny", fingerprint="f", planned=planned, tracking_uri="-"
    )
    record.trials = {one.id: one for one in trials}
    return record


def building(done: int, *, waiting: bool = False) -> BuildProgress:
    return BuildProgress(
        shards_done=done, shards_total=4, num_videos=1234 * done // 4, num_skipped=0, waiting_for_lock=waiting
    )


def live(shown: Console, record: SearchHistory) -> None:
    """A small search from its start to its end."""
    first, second = trial(0, 0.5), trial(1, 0.6)
    with shown.searching(record):
        shown.trial_started(first, describe_settings(VALUES))
        record.trials[first.id] = first
        shown.trial_reported(first, 1, 3, metrics(0.5))
        first.status = "finished"
        shown.trial_ended(first)
        record.trials[second.id] = second
        shown.trial_reported(second, 1, 3, metrics(0.6))
        second.status, second.stopped_by = "finished", "asha"
        shown.trial_ended(second)
        third = trial(2, status="failed", error="TrialDiverged: the loss is not finite")
        record.trials[third.id] = third
        shown.trial_ended(third)


Shown = tuple[Console, Callable[[], str]]  # and what it printed so far


@contextmanager
def console_on(stdout: IO[str]) -> Iterator[Console]:
    """A console of a process with that stdout (pytest sets its own one for every test, so not by a fixture)."""
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
        "trial 000  starts  model.dropout=0.45  optimizer.learning_rate=0.001235  loss.l2=0",
        "trial 000  epoch 1/3  loss 4.568  GAP 0.5000  12,346 videos/s  best 000 GAP 0.5000 (+0.0000 over trial 0)",
        "trial 000  GAP 0.5000 in epoch 1 of 1  best 000 GAP 0.5000 (+0.0000 over trial 0)",
        "trial 001  epoch 1/3  loss 4.568  GAP 0.6000  12,346 videos/s  best 001 GAP 0.6000 (+0.1000 over trial 0)",
        "trial 001  GAP 0.6000 in epoch 1 of 1  stopped by asha  best 001 GAP 0.6000 (+0.1000 over trial 0)",
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


def test_in_a_terminal_the_ends_of_trials_stay_and_epochs_are_the_views(in_terminal: Shown) -> None:
    shown, printed = in_terminal
    live(shown, search())
    lines = [line.strip() for line in printed().splitlines()]
    kept = [line for line in lines if line.startswith("trial") and "epoch 1/3" not in line]
    assert any(line.startswith("trial 001  GAP 0.6000 in epoch 1 of 1  stopped by asha") for line in kept)
    assert "trial 002  failed: TrialDiverged: the loss is not finite" in kept
    assert not any("starts" in line for line in kept)


def view_of(record: SearchHistory, monkeypatch: pytest.MonkeyPatch, seconds: float = 125.0) -> tuple[SearchView, Any]:
    """A view whose search runs for that long; and what renders it to lines."""
    now = 1000.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    view = SearchView(record)
    now += seconds

    def render(width: int = 120) -> list[str]:
        recorder = RichConsole(width=width, height=40, file=io.StringIO(), record=True)
        recorder.print(view)
        return [line.rstrip() for line in recorder.export_text().splitlines()]

    return view, render


def test_the_view_shows_how_far_the_search_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed = trial(0, 0.5, status="finished"), trial(1, status="failed")
    running = trial(2, 0.55), trial(3, 0.52)
    record = search(done, failed, *running)
    view, render = view_of(record, monkeypatch)
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


def test_the_view_begins_with_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    _, render = view_of(search(), monkeypatch, seconds=3)
    assert render() == [
        "tiny  20260102-030405-0001   0 done  0 running  0 failed  of 6   3 s, time left: not known yet",
        "no epoch finished yet",
    ]


def test_the_view_lists_no_more_trials_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(number, 0.5) for number in range(40)]
    view, render = view_of(search(*trials, planned=40), monkeypatch)
    for one in trials:
        view.reported(one, 1, 3, metrics(0.5))
    assert sum("epoch 1/3" in line for line in render()) == console.MOST_RUNNING


def test_a_trial_that_ended_leaves_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trial(0, 0.5)
    view, render = view_of(search(one), monkeypatch)
    view.reported(one, 1, 3, metrics(0.5))
    view.ended(one)
    assert not any("epoch 1/3" in line or "videos/s" in line for line in render())


def test_quiet_sends_all_output_of_this_process_and_its_children_to_the_file(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "new" / "ray.log"
    shown = sys.__stdout__ and os.dup(1)
    with quiet(log):
        os.write(1, b"from a library\n")
        os.write(2, b"to stderr\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        os.write(shown, b"to the person\n")
    os.close(shown)
    os.write(1, b"afterwards\n")
    assert log.read_text() == "from a library\nto stderr\nfrom a child\n"
    assert capfd.readouterr().out == "to the person\nafterwards\n"


def test_quiet_ends_with_an_error_too_and_adds_to_its_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number in range(2):
        with pytest.raises(RuntimeError), quiet(tmp_path / "ray.log"):
            os.write(1, b"%d\n" % number)
            raise RuntimeError
    os.write(1, b"shown\n")
    assert (tmp_path / "ray.log").read_text() == "0\n1\n"
    assert capfd.readouterr().out == "shown\n"


def test_what_the_log_has_no_room_for_is_lost_and_nobody_fails(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with quiet(log):
            print("12345678")
            print("more than there is room for")
            print("and more", file=sys.stderr)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        signal.signal(signal.SIGXFSZ, ignored)
    assert log.read_text() == "12345678\nm"


def test_a_console_made_before_prints_through_quiet(plain: Shown, tmp_path: Path) -> None:
    shown, printed = plain
    with quiet(tmp_path / "ray.log"):
        shown.print("still seen")
    assert printed() == "still seen\n"


def test_the_leader_table_has_the_best_with_their_parameters() -> None:
    trials = [
        trial(4, 0.5, 0.7, status="finished", stopped_by="asha"),
        trial(0, 0.6, 0.65, 0.64, status="finished"),
        trial(2, 0.1, status="finished"),
    ]
    trials[1].settings = {"optimizer.learning_rate": 0.01}
    recorder = RichConsole(width=120, file=io.StringIO(), record=True)
    recorder.print(leader_table(trials[:2], ["optimizer.learning_rate", "loss.l2"]))
    rows = [line.split() for line in recorder.export_text().splitlines()]
    assert rows == [
        ["optimizer.", "loss."],
        ["trial", "GAP", "epoch", "ended", "learning_rate", "l2"],
        ["004", "0.7000", "2", "asha", "0.001235", "0"],
        ["000", "0.6500", "2", "by", "itself", "0.01", "-"],
    ]


@pytest.mark.parametrize(
    "seconds, told",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (7384, "2 h 03 min"),
    ],
)
def test_times_are_told_by_their_two_largest_units(seconds: float, told: str) -> None:
    assert describe_seconds(seconds) == told


def test_what_others_print_does_not_get_above_the_view(in_terminal: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    shown, printed = in_terminal
    with shown.searching(search()):
        print("Ray says something")
    assert "Ray says something" not in printed()
    assert capsys.readouterr().out == "Ray says something\n"


def test_an_epoch_says_which_half_of_a_trial_it_belongs_to() -> None:
    rate = {"gap": 0.5, "videos_per_second": 1234.0}
    supervised = describe_epoch(trial(3), 2, 8, {**rate, "loss_train": 4.5})
    assert supervised == "trial 003  epoch 2/8  loss 4.500  GAP 0.5000  1,234 videos/s"
    pretraining = describe_epoch(trial(3), 2, 8, {**rate, "loss_pretrain": 5.5})
    assert pretraining == "trial 003  epoch 2/8  contrastive loss 5.500  GAP 0.5000  1,234 videos/s"
    fitted = describe_epoch(trial(3), 1, 1, rate)  # in closed form
    assert fitted == "trial 003  epoch 1/1  GAP 0.5000  1,234 videos/s"
    taken = describe_epoch(trial(3), 6, 8, {"gap": 0.5})
    assert taken == "trial 003  epoch 6/8  GAP 0.5000  took the encoder of another trial"

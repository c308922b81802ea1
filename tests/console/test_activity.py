"""Whatever takes more than ten seconds is said, and for what it waits."""

import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from data.cache.bar import build_bar
from data.cache.progress import BuildProgress
from tests.console.test_console import file
from tuner.console import activity
from tuner.console.activity import Activity, saying
from tuner.workers.worker import Worker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_what_takes_long_is_said_again_ever_more_rarely(clock: Clock) -> None:
    said: list[str] = []
    doing = Activity(said.append)
    doing.begin("starting Ray")
    for _ in range(100):
        clock.now += 1
        doing._remind()
    assert said == [
        "starting Ray",
        "still starting Ray (10 s)",
        "still starting Ray (20 s)",
        "still starting Ray (40 s)",
        "still starting Ray (1 min 20 s)",
    ]


def test_the_words_may_change_and_the_next_activity_begins_anew(clock: Clock) -> None:
    said: list[str] = []
    doing = Activity(said.append)
    doing.begin("taking a lock", aloud=False)
    clock.now += 9
    doing._remind()
    doing.begin("decoding", aloud=False)
    clock.now += 9
    doing._remind()
    assert said == []
    doing.update("decoding 3 of 4")
    clock.now += 1
    doing._remind()
    doing.begin("")
    clock.now += 100
    doing._remind()
    assert said == ["still decoding 3 of 4 (10 s)"]


def test_a_console_reminds_while_shards_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SILENCE_SECONDS", 0.05), ("CHECK_SECONDS", 0.01)):
        monkeypatch.setattr(activity, name, seconds)
    progress = BuildProgress(shards_done=1, shards_total=4, num_videos=1234, num_skipped=0)
    with file(tmp_path / "stdout") as (shown, printed), shown.reminding():
        shown.doing("opening the data")
        with shown.decoding() as show:
            show(progress)
            until = time.monotonic() + 20
            while "still" not in printed() and time.monotonic() < until:
                time.sleep(0.01)
    assert printed().splitlines()[:2] == [
        "opening the data",
        "still decoding shards: 1 of 4, 1,234 videos (0 s)",
    ]


def test_a_command_says_on_stderr_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("SILENCE_SECONDS", 0.0), ("CHECK_SECONDS", 0.01)):
        monkeypatch.setattr(activity, name, seconds)
    with saying("scoring 1,000 videos"):
        time.sleep(0.3)
    printed = capsys.readouterr()
    assert printed.err.startswith("still scoring 1,000 videos (0 s)\n") and printed.out == ""


def test_without_a_terminal_a_command_prints_rare_lines_while_it_decodes(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with build_bar(RichConsole(stderr=True)) as show:
        for done in range(100):
            clock.now += 1
            show(BuildProgress(shards_done=done, shards_total=100, num_videos=10 * done, num_skipped=0))
    assert capsys.readouterr().err.splitlines() == [
        "decoding shards: 9 of 100 shards, 90 videos (10 s)",
        "decoding shards: 19 of 100 shards, 190 videos (20 s)",
        "decoding shards: 39 of 100 shards, 390 videos (40 s)",
        "decoding shards: 79 of 100 shards, 790 videos (80 s)",
    ]


def test_a_worker_says_that_it_decodes_every_ten_seconds(clock: Clock) -> None:
    told: list[tuple[Any, ...]] = []
    decoding = Worker.__new__(Worker)  # without Ray
    decoding._told = clock.now
    decoding._ask = lambda *call: told.append(call)  # type: ignore[method-assign]
    for done in range(25):
        clock.now += 1
        decoding._tell_decoding(BuildProgress(shards_done=done, shards_total=25, num_videos=done, num_skipped=0))
    assert [method for method, _ in told] == ["say", "say"]
    assert told[0][1].endswith("decodes shards: 9 of 25, 9 videos")

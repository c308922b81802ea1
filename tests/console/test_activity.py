"""Whatever takes more than ten seconds is said, and for what it waits."""

import time
from pathlib import Path

import pytest

from data.cache.progress import BuildProgress
from tests.console.test_console import file
from tuner.console import activity
from tuner.console.activity import Activity


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

"""Which worker trains next on the CPUs of one machine, decided by locks on files."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.workplace import PROJECT
from tuner.workers import slots

SEARCH = "test-slots"
ACTOR = f"""
import time
from tuner.workers import slots
with slots.starting({SEARCH!r}, 0):
    print("starting", flush=True)
    time.sleep(600)
"""
# Seconds in which a worker that may train has long begun: it looks every twentieth of a second.
LONG = 20 * slots.POLL


class Worker(threading.Thread):
    """A trial's worker, which trains until `end` is set."""

    def __init__(self, number: int, of: int) -> None:
        super().__init__(daemon=True)
        self._number, self._of = number, of
        self.trains, self.end = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with slots.turn(SEARCH, self._number, self._of):
            self.trains.set()
            self.end.wait()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(slots.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    slots.forget(SEARCH)
    assert not list(tmp_path.iterdir())


def test_one_slot_is_taken_in_the_order_of_the_trials() -> None:
    with slots.starting(SEARCH, 10):  # earlier than 11, and later than 9
        second = Worker(11, of=1)
        assert not second.trains.wait(LONG)
        before = Worker(9, of=1)
        assert before.trains.wait(10)
        first = Worker(10, of=1)
        assert not first.trains.wait(LONG)
        before.end.set()
        assert first.trains.wait(10) and not second.trains.wait(LONG)
        first.end.set()
        assert second.trains.wait(10)
        second.end.set()
        again = Worker(10, of=1)  # a worker that starts again: its trial has begun, and no other waits for it
        third = Worker(12, of=1)
        again.end.set()
        third.end.set()
        assert again.trains.wait(10) and third.trains.wait(10)


def test_of_several_slots_those_are_kept_free_that_earlier_trials_need() -> None:
    with slots.starting(SEARCH, 0):
        with slots.starting(SEARCH, 1):
            last = Worker(2, of=2)
            assert not last.trains.wait(LONG)
            second = Worker(1, of=2)
            assert second.trains.wait(10) and not last.trains.wait(LONG)  # the other one is trial 0's
        first = Worker(0, of=2)
        assert first.trains.wait(10) and not last.trains.wait(LONG)
        first.end.set()
        assert last.trains.wait(10)
    for worker in (second, last):
        worker.end.set()
        worker.join()


def test_no_worker_waits_for_a_trial_whose_actor_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ACTOR], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as actor:
        assert actor.stdout is not None and actor.stdout.readline() == "starting\n"
        worker = Worker(1, of=1)
        assert not worker.trains.wait(LONG)
        actor.kill()
        assert worker.trains.wait(10)
    worker.end.set()
    worker.join()

"""A thread that has met an exception goes on, and says so."""

import threading
import time

import pytest

from tests.support.workplace import PROJECT
from tuner import background
from tuner.background import keep_working, repeated

# Threads that end with their task, and whose exceptions end it in order.
ELSEWHERE = {
    "tuner/workers/stop_signal.py",  # waits once: whatever ends the wait stops the trial
    "tuner/storage/lease.py",  # catches what a renewal raises
    "data/retry.py",  # only logs, and the handler of its log raises nothing; data/ imports nothing of tuner/
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "AGAIN_SECONDS", 0.01)


def test_work_that_raises_is_called_again_and_equal_exceptions_are_said_once() -> None:
    said: list[str] = []
    coming = [
        ConnectionError("away"),
        ConnectionError("away"),
        None,
        ValueError("other\nline"),
        None,
        ConnectionError("away"),
    ]

    def work() -> bool:
        if not coming:
            return True
        error = coming.pop(0)
        if error:
            raise error
        return False

    thread = keep_working("looking at http://user:secret@host", work, said.append)
    thread.join(20)
    assert not thread.is_alive()
    assert [line.partition("(")[2].partition(")")[0] for line in said] == [
        "ConnectionError: away",
        "ValueError: other line",
        "ConnectionError: away",
    ]
    assert all("is tried again" in line for line in said)


def test_repeated_work_goes_on_after_an_exception_and_ends_with_the_block() -> None:
    called, thrice = [0], threading.Event()

    def work() -> None:
        called[0] += 1
        if called[0] >= 3:
            thrice.set()
        raise OSError("broken")

    said: list[str] = []
    with repeated("work", work, 0.01, said.append):
        assert thrice.wait(20)
    now = called[0]
    assert len(said) == 1 and "work failed (OSError: broken)" in said[0]
    time.sleep(0.1)
    assert called[0] == now


def test_repeated_work_that_is_done_is_not_called_again() -> None:
    called: list[int] = []
    with repeated("work", lambda: bool(called.append(1)) or True, 0.01):
        threading.Event().wait(0.2)
    assert called == [1]


def test_long_work_takes_its_share_of_the_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []

    def work() -> None:
        called.append(1)
        threading.Event().wait(0.05)

    with repeated("work", work, 0.001, share=0.1):
        threading.Event().wait(0.4)
    assert 1 <= len(called) <= 2


def test_every_thread_of_the_program_is_started_here() -> None:
    files = [path for name in ("data", "models", "tuner") for path in (PROJECT / name).rglob("*.py")]
    starting = {str(path.relative_to(PROJECT)) for path in files if "Thread(" in path.read_text()}
    assert starting - {"tuner/background.py"} == ELSEWHERE & starting, "a thread that may end without a word"

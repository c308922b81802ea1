"""Writes are delivered in order, each once; after a write that is given up, none is delivered."""

import _thread
import logging
import threading
from collections.abc import Callable

import pytest

from tuner.tracking import outbox
from tuner.tracking.outbox import Outbox


class Server:
    """A server that keeps what it receives, and raises while it is away."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.away = False
        self.asked = threading.Event()

    def write(self, number: int, error: Exception | None = None) -> Callable[[], None]:
        def write() -> None:
            self.asked.set()
            if self.away:
                raise ConnectionError("nobody at http://user:hunter2@host")
            if error is not None:
                raise error
            self.told.append(number)

        return write

    def outbox(self) -> Outbox:
        return Outbox(lambda error: isinstance(error, ConnectionError), lambda: not self.away)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    caplog.set_level(logging.WARNING, logger="tuner.tracking.outbox")


@pytest.fixture
def server() -> Server:
    return Server()


def test_waiting_writes_are_delivered_in_order(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    box = server.outbox()
    server.away = True
    for number in range(5):
        box.put(server.write(number))
    assert server.asked.wait(10)
    server.away = False
    assert box.close() == 0 and box.refused == []
    assert server.told == [0, 1, 2, 3, 4]
    assert "hunter2" not in caplog.text


def test_a_refusal_is_logged_without_secrets_and_the_rest_is_delivered(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    box = server.outbox()
    box.put(server.write(0))
    box.put(server.write(1, ValueError("no such key at http://user:hunter2@host")))
    box.put(server.write(2))
    assert box.close() == 0
    assert server.told == [0, 2] and box.refused == ["no such key at http://***@host"]
    assert "refused" in caplog.text and "hunter2" not in caplog.text


def test_a_refused_write_is_tried_again_once_where_its_reason_was_removed(server: Server) -> None:
    errors = [ValueError("deleted"), ValueError("still refused")]

    def write() -> None:
        raise errors.pop(0)

    box = Outbox(lambda error: False, lambda: True, mend=lambda: True)
    box.put(write, "a trial")
    box.put(server.write(1), "another trial")
    assert box.close() == 0
    assert server.told == [1] and box.refused == ["still refused"] and box.lacking == {"a trial"}


def test_a_reason_that_cannot_be_looked_for_is_a_refusal(server: Server) -> None:
    def mend() -> bool:
        raise ConnectionError("away")

    box = Outbox(lambda error: False, lambda: True, mend)
    box.put(server.write(0, ValueError("no")))
    box.put(server.write(1))
    assert box.close() == 0 and server.told == [1] and box.refused == ["no"]


def test_a_write_that_always_fails_while_the_server_answers_counts_as_refused(server: Server) -> None:
    box = server.outbox()
    box.put(server.write(0, ConnectionError("always")))
    box.put(server.write(1))
    assert box.close() == 0
    assert server.told == [1] and box.refused == ["always"]


def test_patience_ends_and_nothing_is_delivered_after_a_write_that_was_given_up(server: Server) -> None:
    box = server.outbox()
    box.put(server.write(0))
    server_is_told(server, 1)
    server.away = True
    for number in (1, 2, 3):
        box.put(server.write(number))
    assert box.close(patience=0.05) == 3
    assert server.told == [0]


def test_writes_that_are_put_together_are_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 2)
    server.away = True
    box = server.outbox()
    box.put(server.write(0))
    assert server.asked.wait(10)
    for trial in (10, 20):
        with box.together(f"trial {trial}"):
            for epoch in range(5):
                box.put(server.write(trial + epoch), f"trial {trial}")
    box.put(server.write(30))
    server.away = False
    assert box.close() == 1, "the third one is beyond the limit"
    assert server.told == [0, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24]


def test_writes_beyond_the_limit_are_left_to_a_resume_and_last_writes_are_delivered(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MAX_WAITING", 3)
    server.away = True
    box = server.outbox()
    box.put(server.write(0))
    assert server.asked.wait(10)  # it has left the queue and is being delivered
    for number in range(1, 6):
        box.put(server.write(number))
    box.put_last(server.write(99))
    assert box.undelivered == 2
    server.away = False
    assert box.close() == 2
    assert server.told == [0, 1, 2, 3, 99]


def test_ctrl_c_ends_the_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "NOTICE_SECONDS", 0.05)
    server.away = True
    box = server.outbox()
    for number in range(3):
        box.put(server.write(number))
    said: list[str] = []

    def print_line(text: str) -> None:
        said.append(text)
        _thread.interrupt_main()

    assert box.close(patience=600, print_line=print_line) >= 3
    assert "Ctrl-C ends the wait" in said[0] and server.told == []


def server_is_told(server: Server, count: int) -> None:
    for _ in range(1000):
        if len(server.told) >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError("it was told too little")

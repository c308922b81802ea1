"""What fails on the way to the data is tried again; what anybody has to mend, or what the bytes say, is not."""

import errno
import pickle
import threading
from types import SimpleNamespace

import pytest

from data import retry
from data.errors import UnreachableError
from data.retry import attempts, may_pass, notices, retried


class Clock:
    """A clock that advances by the pauses, and by what a call takes."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(retry, "_given_up", set())
    monkeypatch.setattr(retry, "_announced", set())
    return clock


def failing(clock, *errors, seconds=0.0):
    """A function that raises these errors, then returns "content"; each call takes so long."""
    left = list(errors)

    def call():
        clock.now += seconds
        if left:
            raise left.pop(0)
        return "content"

    return call


def status(code):
    error = OSError(f"answered {code}")
    error.response = SimpleNamespace(status_code=code)
    return error


PASSING = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EBUSY, "Please reduce your request rate."),  # s3fs for 503
    TimeoutError(),
    ConnectionResetError("by the peer"),
    status(503),
    status(429),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("Not a gzipped file"),
    status(403),
    status(404),
    status(501),
    ValueError("damaged"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_an_error_of_the_way_is_tried_again(clock, error):
    assert may_pass(error)
    assert retried(failing(clock, error, error), "a file") == "content"
    assert len(clock.pauses) == 2


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_any_other_error_is_raised_at_once(clock, error):
    assert not may_pass(error)
    with pytest.raises(type(error)) as raised:
        retried(failing(clock, error), "a file")
    assert raised.value is error and clock.pauses == []


def test_the_errors_of_a_bucket_are_told_apart():
    pytest.importorskip("s3fs")
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
    from s3fs.errors import translate_boto_error

    def answer(code, status):
        error = ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
        return translate_boto_error(error)

    assert may_pass(EndpointConnectionError(endpoint_url="http://store"))
    assert may_pass(answer("SlowDown", 503)) and may_pass(answer("InternalError", 500))
    assert may_pass(answer("BadGateway", 502)), "s3fs does not know this answer"
    assert not may_pass(NoCredentialsError())
    assert not may_pass(answer("AccessDenied", 403)) and not may_pass(answer("NoSuchKey", 404))
    assert not may_pass(answer("Strange", 400))


def test_pauses_grow_up_to_a_limit(clock, monkeypatch):
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    retried(failing(clock, *[TimeoutError()] * 9), "a file")
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])


def test_it_is_given_up_after_its_patience(clock):
    with pytest.raises(UnreachableError) as raised:
        retried(failing(clock, *[TimeoutError("no answer")] * 1000), "s3://bucket/a", patience=60)
    assert 45 < clock.now <= 60
    assert str(raised.value) == f"s3://bucket/a: cannot be reached: no answer (tried for {clock.now:.0f} s)"
    again = pickle.loads(pickle.dumps(raised.value))
    assert (str(again), again.path) == (str(raised.value), "s3://bucket/a")


def test_a_wait_of_more_than_ten_seconds_says_for_what_once(clock, monkeypatch):
    lines = []
    monkeypatch.setattr(retry._log, "disabled", True)  # as a library does that configures logging
    with notices(lines.append):
        retried(failing(clock, *[TimeoutError("no answer")] * 5), "a")
        assert clock.now < 10 and lines == []
        retried(failing(clock, *[TimeoutError("no answer")] * 10), "b")
    assert lines == ["waiting for b (no answer; for up to 300 s)"]


def test_a_call_that_takes_long_says_what_it_waits_for_before_it_returns(monkeypatch):
    """The library of a store tries again on its own, in silence."""
    monkeypatch.setattr(retry, "NOTICE_SECONDS", 0.05)
    monkeypatch.setattr(retry, "WATCH_SECONDS", 0.01)
    lines, said = [], threading.Event()
    with notices(lambda line: (lines.append(line), said.set())):
        assert retried(lambda: said.wait(10), "s3://bucket/a")
    assert lines == ["waiting for s3://bucket/a (no answer yet)"]


def test_a_block_that_gets_further_begins_its_wait_anew(clock):
    done = 0
    for attempt in attempts("a stream", patience=1):
        with attempt:
            while done < 100:
                done += 1
                attempt.progressed()
                clock.now += 0.5
                raise ConnectionError("broken")
    assert done == 100 and clock.now > 50


def test_nobody_waits_long_for_a_store_that_was_given_up_until_it_answers(clock):
    def waits(what):
        began = clock.now
        with pytest.raises(UnreachableError):
            retried(failing(clock, *[TimeoutError()] * 1000), what)
        return clock.now - began

    assert waits("s3://bucket/a") > 250
    assert waits("s3://bucket/b") < 20 < 250 < waits("s3://another/b")
    retried(failing(clock), "s3://bucket/a")
    assert waits("s3://bucket/b") > 250


def test_a_screen_that_is_gone_ends_neither_a_request_nor_the_thread_of_notices(clock, caplog):
    def gone(line):
        raise BrokenPipeError("nobody reads")

    with notices(gone):
        assert retried(failing(clock, *[TimeoutError()] * 20), "a") == "content"
    assert "BrokenPipeError: nobody reads" in caplog.text


def test_a_store_that_is_away_is_announced_once_until_it_answers(clock):
    lines = []
    with notices(lines.append):
        for name in "abc":
            with pytest.raises(UnreachableError):
                retried(failing(clock, *[TimeoutError()] * 1000), f"s3://bucket/{name}", patience=60)
        assert len(lines) == 1 and "s3://bucket/a" in lines[0]
        retried(failing(clock), "s3://bucket/a")
        retried(failing(clock, *[TimeoutError()] * 10), "s3://bucket/d")
    assert len(lines) == 2 and "s3://bucket/d" in lines[1]

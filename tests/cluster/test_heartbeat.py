"""A head that is gone is noticed; a head that answers, or is soon back, is not reported."""

import socket
import threading

from tuner.cluster.heartbeat import watch


def test_a_head_that_is_gone_is_reported_once() -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with watch(address, gone.set, print, patience=0):
            assert not gone.wait(1.5)  # it answers
            head.close()
            assert gone.wait(60)


def test_a_head_that_was_gone_for_a_moment_is_not_reported() -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
    with watch(f"127.0.0.1:{port}", gone.set, print, patience=60), socket.create_server(("127.0.0.1", port)):
        assert not gone.wait(1.5)


def test_nothing_is_reported_after_the_block() -> None:
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
    with watch(address, gone.set, print, patience=0):
        pass
    assert not gone.wait(1.5)

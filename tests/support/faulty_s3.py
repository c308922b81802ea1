"""A server with the protocol of S3 whose store is overloaded, breaks connections and is away for a while, as told."""

import itertools
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.missing import needed

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyS3:
    """The server; all of its faults are off at first."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._numbers = itertools.count(1)
        self._away_until = 0.0
        self.busy_every = 0  # requests: one of so many is answered 503; 0: none
        self.drop_every = 0  # requests: of so many one is not answered, and another one is done but not answered
        self.happened: Counter[str] = Counter()  # faults, by name
        self.address = ""

    def leave(self, seconds: float) -> None:
        """Answer no request for so long."""
        self._away_until = time.monotonic() + seconds

    @property
    def is_away(self) -> bool:
        return time.monotonic() < self._away_until

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = next(self._numbers)
        fault = self._fault(number)
        self.happened[fault] += 1
        if fault == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        if fault == "answer lost":
            list(self._application(environ, lambda *arguments: lambda data: None))
        if fault:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        return self._application(environ, start_response)

    def _fault(self, number: int) -> str:
        if self.is_away:
            return "away"
        if self.drop_every and number % self.drop_every in (1, self.drop_every // 2):
            return "dropped" if number % self.drop_every == 1 else "answer lost"
        return "busy" if self.busy_every and number % self.busy_every == 0 else ""


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """Start the server in this process, with an empty store."""
    needed("s3fs", 'pip install "video-tuner[test-s3]"')
    moto = needed("moto.server", 'pip install "video-tuner[test-s3]"')
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the connection that was broken on purpose
                return

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    store = FaultyS3(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet)
    store.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()

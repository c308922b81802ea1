"""What a program does before its results come: it is said when it begins, and again where it takes long.

A search that has said nothing for ten seconds looks as if it hung. So whatever the driver may have to wait for is an
activity: connecting, decoding, taking a lock that another driver has left behind.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.background import repeated
from tuner.console.text import describe_seconds

SILENCE_SECONDS = 10.0  # after so long it is said what the program waits for; then after twice as long each time
CHECK_SECONDS = 1.0


@contextmanager
def saying(what: str) -> Iterator[None]:
    """While the block runs, say on stderr what a command does, each time that it takes long: "scoring 1,000 videos"."""
    doing = Activity(lambda line: print(line, file=sys.stderr, flush=True))
    doing.begin(what, aloud=False)
    with doing.reminding():
        yield


class Activity:
    """Says what is done now."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        """Say it with `print_line`, from any thread."""
        self._print_line = print_line
        self._what, self._since, self._next = "", 0.0, 0.0

    def begin(self, what: str, *, aloud: bool = True) -> None:
        """Something else begins.

        Args:
            what: "starting Ray"; "": nothing that has to be waited for.
            aloud: say it now; False: only where it takes long.
        """
        self._what, self._since, self._next = what, time.monotonic(), SILENCE_SECONDS
        if what and aloud:
            self._print_line(what)

    def update(self, what: str) -> None:
        """The same goes on, and is described by other words now."""
        self._what = what

    @contextmanager
    def reminding(self) -> Iterator[None]:
        """While the block runs, say again what is done where it takes long."""
        with repeated("saying what takes long", self._remind, CHECK_SECONDS):
            yield

    def _remind(self) -> None:
        seconds = time.monotonic() - self._since
        if self._what and seconds >= self._next:
            self._print_line(f"still {self._what} ({describe_seconds(seconds)})")
            self._next *= 2

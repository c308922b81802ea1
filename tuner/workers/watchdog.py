"""Ends the training of an epoch that takes too long, even where the whole process hangs.

Two clocks run beside the training; both are monotonic. The first is a thread, which reports the epoch. Where the code
that hangs keeps Python's other threads from running (a native call that holds the interpreter's lock), the second one,
that of faulthandler in C, ends the process. The position of every thread is printed to stderr.
"""

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

# Seconds after the first clock at which the second one ends the process.
GRACE_SECONDS = 30.0
STDERR = 2  # the file descriptor, whatever sys.stderr has become


@contextmanager
def epoch_limit(seconds: float | None, on_timeout: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Call `on_timeout`, from another thread, when an epoch takes longer than `seconds`; None: there is no limit.

    Yields:
        The function to call at the end of each epoch.
    """
    if seconds is None:
        yield lambda: None
        return
    timers: list[Timer] = []

    def expire() -> None:
        faulthandler.dump_traceback(file=STDERR)
        on_timeout()

    def stop() -> None:
        faulthandler.cancel_dump_traceback_later()
        while timers:
            timers.pop().cancel()

    def restart() -> None:
        stop()
        timers.append(Timer(seconds, expire))
        timers[0].daemon = True
        timers[0].start()
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=STDERR)

    restart()
    try:
        yield restart
    finally:
        stop()

"""An epoch that takes too long: its training is taken for hung and ended, by what does not hang with it.

Two clocks run beside the training, both monotonic. The first is a thread, which says so. Where the code that hangs
keeps Python's other threads from running (a native call that holds the interpreter's lock), faulthandler's, in C, ends
the process; where every thread stood is on stderr.
"""

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

# Seconds that the first clock's message has until the second ends the process.
GRACE_SECONDS = 30.0
STDERR = 2  # whatever sys.stderr is by then


@contextmanager
def epoch_limit(seconds: float | None, hung: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Call `hung`, from another thread, when an epoch takes longer than `seconds`; None: no limit.

    Yields:
        What to call at the end of each epoch.
    """
    if seconds is None:
        yield lambda: None
        return
    timers: list[Timer] = []

    def tell() -> None:
        faulthandler.dump_traceback(file=STDERR)
        hung()

    def stop() -> None:
        faulthandler.cancel_dump_traceback_later()
        while timers:
            timers.pop().cancel()

    def restart() -> None:
        stop()
        timers.append(Timer(seconds, tell))
        timers[0].daemon = True
        timers[0].start()
        faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=STDERR)

    restart()
    try:
        yield restart
    finally:
        stop()

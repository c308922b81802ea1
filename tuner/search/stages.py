"""What a driver spends its time on: each part begins where the part before it ends, so no second is left out.

    stages.begin("ray")       the part before it has ended
    ...
    with stages.reported():   prints all parts as one line of JSON when the block ends

The driver prints the line into the search's ray.log, and benchmarks/search.py reads it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

# The line begins with this.
PREFIX = "stages: "
# Names of the parts, with the times at which they began, in seconds since 1970.
_begun: list[tuple[str, float]] = []


def begin(name: str) -> None:
    """Begin a part of the driver's work; the part before it ends now."""
    _begun.append((name, time.time()))


@contextmanager
def reported() -> Iterator[None]:
    """When the block ends, end the last part, print all parts as one line, and forget them."""
    try:
        yield
    finally:
        print(_line(time.time()))
        _begun.clear()


def parse(log: str) -> list[tuple[str, float, float]]:
    """The parts in the last line that `reported` printed into a log.

    Returns:
        The name, the beginning in seconds since 1970 and the length in seconds of each part, in their order; empty
        where the log has no such line.
    """
    lines = [line.removeprefix(PREFIX) for line in log.splitlines() if line.startswith(PREFIX)]
    return [(name, began, seconds) for name, began, seconds in json.loads(lines[-1])] if lines else []


def _line(now: float) -> str:
    ends = [began for _, began in _begun[1:]] + [now]
    parts = [(name, round(began, 3), round(end - began, 3)) for (name, began), end in zip(_begun, ends, strict=False)]
    return PREFIX + json.dumps(parts)

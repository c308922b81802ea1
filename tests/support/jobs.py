"""Functions that processes of data.cache.workers run: importable by name, each gives the items of a job."""

import time
from pathlib import Path


def numbers_of(text):
    """The one number that a text is."""
    yield int(text)


def slept(seconds):
    """Sleeps before it gives its only item."""
    time.sleep(seconds)
    yield seconds


def printed(text):
    """Prints what it gives."""
    print(text)
    yield text


def squares(file):
    """Writes a byte into a file before each of 20,000 items."""
    with Path(file).open("ab", buffering=0) as log:
        for number in range(20_000):
            log.write(b".")
            yield number * number

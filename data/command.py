"""From an error of a command of this package to its sentence and its exit code."""

import sys
from collections.abc import Callable

from data.errors import DataError
from data.places import place_message


def run(command: Callable[[], int | None]) -> int:
    """Run a command and return the exit code of its process.

    Args:
        command: does the work; returns an exit code, or None for 0.

    Returns:
        The code of the command; 2 after an error that the user can correct, or about a place that cannot be read or
        written, with its message on stderr; 130 after Ctrl-C. Any other exception is a bug and keeps its traceback.
    """
    try:
        return command() or 0
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if (message := place_message(error)) is None:
            raise
        print(message, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

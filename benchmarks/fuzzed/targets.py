"""A target changes one kind of file, reads it, and says whether what it read is right."""

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Wrong(Exception):
    """A changed file was read without an error, as something that it does not say."""


class Target(ABC):
    """One kind of file.

    Attributes:
        kind: names it on the command line.
    """

    kind: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        """Prepare the files that are changed; they are the same in every process.

        Args:
            folder: an empty one.
        """
        self.folder = folder

    @abstractmethod
    def run(self, rng: random.Random) -> None:
        """Read a changed file.

        Raises:
            TunerError: the file was refused.
            DataError: the file was refused.
            Wrong: it was read as another value.
        """


def expect(truth: bool, what: str) -> None:
    """Say what is wrong where it is.

    Raises:
        Wrong: it is not true.
    """
    if not truth:
        raise Wrong(what)

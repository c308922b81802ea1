"""Where a command line looks when it is not told: the experiments' file, and the searches' folder."""

import os
from pathlib import Path

from tuner.errors import ConfigError

FILE_NAME = "experiments.yaml"
PROJECT = Path(__file__).resolve().parents[1]


def experiments_file(given: Path | None) -> Path:
    """The file that was given, else experiments.yaml here, else the one of the project.

    Raises:
        ConfigError: there is none.
    """
    if given is not None:
        return given
    for folder in (Path.cwd(), PROJECT):
        if (folder / FILE_NAME).exists():
            return folder / FILE_NAME
    raise ConfigError(f"no {FILE_NAME} in {Path.cwd()}; name one with --file")


def default_storage(file: Path) -> Path:
    """$TUNER_STORAGE where it is set, else the folder `storage` beside the experiments' file."""
    return Path(os.environ.get("TUNER_STORAGE") or file.resolve().parent / "storage")

"""Where a command line looks when it is not told: the experiments' file, the searches' folder, this environment."""

import os
import shutil
import sys
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


def program(name: str) -> str:
    """What to type to run `name` of this environment: the name alone where the PATH leads there, else its path."""
    own = Path(sys.executable).parent / name
    if shutil.which(name) == str(own):
        return name
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)

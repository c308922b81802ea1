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


def storage(given: str | None, file: Path | None) -> Path:
    """Where searches live: as given, else $TUNER_STORAGE, else the folder `storage` beside the experiments' file.

    Raises:
        ConfigError: it is a URL other than file://, or there is no experiments' file to be beside of.
    """
    named = given or os.environ.get("TUNER_STORAGE")
    if not named:
        return experiments_file(file).resolve().parent / "storage"
    named = named.removeprefix("file://")
    if "://" in named:
        raise ConfigError(f"--storage {named}: must be a folder, on one machine or shared; URLs are not built yet")
    return Path(named)


def program(name: str) -> str:
    """What to type to run `name` of this environment: the name alone where the PATH leads there, else its path."""
    own = Path(sys.executable).parent / name
    if shutil.which(name) == str(own):
        return name
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)

"""Where this project lies on the machine, and the defaults that follow: experiments.yaml, the storage, programs."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tuner.errors import ConfigError
from tuner.storage.place import Place
from tuner.storage.stores import place

EXPERIMENTS = "experiments.yaml"
REPEATED = ("--file", "--storage", "--tracking-uri", "--address")  # in printed commands, as they were typed
CONSOLE_SCRIPT = "video-tuner"  # runs tune.py; pyproject.toml
PROJECT = Path(__file__).resolve().parents[1]


def experiments_file(given: Path | None) -> Path:
    """The experiments' file of a command.

    Args:
        given: the value of --file; None: experiments.yaml in the working directory, else the one of the project.

    Raises:
        ConfigError: `given` is None and there is no experiments.yaml.
    """
    if given is not None:
        return given
    for folder in (Path.cwd(), PROJECT):
        if (folder / EXPERIMENTS).exists():
            return folder / EXPERIMENTS
    raise ConfigError(f"{Path.cwd()} has no {EXPERIMENTS}; name a file with --file")


def storage_place(given: str | None, file: Path | None) -> Place:
    """The place where searches are kept.

    Args:
        given: the value of --storage; None: $TUNER_STORAGE, else the folder `storage` beside the experiments' file.
        file: the value of --file.

    Raises:
        ConfigError: the place is a URL that cannot be used; or the default is needed and there is no experiments' file.
    """
    named = given or os.environ.get("TUNER_STORAGE")
    return place(named, "--storage") if named else experiments_file(file).resolve().parent / "storage"


def told_file(given: Path | None, file: Path) -> str:
    """The sentence, without an end, that says which experiments' file a command reads.

    Args:
        given: the value of --file.
        file: `experiments_file(given)`.
    """
    where = f"experiments: {file.resolve()}"
    if given is None and file.parent != Path.cwd():
        return f"this folder has no {EXPERIMENTS}, so those of the project are used (--file names others): {where}"
    return where


def program(name: str) -> str:
    """The command that runs program `name` of this Python environment: its name where PATH finds it, else its path.

    It is quoted for a shell.
    """
    own = Path(sys.executable).parent / name
    if shutil.which(name) == str(own):
        return name
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def tune_again(*arguments: str) -> str:
    """The command that runs tune.py with `arguments`, quoted for a shell: its path, or video-tuner, as it was typed.

    The options that say where things are (`REPEATED`) follow as they were typed.
    """
    typed = Path(sys.argv[0]).name
    words = [*arguments, *_repeated()]
    if typed == CONSOLE_SCRIPT:
        return " ".join([program(CONSOLE_SCRIPT), *map(shlex.quote, words)])
    script = sys.argv[0] if typed == "tune.py" else "tune.py"
    return " ".join([program("python"), *map(shlex.quote, (script, *words))])


def _repeated() -> Iterator[str]:
    words = iter(sys.argv[1:])
    for word in words:
        option, equals, _ = word.partition("=")
        if option in REPEATED:
            yield from [word] if equals else [word, next(words, "")]

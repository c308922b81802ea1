"""What the commands share: the options that several of them take, and the way from an error to an exit code.

An option is one function that adds it to a parser, so that it has the same name, metavar and help in every command.
Only commands import this module.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError
from data.places import run_command
from data.ranges import COUNT, told
from tuner.errors import TunerError
from tuner.redact import redacted

if TYPE_CHECKING:  # `--help` needs no torch
    import torch


def main(command: Callable[[], int | None]) -> int:
    """Run a command and return the exit code of its process: `sys.exit(main(command))`.

    Args:
        command: does the work; returns an exit code, or None for 0.

    Returns:
        The code of the command; 2 after an error that the user can correct, or about a place that cannot be read or
        written, with its message on stderr; 130 after Ctrl-C. Any other exception is a bug of this program and keeps
        its traceback.
    """
    return run_command(command, (TunerError, DataError), redacted)


def add_file(parser: argparse.ArgumentParser) -> None:
    """--file YAML; the value is for `tuner.project.experiments_file`."""
    parser.add_argument(
        "--file", type=Path, metavar="YAML", help="default: experiments.yaml in this folder, else the project's"
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """--set PATH=VALUE, which can be repeated; the value is a list of strings for `tuner.config.experiment.load`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="replace a setting or a distribution, such as model.hidden=600; can be repeated",
    )


def add_storage(parser: argparse.ArgumentParser) -> None:
    """--storage DIR|URL; the value is for `tuner.project.storage_place`."""
    parser.add_argument(
        "--storage",
        metavar="DIR|URL",
        help="where searches are kept; default: $TUNER_STORAGE, else the folder storage beside the yaml",
    )


def add_tracking_uri(parser: argparse.ArgumentParser, default: str) -> None:
    """--tracking-uri URI; the value is for `tuner.tracking.uri.choose_uri`.

    Args:
        parser: gets the option.
        default: the help's words for what the command uses without the option.
    """
    parser.add_argument("--tracking-uri", metavar="URI", help=f"of the MLflow server or database; default: {default}")


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """MODEL_DIR, the first argument; the value is for `tuner.storage.stores.place`."""
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        metavar="MODEL_DIR",
        help="the folder, or its URL, that tuner.best --export wrote",
    )


def add_data(parser: argparse.ArgumentParser, shards: str) -> None:
    """--data GLOB [GLOB ...], required, and --keys NAME=KEY ...

    The values are for `data.cache.recipe.find_shards` and, as a dict, for `data.schema.Schema.keys`.

    Args:
        parser: gets the option.
        shards: the help's words for what the shards must hold.
    """
    from data.schema import parse_key  # imports numpy

    parser.add_argument("--data", required=True, nargs="+", metavar="GLOB", help=shards)
    parser.add_argument(
        "--keys",
        nargs="+",
        type=told(parse_key),
        default=[],
        metavar="NAME=KEY",
        help="where records have another key, as in id=clip/data_id; default: those that the model was trained with",
    )


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
    """--batch-size B, in videos."""
    parser.add_argument("--batch-size", type=COUNT.whole, default=default, metavar="B", help="default: %(default)s")


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device cpu|cuda; the value is for `choose_device`."""
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where PyTorch finds a GPU, else cpu")


def choose_device(name: str | None) -> "torch.device":
    """The device that --device names, or the default.

    Raises:
        TunerError: this machine has no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TunerError(f"--device takes cpu, cuda or cuda:1, but got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TunerError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs that PyTorch can use")
    return device

"""Every number that a command or a benchmark takes has a range, which is checked when the command line is read."""

import argparse
import contextlib
import math
import runpy
from typing import Any

import pytest

from data.ranges import Range
from tests.support.workplace import PROJECT
from tests.test_architecture import COMMANDS

# What an option may be besides a number, by the name of its type: text, a place, NAME=WIDTH, NAME=KEY.
OTHER_TYPES = ("NoneType", "str", "Path", "parse_feature", "parse_key")
BENCHMARKS = sorted(
    str(path.relative_to(PROJECT))
    for path in (PROJECT / "benchmarks").glob("*.py")
    if "ArgumentParser(" in path.read_text()
)


def options_of(file: str) -> list[argparse.Action]:
    """The options of the parser with which a file would read its command line."""
    read: list[argparse.Action] = []

    def parse_args(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        read.extend(parser._actions)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        for method in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, parse_args)
        patch.syspath_prepend(str(PROJECT / "benchmarks"))
        runpy.run_path(str(PROJECT / file), run_name="__main__")
    assert read, f"{file} reads no command line"
    return read


@pytest.mark.parametrize("file", [*COMMANDS, *BENCHMARKS])
def test_every_number_of_a_command_line_has_a_range_that_is_checked(file: str) -> None:
    for action in options_of(file):
        if getattr(action.type, "__name__", type(action.type).__name__) not in OTHER_TYPES:
            declared = getattr(action.type, "__self__", None)
            assert isinstance(declared, Range), f"{file} {action.option_strings}: use a Range of data/ranges.py"
            check_ends(declared, action.type, whole=action.type == declared.whole)


def check_ends(declared: Range, read: Any, *, whole: bool) -> None:
    low, high = declared.low, declared.high
    assert math.isfinite(low) and math.isfinite(high)
    outside = ["", "x", "nan", "inf", "-inf", "1e30", "-1e30"]
    if whole:
        outside += [str(low - 1), str(high + 1), "1.5"]
    else:
        outside += [repr(math.nextafter(low, -math.inf)), repr(math.nextafter(high, math.inf))]
    for text in outside:
        with pytest.raises(argparse.ArgumentTypeError) as told:
            read(text)
        kind = "a whole number" if whole else "a number"
        assert str(told.value) == f"must be {kind} {declared}, but got {text!r}"
    for end in (low, high):
        if declared.holds(end):
            assert read(str(end)) == end

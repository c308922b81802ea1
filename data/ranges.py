"""The range of a number: declared where the setting or the option is, checked where it is read.

    hidden: Count = 1200                               a field of a dataclass that calls `check_ranges`
    parser.add_argument("--num", type=COUNT.whole)     an option of a command

Every range has two ends, so that no number is accepted which the machine cannot compute with: 0 or infinity in float32,
more than an index can count, a seed that a generator refuses. tests/config/test_ranges.py finds a number without one.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers between two ends; both belong to it, but for those that `without` names."""

    low: float
    high: float
    without: Literal["none", "low", "high", "both"] = "none"

    def holds(self, number: float) -> bool:
        """Whether the number lies in the range; NaN lies in none."""
        above = self.low < number if self.without in ("low", "both") else self.low <= number
        below = number < self.high if self.without in ("high", "both") else number <= self.high
        return above and below

    def __str__(self) -> str:
        """What a number must be, as `must be {range}`: from 1 to 100, or in [0, 1)."""
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:,g}" for end in (self.low, self.high))
        if self.without == "none":
            return f"from {low} to {high}"
        opening, closing = "(" if self.without != "high" else "[", ")" if self.without != "low" else "]"
        return f"in {opening}{low}, {high}{closing}"

    def whole(self, text: str) -> int:
        """The `type` of an option that takes a whole number of this range."""
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not self.holds(number):
            raise argparse.ArgumentTypeError(f"must be a whole number {self}, but got {text!r}")
        return number

    def number(self, text: str) -> float:
        """The `type` of an option that takes a number of this range."""
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not self.holds(number):
            raise argparse.ArgumentTypeError(f"must be a number {self}, but got {text!r}")
        return number


# Sizes: of layers, batches, queues. Whether the machine has the memory is asked in tuner/training/steps/needs.py.
COUNT = Range(1, 2**24)
SEED = Range(0, 2**32 - 1)  # of numpy, torch and Optuna alike
# Numbers that are added, multiplied or divided by in float32.
TINY, HUGE = 1e-30, 1e6

Count = Annotated[int, COUNT]
Layers = Annotated[int, Range(1, 100)]  # of a network: each is a module, and takes time to build
Seed = Annotated[int, SEED]
Share = Annotated[float, Range(0, 1, "high")]  # a probability, or what is kept in each step
Fraction = Annotated[float, Range(0, 1, "low")]  # a part of something, not nothing
UpToAll = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(TINY, HUGE)]
Factor = Annotated[float, Range(0, 1e9)]  # of a term of the loss, which it switches off at 0
Power = Annotated[float, Range(0, 4)]  # of ratios of counts: higher ones leave float32


def told(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The `type` of an option whose text `parse` reads: argparse keeps the message of its ValueError."""

    @wraps(parse)
    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def is_whole(text: str) -> bool:
    """Whether a text of a file is a whole number as programs write it.

    `int` also takes `1_0`, ` 1` and the digits of other scripts, and refuses thousands of digits.
    """
    return text.isascii() and text.isdecimal() and len(text) <= 20


def check_ranges(config: Any) -> None:
    """Check the numbers of a dataclass against the ranges that its fields declare.

    Raises:
        ValueError: names the first field, or the entry of one, that lies outside its range.
    """
    cls: Any = type(config)
    for name, allowed in ranges_of(cls).items():
        for path, number in _numbers(name, getattr(config, name)):
            if not allowed.holds(number):
                raise ValueError(f"{path} must be {allowed}, but got {number}")


@cache
def ranges_of(cls: Any) -> Mapping[str, Range]:
    """The declared range of each field of a dataclass that has one."""
    hints = get_type_hints(cls, include_extras=True)
    found = {setting.name: _range_in(hints[setting.name]) for setting in fields(cls)}
    return {name: allowed for name, allowed in found.items() if allowed is not None}


def _range_in(hint: Any) -> Range | None:
    """The range in a type such as `Count`, `Count | None`, `Mapping[str, Count]` or `tuple[Share, ...]`."""
    if get_origin(hint) is Annotated:
        declared = next((extra for extra in hint.__metadata__ if isinstance(extra, Range)), None)
        if declared is not None:
            return declared
    return next((found for part in get_args(hint) if (found := _range_in(part)) is not None), None)


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a field: itself, or the entries of a mapping or a tuple. Words, blocks and null have none."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(f"{path}.{key}", entry)
    elif isinstance(value, tuple):
        for entry in value:
            yield from _numbers(path, entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value

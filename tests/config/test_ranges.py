"""Every number of experiments.yaml has a range with two ends, which is checked where the file is read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from data.ranges import Range, ranges_of
from tuner.config import reading
from tuner.config.field_docs import dataclass_in, kinds
from tuner.config.yaml_tree import Node, Problems


def classes_of_settings() -> list[Any]:
    """The dataclass of every block of the yaml."""
    pending = [cls for blocks in reading.SEARCHABLE.values() for classes in blocks.values() for cls in classes]
    pending += reading.FIXED.values()
    seen: dict[Any, None] = {}
    while pending:
        cls = pending.pop()
        if cls not in seen:
            seen[cls] = None
            pending += [found for hint in get_type_hints(cls).values() if (found := dataclass_in(hint))]
    return list(seen)


def numeric(hint: Any) -> bool:
    """Whether a value of this type can be a number, or hold some."""
    if get_origin(hint) is Annotated:
        return numeric(get_args(hint)[0])
    if get_origin(hint) is Literal or (isinstance(hint, type) and is_dataclass(hint)):
        return False
    return hint in (int, float) or any(numeric(part) for part in get_args(hint))


@dataclass(frozen=True)
class Number:
    """A numeric field of a block."""

    cls: Any
    name: str
    hint: Any

    @property
    def range(self) -> Range:
        return ranges_of(self.cls)[self.name]

    @property
    def whole(self) -> bool:
        return "int" in str(self.hint)

    def mistakes(self, number: float) -> list[str]:
        """What reading says of its block with this number; empty where it is accepted."""
        answers = []
        for example in examples(self.cls):
            origin = get_origin(self.hint)
            value: Any = {"a": number} if origin is Mapping else [number] if origin is tuple else number
            problems = Problems()
            block = Node(None, 1, "file.yaml").graft({**example, self.name: value})
            if reading.read_block(self.cls, block, "block", problems) is not None:
                return []
            answers.append(list(problems._lines))
        told = [[text for _, _, text in lines] for lines in answers]
        return next(lines for lines in told if not any("has no effect on" in text for text in lines))  # of its kind


def examples(cls: Any) -> list[dict[str, Any]]:
    """Blocks that are valid, or would be with one more setting: of each kind, the settings that have no default."""
    hints = get_type_hints(cls)
    found = []
    for kind in kinds(cls) or ("",):
        example: dict[str, Any] = {"kind": kind} if kind else {}
        for field in fields(cls):
            if field.name not in example and field.default is MISSING and field.default_factory is MISSING:
                example[field.name] = example_of(hints[field.name])
        found.append(example)
    return found


def example_of(hint: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return examples(hint)[0]
    parts = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is Literal:
        return parts[0]
    if hint in (int, float, str):
        return {int: 8, float: 1.0, str: "x"}[hint]
    return {"a": 8} if get_origin(hint) is not None and "Mapping" in str(hint) else example_of(parts[0])


def numbers() -> Iterator[Number]:
    for cls in classes_of_settings():
        hints = get_type_hints(cls, include_extras=True)
        for field in fields(cls):
            if numeric(hints[field.name]):
                yield Number(cls, field.name, hints[field.name])


NUMBERS = list(numbers())


def test_every_number_has_a_range_with_two_finite_ends() -> None:
    assert len(NUMBERS) > 70
    without = [f"{one.cls.__name__}.{one.name}" for one in NUMBERS if one.name not in ranges_of(one.cls)]
    assert without == []  # declare one as data/ranges.py says
    assert all(math.isfinite(end) for one in NUMBERS for end in (one.range.low, one.range.high))


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: f"{one.cls.__name__}.{one.name}")
def test_a_number_is_checked_at_both_ends_where_it_is_read(one: Number) -> None:
    low, high = one.range.low, one.range.high
    below = low - 1 if one.whole else math.nextafter(low, -math.inf)
    above = high + 1 if one.whole else math.nextafter(high, math.inf)
    outside: list[float] = [below, above, -(10**40), 10**40]
    outside += [end for end, kept in ((low, one.range.holds(low)), (high, one.range.holds(high))) if not kept]
    if not one.whole:
        outside += [math.nan, math.inf, -math.inf]
    for number in outside:
        (told,) = one.mistakes(number)
        assert told.startswith(f"file.yaml:1: block.{one.name}"), told
        # A whole number beyond 64 bits may be refused as no number.
        assert f" must be {one.range}, but got " in told, told
    for number in {low, high} - set(outside):
        whole = int(number) if one.whole else float(number)
        assert not any(f"must be {one.range}" in told for told in one.mistakes(whole))


def test_the_defaults_lie_in_their_ranges() -> None:
    for one in NUMBERS:
        default = next(field.default for field in fields(one.cls) if field.name == one.name)
        assert not isinstance(default, int | float) or isinstance(default, bool) or one.range.holds(default), one
    assert asdict(reading.SearchConfig())["trials"] == 20

"""What every benchmark prints: a card for a person, and as the last line one JSON object for a program."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def show(
    benchmark: str, title: str, table: Sequence[Sequence[str]], notes: Sequence[str], report: Mapping[str, Any]
) -> None:
    """Prints the card and the report.

    Args:
        benchmark: its name in the report.
        title: what was measured.
        table: a row of headings and the rows under it; the first column is text, the others are numbers.
        notes: lines below the table, the ratios first.
        report: the numbers; the machine's facts are added.
    """
    print(title)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *numbers in table:
        cells = (f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        print("  ".join([f"  {name:<{widths[0]}}", *cells]))
    for note in notes:
        print(f"  {note}")
    print(json.dumps({"benchmark": benchmark, **report, "machine": machine()}))


def spread(values: Sequence[float]) -> str:
    """Mean and deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "tfrecord")},
    }


def _cpu() -> str:
    """The processor's name; Linux tells it in a file alone."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

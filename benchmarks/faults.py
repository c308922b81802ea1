"""The fault table: what every fault costs a search, measured on real processes and written to docs/faults.md.

    python benchmarks/faults.py [-k EXPRESSION] [--table docs/faults.md]

The tests marked `fault` run one after the other. Each records what its fault cost through the fixture `fault_row`; its
docstring says what the fault may lose at most. With -k only the tests with matching names run, and only their rows are
replaced: every row has its own date and commit. If a test fails, its row says so, and this command fails. The last line
is one JSON object.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from card import show

PROJECT = Path(__file__).resolve().parents[1]
INTRODUCTION = """\
# What breaks, and what it costs

This page says what a search loses when something breaks. `python benchmarks/faults.py` writes it: each row is a real
search with a real fault, which then continues without help or is resumed with `--resume`, until it is complete. After
every fault the search has exactly the planned trials, none suggested twice; every epoch is reported once; every MLflow
run is closed; no process, actor, placement group or temporary file is left; and the trial that was hit has the numbers
of one that was not interrupted.

Lost epochs had been reported and had to be trained again. The seconds to recover count from the fault to the next new
epoch of the trial. They include the start of new processes and, where the driver died, the time until `--resume` was
typed.
"""
HEADINGS = ["fault", "lost at most", "lost epochs", "seconds to recover", "date", "commit"]


def run(selected: str | None) -> tuple[list[dict], dict[str, str]]:
    """Run the tests; returns the rows that they recorded, and the outcome of each test by `file::function[case]`."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        rows, report = Path(folder, "rows"), Path(folder, "report.xml")
        rows.touch()
        command = [sys.executable, "-m", "pytest", "-m", "fault", f"--junit-xml={report}"]
        command += ["-k", selected] if selected else []
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | {"FAULT_ROWS": str(rows)})
        if done.returncode not in (0, 1):  # 1: tests failed, and the table says so
            raise SystemExit(done.returncode)
        return [json.loads(line) for line in rows.read_text().splitlines()], outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    """Read the outcome of each test, by `file::function[case]`: empty if it passed, else `FAILED: ...` or `skipped`."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        told = {child.tag: child.get("message", "") for child in case}
        mistake = told.get("failure", told.get("error"))
        outcome = f"FAILED: {(mistake.splitlines() or [''])[0]}" if mistake is not None else ""
        file = case.get("classname", "").replace(".", "/") + ".py"
        found[f"{file}::{case.get('name')}"] = "skipped: " + told["skipped"] if "skipped" in told else outcome
    return found


def lost_at_most() -> dict[str, str]:
    """Return the docstring of every test function in one line, by `file::function`."""
    said = {}
    for path in PROJECT.glob("tests/**/test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.relative_to(PROJECT).as_posix()}::{node.name}"
                said[name] = " ".join((ast.get_docstring(node) or "").split())
    return said


def rows_of(test: str, outcome: str, recorded: list[dict]) -> list[list[str]]:
    """Make the first four cells of the rows of one test."""
    lost = lost_at_most()[test.partition("[")[0]]
    costs = [row for row in recorded if row["test"] == test]
    if outcome or not costs:  # it failed, was skipped, or recorded nothing
        return [[test, (outcome or lost).replace("|", "/"), "-", "-"]]
    seconds = ["-" if cost["recovery_seconds"] is None else f"{cost['recovery_seconds']:.0f}" for cost in costs]
    return [[cost["fault"], lost, str(cost["lost_epochs"]), took] for cost, took in zip(costs, seconds, strict=True)]


def read(table: Path) -> dict[str, list[str]]:
    """Read the cells of the table as it is, by fault."""
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def write(table: Path, rows: dict[str, list[str]]) -> None:
    """Write the table as Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows.values())]
    table.parent.mkdir(exist_ok=True)
    table.write_text(INTRODUCTION + "\n" + "\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match, as pytest's -k")
    parser.add_argument("--table", type=Path, default=PROJECT / "docs" / "faults.md")
    options = parser.parse_args()
    git = ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    started = time.monotonic()
    recorded, ended = run(options.k)
    stamp, rows = [time.strftime("%Y-%m-%d"), commit], read(options.table)
    for test, outcome in ended.items():
        rows.pop(test, None)
        for cells in rows_of(test, outcome, recorded):
            rows[cells[0]] = [*cells, *stamp]
    failed = {test: outcome for test, outcome in ended.items() if outcome.startswith("FAILED")}
    write(options.table, rows)
    fresh = [row for row in rows.values() if row[-2:] == stamp]
    show(
        "faults",
        f"{len(fresh)} faults in {time.monotonic() - started:.0f} s, commit {commit}",
        [["fault", "lost epochs", "seconds to recover"], *([row[0], row[2], row[3]] for row in fresh)],
        [f"written to {options.table}", *(f"{test}: {outcome}" for test, outcome in failed.items())],
        {"faults": len(fresh), "failed": len(failed), "commit": commit},
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

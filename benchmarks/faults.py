"""The fault table: every fault on real processes, what it cost, written to docs/faults.md.

    python benchmarks/faults.py [-k EXPRESSION] [--table docs/faults.md]

Runs the tests marked `fault` one after the other, each of which says through the fixture
`fault_row` what its fault cost; its docstring says what may be lost at most. With -k only those whose names match are
run and their rows replaced: every row carries its own date and commit. Fails if a fault's test fails; the table then
says so in its row. The last line is one JSON object.
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

`python benchmarks/faults.py` writes this table: a real search, a real fault, and then `--resume` (or nothing, where the
search goes on by itself) until all is done. After every one of them the search has exactly the planned number of
distinct trials, none suggested twice, every epoch once, every MLflow run closed, and no process, actor or placement
group left; a trial that was hit has the numbers of one that was not.

Lost epochs are those that were known and had to be trained again. Seconds to recover run from the fault to the next
new epoch of the trial, waiting for new processes and, where a driver died, for the one who types `--resume` included.
"""
HEADINGS = ["fault", "lost at most", "lost epochs", "seconds to recover", "date", "commit"]


def run(selected: str | None) -> tuple[list[dict], dict[str, str]]:
    """Run the tests; returns the rows that they stated, and how each test ended, by `file::function[parameters]`."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        rows, report = Path(folder, "rows"), Path(folder, "report.xml")
        rows.touch()
        command = [sys.executable, "-m", "pytest", "-m", "fault", f"--junit-xml={report}"]
        command += ["-k", selected] if selected else []
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | {"FAULT_ROWS": str(rows)})
        if done.returncode not in (0, 1):  # 1: tests failed, which the table says
            raise SystemExit(done.returncode)
        return [json.loads(line) for line in rows.read_text().splitlines()], endings(report)


def endings(report: Path) -> dict[str, str]:
    """How each test ended, by `file::function[parameters]`: empty where it passed, else `FAILED: ...` or `skipped`."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        told = {child.tag: child.get("message", "") for child in case}
        mistake = told.get("failure", told.get("error"))
        ending = f"FAILED: {(mistake.splitlines() or [''])[0]}" if mistake is not None else ""
        file = case.get("classname", "").replace(".", "/") + ".py"
        found[f"{file}::{case.get('name')}"] = "skipped: " + told["skipped"] if "skipped" in told else ending
    return found


def lost_at_most() -> dict[str, str]:
    """The docstring's line of every test function, by `file::function`."""
    said = {}
    for path in PROJECT.glob("tests/test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                said[f"tests/{path.name}::{node.name}"] = " ".join((ast.get_docstring(node) or "").split())
    return said


def rows_of(test: str, ending: str, stated: list[dict]) -> list[list[str]]:
    """The first four cells of the rows that a test makes."""
    lost = lost_at_most()[test.partition("[")[0]]
    costs = [row for row in stated if row["test"] == test]
    if ending or not costs:  # it did not come to its end, or had nothing to measure
        return [[test, (ending or lost).replace("|", "/"), "-", "-"]]
    seconds = ["-" if cost["recovery_seconds"] is None else f"{cost['recovery_seconds']:.0f}" for cost in costs]
    return [[cost["fault"], lost, str(cost["lost_epochs"]), took] for cost, took in zip(costs, seconds, strict=True)]


def read(table: Path) -> dict[str, list[str]]:
    """The cells of the table as it stands, by fault."""
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row for row in rows[2:]}


def write(table: Path, rows: dict[str, list[str]]) -> None:
    """The table, as Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADINGS, ["---"] * len(HEADINGS), *rows.values())]
    table.parent.mkdir(exist_ok=True)
    table.write_text(INTRODUCTION + "\n" + "\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match, as pytest takes it")
    parser.add_argument("--table", type=Path, default=PROJECT / "docs" / "faults.md")
    options = parser.parse_args()
    git = ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    started = time.monotonic()
    stated, ended = run(options.k)
    stamp, rows = [time.strftime("%Y-%m-%d"), commit], read(options.table)
    for test, ending in ended.items():
        rows.pop(test, None)
        for cells in rows_of(test, ending, stated):
            rows[cells[0]] = [*cells, *stamp]
    failed = {test: ending for test, ending in ended.items() if ending.startswith("FAILED")}
    write(options.table, rows)
    fresh = [row for row in rows.values() if row[-2:] == stamp]
    show(
        "faults",
        f"{len(fresh)} faults in {time.monotonic() - started:.0f} s, commit {commit}",
        [["fault", "lost epochs", "seconds to recover"], *([row[0], row[2], row[3]] for row in fresh)],
        [f"written to {options.table}", *(f"{test}: {ending}" for test, ending in failed.items())],
        {"faults": len(fresh), "failed": len(failed), "commit": commit},
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

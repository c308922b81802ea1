"""A whole search: ours, plain Ray Tune and plain Optuna, on the same data, space, budget and machine.

    python benchmarks/search.py [--trials 24] [--epochs 6]

Ours is `python tune.py` with the experiment `quickstart`. The peers do the same without this project, as a user would
write it (benchmarks/peers/). The sample shards exist before; caches and MLflow's databases do not. The three run one
after the other, and each may use the whole machine. Measured are

    seconds            from the start to the end of the process
    between trials     from the last epoch of a trial to the first step of the one that takes its place
    best GAP           of all epochs of all trials
    memory             the largest sum of the PSS of the process and of all that it started, sampled twice a second

and, for ours, the seconds of each part of the work besides training. The last line is one JSON object; `ratio` is the
quotient of the seconds, ours over those of Ray Tune.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from card import show

from data.ranges import COUNT
from tuner.config.experiment import load
from tuner.search import stages
from tuner.training.dataset import DataConfig, write_sample

PROJECT = Path(__file__).resolve().parents[1]
OURS, RAY_TUNE, OPTUNA = "ours", "Ray Tune", "Optuna"
PEERS = {RAY_TUNE: "ray_tune", OPTUNA: "optuna_alone"}  # their scripts
AIM, AIM_TO_OPTUNA = 0.5, 1.6  # of a search of 24 trials on two cores
AIM_BETWEEN, AIM_BETWEEN_LARGEST = 0.2, 1.0  # seconds
# The driver notes the end of an epoch later than its worker by about this many seconds.
MESSAGE_SECONDS = 0.1
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Process:
    """A process that has ended."""

    began: float  # seconds since 1970
    seconds: float
    memory_mib: float  # the most


@dataclass(frozen=True)
class Column:
    """What was measured of one search."""

    seconds: float
    between: list[float]  # seconds between two trials
    best_gap: float
    memory_mib: float
    trials: int  # that finished
    epochs: int
    parts: dict[str, float] = field(default_factory=dict)  # seconds by part, of ours alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=COUNT.whole, default=24, help="of each search (default: %(default)s)")
    parser.add_argument("--epochs", type=COUNT.whole, default=6, help="of each trial (default: %(default)s)")
    parser.add_argument("--videos", type=COUNT.whole, default=4000, help="to train on (default: %(default)s)")
    options = parser.parse_args()
    settings = {
        "search.trials": options.trials,
        "training.epochs": options.epochs,
        "data.sample.train": options.videos,
        "data.sample.validate": options.videos // 4,
    }
    with tempfile.TemporaryDirectory(prefix="bs-") as name:  # short, because the paths of Ray's sockets lie below it
        folder = Path(name)
        (folder / "experiments.yaml").write_text((PROJECT / "experiments.yaml").read_text())
        overrides = [f"{path}={value}" for path, value in settings.items()]
        data = load(folder / "experiments.yaml", "quickstart", overrides).data
        write_sample(data)
        columns = {OURS: ours(folder, overrides)}
        columns |= {peer: plain(script, folder, data, options) for peer, script in PEERS.items()}
    tell(columns, options)


def ours(folder: Path, overrides: Sequence[str]) -> Column:
    """A search with `tune.py`; its journal has the epochs, its log the seconds of the parts."""
    options = [part for override in overrides for part in ("--set", override)]
    process = run([str(PROJECT / "tune.py"), "quickstart", *options], folder, {"TUNER_CACHE": str(folder / "cache")})
    (search,) = folder.glob("storage/quickstart/*/")
    reports = read_reports(search / "journal.jsonl")
    return column(process, reports, parts_of(process, stages.parse((search / "ray.log").read_text()), reports))


def plain(script: str, folder: Path, data: DataConfig, options: argparse.Namespace) -> Column:
    """The same search with one of the peers."""
    place = folder / script[:1]
    place.mkdir()
    settings = {
        "train": data.train,
        "validate": data.validate,
        "trials": options.trials,
        "epochs": options.epochs,
        "reports": place / "reports.jsonl",
    }
    command = [str(PROJECT / f"benchmarks/peers/{script}.py")]
    command += [f"--{name}={value}" for name, value in settings.items()]
    return column(run(command, place, {"RAY_TMPDIR": str(place)}), read_reports(place / "reports.jsonl"))


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Process:
    """Run a Python program to its end in `folder`, and watch its memory.

    Raises:
        SystemExit: it failed; with what it printed.
    """
    began, most, known = time.time(), 0.0, set[psutil.Process]()
    with (folder / "printed.txt").open("w+") as printed:
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        own = psutil.Process(child.pid)
        while child.poll() is None:
            most = max(most, memory_of(own, known))
            try:
                child.wait(SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.time() - began
        printed.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} ended with code {child.returncode}\n{printed.read()}")
    return Process(began, seconds, most)


def memory_of(process: psutil.Process, known: set[psutil.Process]) -> float:
    """The PSS of a process and all that it started, in MiB; `known` keeps those whose parents have ended."""
    total = 0
    try:
        known |= {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return 0.0
    for one in list(known):
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            known.discard(one)
    return total / 2**20


def read_reports(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The epochs of each trial in a file of JSON lines, in their order, without the trials that failed."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    failed = {entry["id"] for entry in entries if entry["type"] == "failed"}
    reports: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["type"] == "report" and entry["id"] not in failed:
            reports.setdefault(entry["id"], []).append(entry)
    return reports


def column(
    process: Process, reports: Mapping[str, list[dict[str, Any]]], parts: dict[str, float] | None = None
) -> Column:
    epochs = [epoch for of_trial in reports.values() for epoch in of_trial]
    return Column(
        seconds=round(process.seconds, 1),
        between=[round(seconds, 2) for seconds in between(spans(reports))],
        best_gap=round(max(epoch["metrics"]["gap"] for epoch in epochs), 4),
        memory_mib=round(process.memory_mib),
        trials=len(reports),
        epochs=len(epochs),
        parts={name: round(seconds, 2) for name, seconds in (parts or {}).items()},
    )


def spans(reports: Mapping[str, list[dict[str, Any]]]) -> list[tuple[float, float]]:
    """The first step and the end of the last epoch of each trial, in seconds since 1970, by the first step."""
    first_and_last = [(epochs[0], epochs[-1]) for epochs in reports.values()]
    return sorted((first["time"] - first["metrics"]["seconds"], last["time"]) for first, last in first_and_last)


def between(spans: Sequence[tuple[float, float]]) -> list[float]:
    """The seconds between two trials: each trial takes the place of the one that has waited longest for a successor.

    A trial that begins before any other has ended takes a new place.
    """
    ends: list[float] = []
    found = []
    for first_step, end in spans:
        if ends and min(ends) <= first_step + MESSAGE_SECONDS:
            found.append(max(0.0, first_step - min(ends)))
            ends.remove(min(ends))
        ends.append(end)
    return found


def parts_of(
    process: Process, begun: Sequence[tuple[str, float, float]], reports: Mapping[str, list[dict[str, Any]]]
) -> dict[str, float]:
    """What the seconds of our search are spent on; the trials are divided at the first step and the last epoch."""
    first_step, last_epoch = spans(reports)[0][0], max(end for _, end in spans(reports))
    moments = [("starting Python", process.began)]
    for name, began, seconds in begun:
        if name == "trials":
            moments += [("first slot", began), ("training", first_step), ("ending the trials", last_epoch)]
        else:
            moments.append((name, began))
        ended = began + seconds
    moments += [("ending Python", ended), ("", process.began + process.seconds)]
    return {name: after - began for (name, began), (_, after) in pairwise(moments)}


def tell(columns: Mapping[str, Column], options: argparse.Namespace) -> None:
    ratio, ratio_to_optuna = (round(columns[OURS].seconds / columns[peer].seconds, 2) for peer in PEERS)
    rows = {
        "seconds": lambda one: f"{one.seconds:.1f}",
        "between trials, median": lambda one: f"{statistics.median(one.between or [0]):.2f}",
        "between trials, largest": lambda one: f"{max(one.between or [0]):.2f}",
        "best GAP": lambda one: f"{one.best_gap:.4f}",
        "memory, MiB": lambda one: f"{one.memory_mib:,.0f}",
        "trials finished": lambda one: str(one.trials),
        "epochs": lambda one: str(one.epochs),
    }
    table = [["", *columns], *([name, *map(cell, columns.values())] for name, cell in rows.items())]
    parts = (f"{name} {seconds:.1f}" for name, seconds in columns[OURS].parts.items())
    notes = [
        f"ratio {ratio} of the seconds to Ray Tune (aim {AIM} at most), {ratio_to_optuna} to Optuna (aim "
        f"{AIM_TO_OPTUNA} at most); between trials {AIM_BETWEEN} s in the median, {AIM_BETWEEN_LARGEST} s at most",
        f"ours, in seconds: {', '.join(parts)}",
    ]
    report = {
        "ratio": ratio,
        "aim": AIM,
        "ratio_to_optuna": ratio_to_optuna,
        "aim_to_optuna": AIM_TO_OPTUNA,
        "cores": len(os.sched_getaffinity(0)),
        "columns": {name: asdict(one) for name, one in columns.items()},
    }
    show("search", f"{options.trials} trials of up to {options.epochs} epochs", table, notes, report)


if __name__ == "__main__":
    main()

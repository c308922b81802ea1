"""Measures real searches for the simulation of `driver.py`: how long slots take to start, to train and to end.

    python benchmarks/driver_calibration.py [--searches 3] [--trials 10]

Runs searches of short trials, on two slots at a time, with a private Ray as `python tune.py` does, and writes quantiles
of these durations into driver_calibration.json beside this file. The last line is the same JSON object.

    slot_start      from the suggestion of a slot's first trial until the slot has started
    worker_start    from there until the trial trains: the slot starts a worker, which opens the data
    reset           from a later suggestion until a slot has it
    next_trial      from there until the trial trains
    epoch           an epoch
    report          what passes between two reports beyond the epoch
    slot_stop       from the end of a slot's last trial until its process has ended
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from data.ranges import COUNT

SLOTS = 2
PROJECT = Path(__file__).resolve().parents[1]
TARGET = Path(__file__).with_suffix(".json")
EXPERIMENT = """\
default: short
experiments:
  short:
    data:
      sample: {directory: shards, train: 2000, validate: 200, shards: 2}
      train: shards/train*.tfrecord
      validate: shards/validate*.tfrecord
      num_classes: 64
    model: {kind: fused_mlp, towers: {mean_rgb: 256, mean_audio: 64}, hidden: 256, dropout: {uniform: [0.1, 0.6]}}
    optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}
    training: {batch_size: 128, epochs: 3, precision: fp32}
    search: {scheduler: {kind: asha}, max_concurrent: SLOTS}
    resources: {cpu: 1}
"""
# The simulation knows a distribution at these quantiles, and interpolates linearly between them.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
Durations = dict[str, list[float]]  # seconds, by name
# The driver, which also notes when a slot has started with a trial. tune.py is to import Ray itself.
DRIVER = """\
import json, runpy, sys, time
from tuner.search import stages

begin = stages.begin

def begin_noting(stage):
    begin(stage)
    if stage == "trials":
        from tuner.search.recorder import Recorder
        on_trial_start = Recorder.on_trial_start

        def noted(self, iteration, trials, trial, **info):
            with open("started.jsonl", "a") as file:
                file.write(json.dumps([trial.config["trial_id"], time.time()]) + "\\n")
            on_trial_start(self, iteration, trials, trial, **info)

        Recorder.on_trial_start = noted

stages.begin = begin_noting
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Watcher(threading.Thread):
    """Records the driver's processor seconds, its memory, and when the processes of its slots have ended."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self._driver = psutil.Process(driver)
        self.cpu: list[tuple[float, float]] = []  # time, seconds so far
        self.resident = 0  # bytes, at the most
        self._slots: set[psutil.Process] = set()
        self.ends: list[float] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Look ten times per second."""
        while not self.stop.wait(0.1):
            with suppress(psutil.NoSuchProcess):
                used = self._driver.cpu_times()
                self.resident = max(self.resident, self._driver.memory_info().rss)
                self.cpu.append((time.time(), used.user + used.system))
                alive = {process for process in self._driver.children(recursive=True) if _title(process) == "ray::Slot"}
                self.ends += [time.time()] * len(self._slots - alive)
                self._slots = alive


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
        return process.cmdline()[0].split(".")[0]  # Ray adds the method that is running
    return ""


def search(folder: Path, trials: int) -> tuple[list[dict[str, Any]], list[tuple[str, float]], Watcher]:
    """Run a search; returns its journal, when slots had started with each trial, and the watcher's figures."""
    folder.mkdir()
    (folder / "experiments.yaml").write_text(EXPERIMENT.replace("SLOTS", str(SLOTS)))
    (folder / "driver.py").write_text(DRIVER)
    environment = os.environ | {"TUNER_CACHE": str(folder.parent / "cache"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "driver.py", str(PROJECT / "tune.py"), f"--trials={trials}"]
    with (folder / "output.txt").open("w") as output:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        watcher = Watcher(driver.pid)
        watcher.start()
        driver.wait()
    watcher.stop.set()
    watcher.join()
    if driver.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    (journal,) = folder.glob("storage/*/*/journal.jsonl")
    return _lines(journal), _lines(folder / "started.jsonl"), watcher


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def durations(entries: list[dict[str, Any]], starts: list[tuple[str, float]], ends: list[float]) -> Durations:
    """The durations of one search, by name."""
    suggested, finished = (
        {entry["id"]: entry["time"] for entry in entries if entry["type"] == type} for type in ("suggested", "finished")
    )
    started: dict[str, float] = {}
    for id, moment in starts:
        started.setdefault(id, moment)  # the best trial starts again, to be scored
    reports = defaultdict(list)
    for entry in entries:
        if entry["type"] == "report":
            reports[entry["id"]].append(entry)
    seconds: Durations = defaultdict(list)
    for number, id in enumerate(suggested):
        start, train = ("slot_start", "worker_start") if number < SLOTS else ("reset", "next_trial")
        seconds[start].append(started[id] - suggested[id])
        seconds[train].append(reports[id][0]["time"] - reports[id][0]["metrics"]["seconds"] - started[id])
        seconds["epoch"] += [report["metrics"]["seconds"] for report in reports[id]]
        gaps = [(after["time"] - before["time"], after) for before, after in pairwise(reports[id])]
        seconds["report"] += [max(0.0, gap - after["metrics"]["seconds"]) for gap, after in gaps]
    # The last slot also scores the best trial.
    last = sorted(finished.values())[-SLOTS:-1] + [entry["time"] for entry in entries if entry["type"] == "winner"]
    seconds["slot_stop"] = [ended - trial for trial, ended in zip(last, sorted(ends), strict=True)]
    return seconds


def cpus(entries: list[dict[str, Any]], watcher: Watcher) -> float:
    """The processors that the driver used between the first and the last report."""
    times = [entry["time"] for entry in entries if entry["type"] == "report"]
    used = [cpu for moment, cpu in watcher.cpu if times[0] <= moment <= times[-1]]
    return (used[-1] - used[0]) / (times[-1] - times[0])


def measure(folder: Path, searches: int, trials: int) -> dict[str, Any]:
    """The quantiles of all durations, and the processor time and the memory of the driver."""
    seconds: Durations = defaultdict(list)
    used, resident = [], 0
    for number in range(searches):
        entries, starts, watcher = search(folder / str(number), trials)
        for name, values in durations(entries, starts, watcher.ends).items():
            seconds[name] += values
        used.append(cpus(entries, watcher))
        resident = max(resident, watcher.resident)
    return {
        "trials": searches * trials,
        "quantiles": QUANTILES,
        "seconds": {name: np.quantile(values, QUANTILES).round(3).tolist() for name, values in seconds.items()},
        "driver_cpus": round(float(np.mean(used)), 3),
        "driver_mib": round(resident / 2**20),
    }


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=COUNT.whole, default=3)
    parser.add_argument("--trials", type=COUNT.whole, default=10, help="of each search")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bd-") as folder:
        measured = measure(Path(folder), options.searches, options.trials)
    command = f"python benchmarks/driver_calibration.py --searches {options.searches} --trials {options.trials}"
    when = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "command": command}
    TARGET.write_text(json.dumps({**when, **measured}, indent=2) + "\n")
    print(json.dumps({"benchmark": "driver_calibration", **when, **measured}))


if __name__ == "__main__":
    main()

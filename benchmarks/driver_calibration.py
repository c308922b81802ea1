"""Measures real trials for the simulation of `driver.py`: how long they take to start, train, report and end.

    python benchmarks/driver_calibration.py [--trials 200] [--minutes 60]

Runs a search of short trials, two at a time, with a private Ray as `python tune.py` does, and writes quantiles of the
durations into driver_calibration.json beside this file. When the minutes are over, the trials that have ended are
used. The last line is the same JSON object.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

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
    search: {scheduler: {kind: asha}, max_concurrent: 2}
    resources: {cpu: 1}
"""
# The simulation knows a distribution at these quantiles, and interpolates linearly between them.
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
STARTED = """
    SELECT tags.value, runs.start_time / 1000.0 FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
    WHERE tags.key = 'trial_id'
"""


class Watcher(threading.Thread):
    """Records the driver's processor seconds and its memory."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self._driver = psutil.Process(driver)
        self.cpu: list[tuple[float, float]] = []  # time, seconds so far
        self.resident = 0  # bytes, at the most
        self.stop = threading.Event()

    def run(self) -> None:
        """Read both five times per second."""
        while not self.stop.wait(0.2):
            try:
                used = self._driver.cpu_times()
                self.resident = max(self.resident, self._driver.memory_info().rss)
            except psutil.NoSuchProcess:
                return
            self.cpu.append((time.time(), used.user + used.system))


def search(folder: Path, trials: int, minutes: float) -> tuple[list[dict[str, Any]], dict[str, float], Watcher]:
    """Run the search; returns its journal, when each trial's actor had started, and the watcher's figures."""
    (folder / "experiments.yaml").write_text(EXPERIMENT)
    environment = os.environ | {"TUNER_CACHE": str(folder / "cache"), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(PROJECT / "tune.py"), f"--trials={trials}", f"--set=search.time_budget={minutes}m"]
    with (folder / "output.txt").open("w") as output:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        watcher = Watcher(driver.pid)
        watcher.start()
        driver.wait()
    watcher.stop.set()
    watcher.join()
    if driver.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    return *read(folder), watcher


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    (journal,) = folder.glob("storage/*/*/journal.jsonl")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        started = dict(database.execute(STARTED).fetchall())
    return [json.loads(line) for line in journal.read_text().splitlines()], started


def summarize(entries: list[dict[str, Any]], started: dict[str, float], watcher: Watcher) -> dict[str, Any]:
    """The quantiles of the durations, and the processor time and memory of the driver."""
    suggested, ended = ({r["id"]: r for r in entries if r["type"] in kinds} for kinds in (["suggested"], ["finished"]))
    reports = defaultdict(list)
    for entry in entries:
        if entry["type"] == "report":
            reports[entry["id"]].append(entry)
    seconds = defaultdict(list)
    for id, end in ended.items():
        if not reports[id] or end["stopped_by"] == "time_budget":
            continue
        first, last = reports[id][0], reports[id][-1]
        seconds["actor_start"].append(started[id] - suggested[id]["time"])
        seconds["worker_start"].append(first["time"] - first["metrics"]["seconds"] - started[id])
        seconds["epoch"] += [report["metrics"]["seconds"] for report in reports[id]]
        gaps = [(after["time"] - before["time"], after) for before, after in pairwise(reports[id])]
        seconds["report"] += [max(0.0, gap - after["metrics"]["seconds"]) for gap, after in gaps]
        if end["stopped_by"] is None:
            seconds["trial_end"].append(end["time"] - last["time"])
    began, over = entries[1]["time"], max(end["time"] for end in ended.values())
    used = [cpu for moment, cpu in watcher.cpu if began <= moment <= over]
    return {
        "trials": len(seconds["actor_start"]),
        "quantiles": QUANTILES,
        "seconds": {name: np.quantile(values, QUANTILES).round(3).tolist() for name, values in seconds.items()},
        "driver_cpus": round((used[-1] - used[0]) / (over - began), 3),
        "driver_mib": round(watcher.resident / 2**20),
    }


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bd-") as folder:
        measured = summarize(*search(Path(folder), options.trials, options.minutes))
    command = f"python benchmarks/driver_calibration.py --trials {options.trials} --minutes {options.minutes:g}"
    when = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "command": command}
    TARGET.write_text(json.dumps({**when, **measured}, indent=2) + "\n")
    print(json.dumps({"benchmark": "driver_calibration", **when, **measured}))


if __name__ == "__main__":
    main()

"""Measures the seconds between trials: from the last epoch of one trial to the first step of the next.

    python benchmarks/trials.py [--trials 6] [--epochs 10]

Runs a search of short trials (epochs of about 2 s) with one slot, as `python tune.py` does. Its journal says when the
epochs ended; the moments at which Ray's processes appear say what the seconds are spent on. The last line is one JSON
object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[1]
EXPERIMENT = """\
default: short
experiments:
  short:
    data:
      sample: {directory: shards, train: 4000, validate: 200, shards: 2}
      train: shards/train*.tfrecord
      validate: shards/validate*.tfrecord
      num_classes: 64
    model: {kind: fused_mlp, towers: {mean_rgb: 1024, mean_audio: 128}, hidden: {int: [900, 1100]}}
    optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-4, 1.0e-3]}}
    training: {batch_size: 64, epochs: EPOCHS, precision: fp32}
    search: {scheduler: {kind: none}}
"""
# Ray's processes of a trial, in the order in which they appear: the trial's actor, its controller, its worker.
STAGES = {"actor": "ray::ImplicitFunc", "controller": "ray::TrainController", "worker": "ray::RayTrainWorker"}


class Watcher(threading.Thread):
    """Records when each process of a trial got its name."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, tuple[str, float, float]] = {}  # stage, process started, named; by process id
        self.stop = threading.Event()

    def run(self) -> None:
        """Check the processes twenty times per second."""
        while not self.stop.wait(0.05):
            for process in psutil.process_iter(["cmdline", "create_time"]):
                title = " ".join(process.info["cmdline"] or [])
                stage = next((name for name, prefix in STAGES.items() if title.startswith(prefix)), None)
                if stage and process.pid not in self.seen:
                    self.seen[process.pid] = stage, process.info["create_time"], time.time()


def search(folder: Path, trials: int, epochs: int, overlap: bool) -> tuple[list[dict], Watcher]:
    """Run the search; returns its journal and the watcher."""
    (folder / "experiments.yaml").write_text(EXPERIMENT.replace("EPOCHS", str(epochs)))
    command = [
        sys.executable,
        str(PROJECT / "tune.py"),
        f"--trials={trials}",
        f"--set=search.overlap={str(overlap).lower()}",
    ]
    environment = os.environ | {"TUNER_CACHE": str(folder / "cache"), "PYTHONPATH": str(PROJECT)}
    watcher = Watcher()
    watcher.start()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    watcher.stop.set()
    watcher.join()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (journal,) = folder.glob("storage/*/*/journal.jsonl")
    return [json.loads(line) for line in journal.read_text().splitlines()], watcher


def lost_seconds(entries: list[dict]) -> tuple[list[float], list[float]]:
    """For each pair of neighbouring trials: seconds without a step, and when the first step of the second began."""
    reports: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        if entry["type"] == "report":
            reports.setdefault(entry["id"], []).append((entry["time"], entry["metrics"]["seconds"]))
    spans = sorted((epochs[0][0] - epochs[0][1], epochs[-1][0]) for epochs in reports.values())
    return [after[0] - before[1] for before, after in pairwise(spans)], [span[0] for span in spans]


def breakdown(watcher: Watcher, first_steps: list[float]) -> dict[str, float]:
    """Median seconds from the start of a trial's actor process to each later stage, without overlap of trials."""
    by_stage = {stage: sorted(times[1:] for times in watcher.seen.values() if times[0] == stage) for stage in STAGES}
    rows = list(zip(*by_stage.values(), first_steps, strict=False))[1:]
    names = ["actor named", "controller started", "controller named", "worker started", "worker named", "first step"]
    stamps = []
    for actor, controller, worker, step in rows:
        start = actor[0]
        moments = [actor[1], controller[0], controller[1], worker[0], worker[1], step]
        stamps.append([moment - start for moment in moments])
    return {
        name: round(statistics.median(column), 2) for name, column in zip(names, zip(*stamps, strict=True), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    card: dict[str, object] = {
        "benchmark": "trials",
        "cores": os.cpu_count(),
        "trials": options.trials,
        "epochs": options.epochs,
    }
    for overlap in (True, False):
        with tempfile.TemporaryDirectory(prefix="bt-") as folder:
            entries, watcher = search(Path(folder), options.trials, options.epochs, overlap)
        lost, first_steps = lost_seconds(entries)
        name = "overlap" if overlap else "one after the other"
        print(f"{name:<20} seconds lost between trials: {', '.join(f'{seconds:.1f}' for seconds in lost)}")
        card[f"median_{'overlap' if overlap else 'plain'}"] = round(statistics.median(lost), 2)
        if not overlap:
            stages = breakdown(watcher, first_steps)
            for stage, seconds in stages.items():
                print(f"{'':<20} {seconds:6.2f} s after the trial's process started: {stage}")
            card["breakdown"] = stages
    print(json.dumps(card))


if __name__ == "__main__":
    main()

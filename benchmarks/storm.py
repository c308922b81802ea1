"""A storm: processes of a search are killed (-9) at random moments, and the search must end as if none had been.

    python -m benchmarks.storm [--trials 50] [--kills 200] [--epochs 40] [--seed 1] [--folder DIR [--minutes 30]]

The search runs on a Ray with a head and one node of two CPUs. A kill hits a Train worker, a trial's actor, a
controller, the driver (which is then resumed) or the node's raylet (the node is then replaced). At the end the storm
checks that exactly the planned trials exist, each with its own suggestion; that every MLflow run is closed; that no
actor and no placement group is left; and that every epoch of every trial has the numbers that `tuner.train` gives for
the same suggestion without an interruption. If one of these does not hold, it fails.

A storm takes hours where processes start slowly. With --folder it can be stopped and continued later by the same
command; --minutes stops it once the search has recovered from a kill. The last line is one JSON object.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.card import show
from tests.support.rays import LongLivedRay, long_lived_ray
from tests.support.searches import (
    assert_equals_the_uninterrupted,
    assert_nothing_is_left,
    assert_nothing_was_lost,
    entries_of,
    processes_of,
    search_of,
)
from tests.support.workplace import EXPERIMENT, Workplace, wait_for

OF_A_TRIAL = {"worker": "RayTrainWorker", "trial": "ImplicitFunc", "controller": "TrainController"}
KINDS = (*OF_A_TRIAL, "driver", "raylet")
# All kills happen in this first part of the epochs, so that the search still runs at the last one.
UNTIL = 0.95


class Storm:
    """A search and the kills that hit it; a file in the search's folder lists them, to continue the storm later."""

    def __init__(self, place: Workplace, ray: LongLivedRay, arguments: list[str]) -> None:
        self.place, self.ray = place, ray
        self.node = ray.add_node(cpus=2)
        self.failed_drivers = 0  # that ended too early though nothing killed them
        self._counted = (0, 0)  # bytes of the journal, and the epochs in them
        self.driver = self._start(*(["--resume"] if self._began() else arguments))

    @property
    def kills(self) -> list[tuple[float, str]]:
        """Return (time, kind of process) of every kill so far."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    @property
    def _log(self) -> Path:
        return self.place.folder / "kills.jsonl"

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        output = f"driver-{len(self.place.started)}.txt"
        return self.place.start("--address", self.ray.address, *arguments, output=output)

    def is_running(self) -> bool:
        """Say whether the search still runs; a driver that failed is resumed like one that was killed."""
        if self.driver.poll() is None:
            return True
        if self.driver.returncode == 0:
            return False
        self.failed_drivers += 1
        if self.failed_drivers > 20:
            raise SystemExit(self.place.printed(f"driver-{len(self.place.started) - 1}.txt"))
        self.driver = self._start("--resume")
        return True

    def epochs(self) -> int:
        """Count the epochs of all trials in the journal; it is read again only when it has grown."""
        size = self._journal_bytes()
        if size != self._counted[0]:
            self._counted = (size, sum(len(trial.reports) for trial in search_of(self.place).trials.values()))
        return self._counted[1]

    def _began(self) -> bool:
        """Say whether there is a search to resume: its journal has a line."""
        return self._journal_bytes() > 0

    def _journal_bytes(self) -> int:
        return sum(journal.stat().st_size for journal in self.place.folder.glob("storage/tiny/*/journal.jsonl"))

    def kill(self, kind: str, rng: random.Random) -> None:
        """Kill (-9) one process of this kind, as soon as there is one."""
        if kind == "driver":
            victim = psutil.Process(self.driver.pid)
        elif kind == "raylet":
            victim = self.node
        else:
            alive: list[psutil.Process] = []
            title = OF_A_TRIAL[kind]
            wait_for(
                lambda: alive.extend(processes_of(self.place, title)) or alive or not self.is_running(), seconds=900
            )
            if not alive:
                return
            victim = rng.choice(alive)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return self.kill(kind, rng)
        with self._log.open("a") as log:
            log.write(json.dumps([time.time(), kind]) + "\n")
        if kind == "driver":
            self.driver.wait()
            self.driver = self._start("--resume")
        elif kind == "raylet":
            self.node = self.ray.add_node(cpus=2)


def wait_until(condition: Callable[[], bool], storm: Storm) -> bool:
    """Wait for the condition or for the end of the search; says whether the search still runs."""
    while not condition():
        if not storm.is_running():
            return False
        time.sleep(0.1)
    return True


def costs(entries: list[dict[str, Any]], kills: list[tuple[float, str]]) -> tuple[int, list[float]]:
    """Read from the journal what the kills cost.

    Returns:
        The number of reported epochs that were trained again; for each kill the seconds until the next new epoch of
        any trial.
    """
    last: dict[str, int] = {}
    again = 0
    for entry in entries:
        if entry["type"] == "report":
            last[entry["id"]] = max(last.get(entry["id"], 0), entry["epoch"])
        elif entry["type"] == "resumed":
            again += max(0, last.get(entry["id"], 0) - entry["epoch"])
    new = [entry["time"] for entry in entries if entry["type"] == "report"]
    following = ((at, next((time for time in new if time > at), None)) for at, _ in kills)
    return again, [time - at for at, time in following if time is not None]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=40, help="of each trial; at most ten a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the search; the same arguments again continue the storm")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    moments = sorted(rng.uniform(0, UNTIL * options.trials * options.epochs) for _ in range(options.kills))
    plan = [(moment, rng.choice(KINDS)) for moment in moments]
    arguments = [f"--trials={options.trials}"]
    for setting in (f"training.epochs={options.epochs}", "search.max_concurrent=2", "search.sampler.kind=random"):
        arguments += ["--set", setting]
    arguments += ["--set", "search.failures.per_trial=100000"]

    started = time.monotonic()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="storm-")))
        folder.mkdir(parents=True, exist_ok=True)
        place = Workplace(folder.resolve(), variables={"TUNER_CACHE": f"{folder.resolve()}/cache"})
        (place.folder / "experiments.yaml").write_text(textwrap.dedent(EXPERIMENT))
        with long_lived_ray(place, cpus=0) as ray:
            storm = Storm(place, ray, arguments)
            for moment, kind in plan[len(storm.kills) :]:
                if not wait_until(lambda moment=moment: storm.epochs() >= moment, storm):
                    break
                if time.monotonic() - started > 60 * options.minutes:
                    storm.driver.kill()
                    print(json.dumps({"benchmark": "storm", "kills": len(storm.kills), "ended": False}))
                    return 0
                storm.kill(kind, rng)
                print(f"{time.monotonic() - started:7.1f} s  {storm.epochs():5d} epochs  killed: {kind}", flush=True)
            wait_until(lambda: False, storm)
            assert_nothing_was_lost(place, options.trials, options.epochs)
            ray.assert_nothing_is_left()
            assert_nothing_is_left(place)
        for number in range(options.trials):
            assert_equals_the_uninterrupted(place, number)
        best = search_of(place).finished[0]
        again, recoveries = costs(entries_of(place), storm.kills)
    by_kind = Counter(kind for _, kind in storm.kills)
    recovery = statistics.median(recoveries)
    show(
        "storm",
        f"{len(storm.kills)} kills over {options.trials} trials of {options.epochs} epochs, seed {options.seed}",
        [["killed", "times"], *([kind, str(by_kind[kind])] for kind in KINDS)],
        [
            f"{options.trials} trials, each epoch as if uninterrupted; best {best.number:03d}: {best.score:.4f}",
            f"the next new epoch came {recovery:.1f} s after a kill (median), {max(recoveries):.1f} s at most",
            f"{again} of {options.trials * options.epochs} epochs were trained again",
            f"{storm.failed_drivers} drivers failed and were resumed",
        ],
        {
            "trials": options.trials,
            "epochs": options.epochs,
            "seed": options.seed,
            "kills": len(storm.kills),
            "by_kind": dict(by_kind),
            "median_recovery_seconds": round(recovery, 1),
            "worst_recovery_seconds": round(max(recoveries), 1),
            "epochs_again": again,
            "failed_drivers": storm.failed_drivers,
            "best_trial": best.number,
            "best_gap": best.score,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A storm: random kill -9s over a search of short trials, which must end as if nothing had happened.

    python benchmarks/storm.py [--trials 50] [--kills 200] [--epochs 40] [--seed 1] [--folder DIR [--minutes 30]]

A Ray of a head and one node with two CPUs. At random moments a Train worker, a trial's actor, a controller, the
driver (which is then resumed) or the node's raylet (the node is then replaced) is killed. At the end there must be
exactly the planned distinct trials, every MLflow run closed, no actor or placement group left, and every epoch of every
trial as `tuner.train` gives it for the same suggestion undisturbed, hence the same best trial; else it fails. It takes
hours where processes start slowly: with --folder it can be ended and goes on from there, --minutes ends it after a kill
that the search has recovered from. The last line is one JSON object.
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
from card import show

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))  # its searches, its Rays and its assertions are those of the fault tests

from tests.support.rays import LongLivedRay, long_lived_ray  # noqa: E402
from tests.support.searches import (  # noqa: E402
    assert_equals_the_uninterrupted,
    assert_nothing_is_left,
    assert_nothing_was_lost,
    processes_of,
    records_of,
    search_of,
)
from tests.support.workplace import EXPERIMENT, Workplace, wait_for  # noqa: E402

OF_A_TRIAL = {"worker": "RayTrainWorker", "trial": "ImplicitFunc", "controller": "TrainController"}
KINDS = (*OF_A_TRIAL, "driver", "raylet")
# The last kill falls into the first 95 % of the epochs: the search still runs then.
UNTIL = 0.95


class Storm:
    """A search, and what is done to it; what was done is a file in the search's folder, so that a storm may go on."""

    def __init__(self, place: Workplace, ray: LongLivedRay, arguments: list[str]) -> None:
        self.place, self.ray = place, ray
        self.node = ray.add_node(cpus=2)
        self.ended_by_themselves = 0  # drivers
        self._counted = (0, 0)  # bytes of the journal, epochs in it
        self.driver = self._start(*(["--resume"] if self._began() else arguments))

    @property
    def kills(self) -> list[tuple[float, str]]:
        """When, what."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    @property
    def _log(self) -> Path:
        return self.place.folder / "kills.jsonl"

    def _start(self, *arguments: str) -> "subprocess.Popen[str]":
        output = f"driver-{len(self.place.started)}.txt"
        return self.place.start("--address", self.ray.address, *arguments, output=output)

    def goes_on(self) -> bool:
        """Whether the search runs; a driver that ended by itself too early is resumed like one that was killed."""
        if self.driver.poll() is None:
            return True
        if self.driver.returncode == 0:
            return False
        self.ended_by_themselves += 1
        if self.ended_by_themselves > 20:
            raise SystemExit(self.place.printed(f"driver-{len(self.place.started) - 1}.txt"))
        self.driver = self._start("--resume")
        return True

    def epochs(self) -> int:
        """Epochs in the journal, of all trials; it is read when it has grown: reading it takes longer and longer."""
        size = self._journal_bytes()
        if size != self._counted[0]:
            self._counted = (size, sum(len(trial.reports) for trial in search_of(self.place).trials.values()))
        return self._counted[1]

    def _began(self) -> bool:
        """Whether there is a search to go on with: its journal has a line."""
        return self._journal_bytes() > 0

    def _journal_bytes(self) -> int:
        return sum(journal.stat().st_size for journal in self.place.folder.glob("storage/tiny/*/journal.jsonl"))

    def kill(self, kind: str, rng: random.Random) -> None:
        """Kill -9 of one of that kind, as soon as there is one."""
        if kind == "driver":
            victim = psutil.Process(self.driver.pid)
        elif kind == "raylet":
            victim = self.node
        else:
            alive: list[psutil.Process] = []
            title = OF_A_TRIAL[kind]
            wait_for(lambda: alive.extend(processes_of(self.place, title)) or alive or not self.goes_on(), seconds=900)
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
    """Wait for the condition; whether the search still runs then."""
    while not condition():
        if not storm.goes_on():
            return False
        time.sleep(0.1)
    return True


def costs(records: list[dict[str, Any]], kills: list[tuple[float, str]]) -> tuple[int, list[float]]:
    """Known epochs that were trained again, and for each kill the seconds until the next new epoch of any trial."""
    last: dict[str, int] = {}
    again = 0
    for record in records:
        if record["type"] == "report":
            last[record["id"]] = max(last.get(record["id"], 0), record["epoch"])
        elif record["type"] == "resumed":
            again += max(0, last.get(record["id"], 0) - record["epoch"])
    new = [record["time"] for record in records if record["type"] == "report"]
    following = ((at, next((time for time in new if time > at), None)) for at, _ in kills)
    return again, [time - at for at, time in following if time is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=40, help="of a trial; ten a second at the most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the search; with the same arguments again, the storm goes on")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end, to go on another time")
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
        again, recoveries = costs(records_of(place), storm.kills)
    by_kind = Counter(kind for _, kind in storm.kills)
    recovery = statistics.median(recoveries)
    show(
        "storm",
        f"{len(storm.kills)} kills over {options.trials} trials of {options.epochs} epochs, seed {options.seed}",
        [["killed", "times"], *([kind, str(by_kind[kind])] for kind in KINDS)],
        [
            f"{options.trials} distinct trials, every epoch as undisturbed; best {best.number:03d}: {best.score:.4f}",
            f"a kill is over after {recovery:.1f} s (median), {max(recoveries):.1f} s at most",
            f"{again} of {options.trials * options.epochs} epochs were known and trained again",
            f"{storm.ended_by_themselves} drivers ended by themselves and were resumed",
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
            "drivers_ended_by_themselves": storm.ended_by_themselves,
            "best_trial": best.number,
            "best_gap": best.score,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

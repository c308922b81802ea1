"""A storm: processes of a search are killed (-9) at random moments, and the search must end as if none had been.

    python -m benchmarks.storm [--trials 50] [--kills 200] [--epochs 40] [--seed 1] [--folder DIR [--minutes 30]]

The search has TPE, ASHA and one slot, so each suggestion and each decision depends on all that came before. It runs
twice: undisturbed, and on a Ray with a head and one node of two CPUs, where a kill hits a worker of Train, the slot, a
controller, the driver (which is then resumed) or the node's raylet (the node is then replaced). Both must have the same
trials, with the same settings, the same GAP in every epoch to the last bit, stopped by the same, and the same best
trial. Every MLflow run must be closed with these epochs, and no actor and no placement group be left.

A storm takes hours where processes start slowly. With --folder it can be stopped and continued later by the same
command; --minutes stops it once the search has recovered from a kill. The last line is one JSON object.
"""

import argparse
import json
import os
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
from data.ranges import COUNT, HUGE, SEED, Range
from tests.support.rays import LongLivedRay, long_lived_ray
from tests.support.searches import assert_nothing_is_left, entries_of, processes_of, runs_of, search_of
from tests.support.workplace import EXPERIMENT, Workplace, wait_for
from tuner.storage import searches

OF_A_SLOT = {"worker": "RayTrainWorker", "slot": "Slot", "controller": "TrainController"}
KINDS = (*OF_A_SLOT, "driver", "raylet")
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
        if self.driver.returncode == 0 or (self._began() and search_of(self.place).tracked):
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
            title = OF_A_SLOT[kind]
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


def undisturbed(folder: Path, arguments: list[str]) -> Workplace:
    """The same search on a private Ray, with no kill; an earlier call of this storm may have run it."""
    place = _workplace(folder)
    begun = searches.folders(place.folder / "storage", "tiny")
    if not begun or search_of(place).ended is None:
        code, printed = place.run(*(["--resume"] if begun else arguments))
        if code:
            raise SystemExit(printed)
    return place


def _workplace(folder: Path) -> Workplace:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiments.yaml").write_text(textwrap.dedent(EXPERIMENT))
    return Workplace(folder, variables={"TUNER_CACHE": f"{folder}/cache"})


def assert_same_search(place: Workplace, calm: Workplace) -> None:
    """Check the trials of a search, their values, epochs and ends against those of the undisturbed one."""
    expected, search = search_of(calm), search_of(place)
    assert list(search.trials) == [f"{search.id}-{trial.number:04d}" for trial in expected.trials.values()]
    for ours, theirs in zip(search.trials.values(), expected.trials.values(), strict=True):
        assert ours.values == theirs.values, ours.number
        gaps, known = ({epoch: one["gap"] for epoch, one in t.reports.items()} for t in (ours, theirs))
        assert gaps == known, (ours.number, gaps, known)
        assert (ours.status, ours.stopped_by) == (theirs.status, theirs.stopped_by), ours.number
    assert search.finished[0].number == expected.finished[0].number
    runs = list(runs_of(place))
    assert {status for _, status, _ in runs} == {"FINISHED"}
    steps = {tags["trial_id"]: sorted(steps) for tags, _, steps in runs if "trial_id" in tags}
    assert steps == {id: sorted(trial.reports) for id, trial in search.trials.items()}


def wait_until(condition: Callable[[], bool], storm: Storm) -> bool:
    """Wait for the condition or for the end of the search; says whether the search still runs."""
    while storm.is_running():
        if condition():
            return True
        time.sleep(0.1)
    return False


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
    parser.add_argument("--trials", type=COUNT.whole, default=50)
    parser.add_argument("--kills", type=COUNT.whole, default=200)
    parser.add_argument("--epochs", type=COUNT.whole, default=40, help="of each trial; at most ten a second")
    parser.add_argument("--seed", type=SEED.whole, default=1)
    parser.add_argument("--folder", type=Path, help="of the search; the same arguments again continue the storm")
    parser.add_argument("--minutes", type=Range(0, HUGE, "low").number, default=float("inf"), help="stop after so many")
    options = parser.parse_args()
    for places in ("TUNER_STORAGE", "MLFLOW_TRACKING_URI"):  # of the user's own searches
        os.environ.pop(places, None)
    rng = random.Random(options.seed)
    arguments = [f"--trials={options.trials}"]
    for setting in (
        f"training.epochs={options.epochs}",
        f"search.scheduler={{kind: asha, grace: {max(1, options.epochs // 10)}}}",
        "search.sampler.kind=tpe",
        "search.max_concurrent=1",
        "search.failures.per_trial=100000",
    ):
        arguments += ["--set", setting]

    started = time.monotonic()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="storm-")))
        calm = undisturbed(folder.resolve() / "calm", arguments)
        epochs = sum(len(trial.reports) for trial in search_of(calm).trials.values())
        moments = sorted(rng.uniform(0, UNTIL * epochs) for _ in range(options.kills))
        plan = [(moment, rng.choice(KINDS)) for moment in moments]
        place = _workplace(folder.resolve() / "storm")
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
            ray.assert_nothing_is_left()
            assert_nothing_is_left(place)
        assert_same_search(place, calm)
        search = search_of(place)
        stopped = sum(trial.stopped_by is not None for trial in search.trials.values())
        best = search.finished[0]
        again, recoveries = costs(entries_of(place), storm.kills)
    by_kind = Counter(kind for _, kind in storm.kills)
    recovery = statistics.median(recoveries)
    show(
        "storm",
        f"{len(storm.kills)} kills over {options.trials} trials of up to {options.epochs} epochs, seed {options.seed}",
        [["killed", "times"], *([kind, str(by_kind[kind])] for kind in KINDS)],
        [
            f"{options.trials} trials, {stopped} of them stopped by ASHA: settings, epochs and ends as undisturbed",
            f"the best trial is the same: {best.number:03d}, GAP {best.score:.4f}",
            f"the next new epoch came {recovery:.1f} s after a kill (median), {max(recoveries):.1f} s at most",
            f"{again} of {epochs} epochs were trained again",
            f"{storm.failed_drivers} drivers failed and were resumed",
        ],
        {
            "trials": options.trials,
            "stopped": stopped,
            "epochs": epochs,
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

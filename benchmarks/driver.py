"""How large a search one driver can run: 10,000 trials on 1,000 slots, simulated without a single process.

    python benchmarks/driver.py [--sizes 100 1000 10000] [--epoch-seconds 60] [--tracking-uri URI]

A discrete-event simulation. Tune's loop and the project's searcher, scheduler, recorder, journal (a real file, with
fsync) and tracker run as they do in a search. Instead of slots there are events with a time (simulated_slots.py): a
slot has started, a slot has taken its next trial, an epoch has ended. How long these take was measured on real searches
(driver_calibration.json); `--epoch-seconds` makes the epochs as long as those for which one uses 1,000 slots. A search
of N trials has N / 10 slots, and should start no more: the slots that were started are counted. With `--history 0.9`
the first nine tenths of the trials are drawn at random and written into the journal, and the simulation begins with a
resume: it measures the same last tenth in a tenth of the time.

What the driver computes and waits for is real, and advances the simulated clock: its processor time and the disk's, not
the time that other programs take from it. A thread beside it writes to MLflow; its time is measured by request. The
work of Ray to start, watch and stop 1,000 actors is not included. The last line is one JSON object.
"""

import argparse
import io
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import card
import numpy as np
import optuna
from ray import tune
from ray.train._internal import storage
from ray.tune.execution import tune_controller
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.search.search_generator import SearchGenerator
from rich.console import Console as RichConsole
from simulated_slots import EPOCHS, Clock, Delays, Slots, learning_curve

from data.ranges import COUNT, HUGE, Range
from tuner.config.experiment import Experiment, load
from tuner.console import Console, SearchView, quiet
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal, SearchHistory
from tuner.tracking.records import recorded_metrics
from tuner.tracking.tracker import Tracker
from tuner.training.state import SCORE
from tuner.workers import connection

CALIBRATION = Path(__file__).with_name("driver_calibration.json")
EXPERIMENT = """\
experiments:
  driver:
    data: {train: none, validate: none, num_classes: 3862}
    model:
      kind: fused_mlp
      towers: {mean_rgb: 2048, mean_audio: 256}
      hidden: {int: [300, 2400]}
      dropout: {uniform: [0.2, 0.7]}
    optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}
    loss: {l2: {choice: [0, {loguniform: [1, 5000]}]}, pos_weight_power: {choice: [0, 0.25, 0.5]}}
    training: {batch_size: {choice: [256, 512, 1024]}, epochs: 8}
    search: {trials: TRIALS, scheduler: {kind: asha}, plateau: {trials: 1000000}}
"""
FSYNC = os.fsync
# The figures are medians of the last fifth of the decisions of a search.
LAST = 0.8


def aim_ms(trials: int) -> float:
    """The milliseconds that a decision may take: 10 up to 1,000 trials, 100 at 10,000."""
    return max(10.0, trials / 100)


class Meter:
    """The milliseconds that calls take: the processor time of their thread, and their waits for the disk."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = defaultdict(list)
        self._waited = 0.0

    def seconds(self) -> float:
        """The seconds that this thread has used so far."""
        return time.thread_time() + self._waited

    def watch(self, thing: Any, method: str, name: str) -> None:
        """Measure every call of a method of one object."""
        call = getattr(thing, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = self.seconds()
            result = call(*arguments, **options)
            if method != "suggest" or result is not None:  # else the concurrency allowed no further trial
                self.calls[name].append((self.seconds() - start) * 1e3)
            return result

        setattr(thing, method, timed)

    def sync(self, descriptor: int) -> None:
        """Replace os.fsync: call it and measure how long it waits."""
        start, busy = time.perf_counter(), time.thread_time()
        FSYNC(descriptor)
        self._waited += max(0.0, time.perf_counter() - start - (time.thread_time() - busy))

    def median(self, name: str) -> float:
        """The median of the last fifth of the calls."""
        calls = self.calls[name]
        return statistics.median(calls[int(len(calls) * LAST) :])


class Requests:
    """Replaces MLflow's client: passes every call on and measures it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds.append(time.perf_counter() - start)

        return timed


class Nobody:
    """Replaces MLflow's client where a search is too long to be written to MLflow here; it stores nothing."""

    def __getattr__(self, name: str) -> "Nobody":
        return self

    def __call__(self, *arguments: Any, **options: Any) -> "Nobody":
        """Do nothing."""
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __contains__(self, item: object) -> bool:
        return False

    def __bool__(self) -> bool:
        """False, because it is no token of a next page either."""
        return False


def open_tracker(uri: str | None, folder: Path) -> tuple[Tracker, Requests]:
    """The tracker of a search, which writes nothing where there is no URI."""
    tracker = Tracker(uri or f"sqlite:///{folder}/unused.db", "driver", {})
    requests = Requests(tracker.client if uri else Nobody())
    tracker.client = requests  # type: ignore[assignment]
    return tracker, requests


def simulate(
    trials: int, slots: int, folder: Path, uri: str | None, delays: Delays, history: int = 0
) -> dict[str, Any]:
    """Simulate one search; returns its figures."""
    (folder / "experiments.yaml").write_text(EXPERIMENT.replace("TRIALS", str(trials)))
    experiment = load(folder / "experiments.yaml", "driver")
    clock, meter = Clock(), Meter()
    started = yardstick_ms()
    try:
        write_history(folder / f"search-{trials}", experiment, trials, history)
        with quiet(folder / "output.txt"), closing(Journal(folder / f"search-{trials}")) as open_journal:
            console = Console()
            assert open_journal.search is not None
            os.fsync = meter.sync
            tracker, requests = open_tracker(uri, folder)
            tracker.start_search(open_journal.search.id, tags={}, params={}, yaml="")
            with console.searching(open_journal.search):
                manager = fit(experiment, open_journal, tracker, console, slots, (clock, delays, meter))
            tracker.end_search("FINISHED")
            tracker.close()
        report = {
            "trials": trials,
            "slots": slots,
            "slots_requested": manager.requested,
            "slots_started": manager.started,
            "simulated": trials - history,
            "epochs": sum(len(trial.reports) for trial in open_journal.search.trials.values()),
            "ms": {name: round(meter.median(name), 3) for name in sorted(meter.calls)},
            "ms_tune": round(tune_ms(meter), 3),
            "hours": round(clock.now / 3600, 3),
            "driver_busy": round(manager.busy / clock.now, 4),
            "slots_busy": round(manager.trained / slots / clock.now, 4),
            "seconds_late_p99": round(float(np.quantile(manager.late, 0.99)), 3),
            "yardstick_ms": [started, yardstick_ms()],
            "mlflow": mlflow_report(requests, clock) if uri else None,
        }
        return report | {"resume": resume(experiment, open_journal.directory, uri, slots)}
    finally:
        os.fsync = FSYNC


def write_history(directory: Path, experiment: Experiment, planned: int, trials: int) -> None:
    """Write the journal of a search with finished trials: settings drawn at random, epochs as ASHA would stop them."""
    facts = {"version": journal.VERSION, "planned": planned, "fingerprint": "none", "tracking_uri": "-"}
    lines: list[dict[str, Any]] = [{"type": "search", "id": directory.name, "experiment": "driver", **facts}]
    lines[0] |= {"baseline": 0.1, "overrides": []}
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(trials):
        trial = {"number": number, "values": experiment.space.optuna(draws.ask())}
        id = f"{directory.name}-{number:04d}"
        states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
        settings = experiment.space.settings(trial["values"])
        lines.append({"type": "suggested", "id": id, "settings": settings, **trial, **states})
        epochs = (1, 1, 1, 1, 1, 1, 3, 3, EPOCHS)[number % 9]
        for metrics in itertools.islice(learning_curve(trial), epochs):
            kept = recorded_metrics(metrics)
            lines.append({"type": "report", "id": id, "epoch": metrics["epoch"], "metrics": kept})
        lines.append({"type": "finished", "id": id, "stopped_by": "asha" if epochs < EPOCHS else None})
    directory.mkdir()
    (directory / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def fit(
    experiment: Experiment,
    open_journal: Journal,
    tracker: Tracker,
    console: Console,
    slots: int,
    world: tuple[Clock, Delays, Meter],
) -> Slots:
    """Run Tune's controller as tuner/search/driver.py does with Tuner.fit, but with simulated slots."""
    search = open_journal.search
    assert search is not None
    stop = StopRule(experiment, search)
    scheduler = ReplayingScheduler(experiment.search.scheduler, search, experiment.max_epochs)
    recorder = Recorder(experiment, open_journal, tracker, console, scheduler, stop)
    searcher = JournaledSearch(experiment, open_journal, lambda: slots, stop)
    clock, delays, meter = world
    for thing, method, name in (
        (searcher, "suggest", "suggest"),
        (searcher, "on_trial_complete", "searcher: end"),
        (scheduler, "on_trial_result", "scheduler: report"),
        (recorder, "on_trial_start", "recorder: start"),
        (recorder, "on_trial_result", "recorder: report"),
        (recorder, "on_trial_complete", "recorder: end"),
        (stop, "stop_all", "stop rule"),
        (open_journal, "append", "of it: journal"),
    ):
        meter.watch(thing, method, name)
    manager = Slots(clock, delays, meter.seconds)
    tune_controller.RayActorManager = lambda resource_manager: manager
    storage._get_ray_train_session_dir = lambda: str(open_journal.directory / "session")  # Ray's folder, where Ray runs
    os.environ.update({name: os.environ.get(name, value) for name, value in connection.SETTINGS.items()})
    connection.start_together(slots)
    trainable = tune.with_resources(lambda configuration: None, {"memory": 2**20})
    whole = TuneExperiment(
        "driver", trainable, storage_path=str(open_journal.directory / "tune"), num_samples=10**9, stop=stop
    )
    search_alg = SearchGenerator(searcher)
    controller = tune_controller.TuneController(
        search_alg=search_alg,
        scheduler=scheduler,
        stopper=whole.stopper,
        callbacks=[recorder],
        metric=SCORE,
        storage=whole.storage,
        reuse_actors=True,
    )
    search_alg.add_configurations([whole])
    meter.watch(controller, "step", "step")
    while not controller.is_finished():
        controller.step()
    return manager


def tune_ms(meter: Meter) -> float:
    """The milliseconds that Tune itself takes for an event, without its calls into this project; the mean of all."""
    ours = ("suggest", "searcher: end", "scheduler: report", "recorder: start", "recorder: report", "recorder: end")
    total = sum(meter.calls["step"]) - sum(sum(meter.calls[name]) for name in (*ours, "stop rule"))
    return total / len(meter.calls["step"])


def mlflow_report(requests: Requests, clock: Clock) -> dict[str, Any]:
    """The requests of the search to MLflow, and their time; they are answered one after the other."""
    seconds = requests.seconds
    return {
        "requests": len(seconds),
        "ms_a_request": round(statistics.median(seconds[int(len(seconds) * LAST) :]) * 1e3, 2),
        "requests_per_second": round(len(seconds) / sum(seconds), 1),
        "asked_per_second": round(len(seconds) / clock.now, 2),
    }


def resume(experiment: Experiment, directory: Path, uri: str | None, slots: int) -> dict[str, Any]:
    """The seconds that a resume takes at the end of the search, and the size of the live view."""
    spent: dict[str, Any] = {"journal_mib": round((directory / "journal.jsonl").stat().st_size / 2**20, 2)}

    def take(name: str, since: float) -> None:
        spent[name] = round(time.process_time() - since, 3)

    start = time.process_time()
    with closing(Journal(directory)) as open_journal:
        take("replay_s", start)
        search = open_journal.search
        assert search is not None
        start = time.process_time()
        stop = StopRule(experiment, search)
        JournaledSearch(experiment, open_journal, lambda: slots, stop)
        take("searcher_s", start)
        start = time.process_time()
        scheduler = ReplayingScheduler(experiment.search.scheduler, search, experiment.max_epochs)
        take("scheduler_s", start)
        tracker, requests = open_tracker(uri, directory)
        tracker.start_search(search.id, tags={}, params={}, yaml="")
        with quiet(directory / "resume.txt"):
            Recorder(experiment, open_journal, tracker, Console(), scheduler, stop).catch_up()
        tracker.close()
        spent["mlflow_catch_up_s"] = round(sum(requests.seconds), 1)
    return spent | live_view(search, slots)


def live_view(search: SearchHistory, slots: int) -> dict[str, Any]:
    view, screen = SearchView(search), RichConsole(file=io.StringIO(), width=160)
    for trial in list(search.trials.values())[-slots:]:
        view.reported(trial, 1, EPOCHS, {"gap": 0.5, "loss_train": 5.0, "videos_per_second": 1e5})
    start = time.process_time()
    screen.print(view)
    milliseconds = round((time.process_time() - start) * 1e3, 2)
    return {"live_view_lines": screen.file.getvalue().count("\n"), "live_view_ms": milliseconds}  # type: ignore[attr-defined]


def yardstick_ms() -> float:
    """The milliseconds of a million additions now: the speed of this processor, and how much of it others use."""
    start, total = time.thread_time(), 0
    for number in range(1_000_000):
        total += number
    return round((time.thread_time() - start) * 1e3, 1)


def decisions(report: Mapping[str, Any]) -> dict[str, float]:
    """The milliseconds from an event to the decision of the driver."""
    ms = report["ms"]
    return {
        "a suggestion": ms["suggest"],
        "a report": ms["scheduler: report"] + ms["recorder: report"] + ms["stop rule"],
        "an end": ms["searcher: end"] + ms["recorder: end"] + ms["stop rule"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=COUNT.whole, nargs="+", default=[100, 1000, 10000], help="trials of each search"
    )
    parser.add_argument(
        "--epoch-seconds",
        type=Range(0, HUGE, "low").number,
        default=60.0,
        help="median of the simulated epochs",
    )
    parser.add_argument(
        "--slot-seconds",
        type=Range(0, HUGE, "low").number,
        help="median of the simulated starts of a slot; as measured",
    )
    parser.add_argument("--tracking-uri", help="of a running server; without: a SQLite file")
    parser.add_argument(
        "--mlflow-up-to",
        type=Range(0, COUNT.high).whole,
        default=1000,
        help="trials; longer searches are not written to it",
    )
    parser.add_argument(
        "--history", type=Range(0, 1).number, default=0.0, help="share of the trials that are not simulated"
    )
    options = parser.parse_args()
    calibration = json.loads(CALIBRATION.read_text())
    medians = {"epoch": options.epoch_seconds}
    if options.slot_seconds is not None:
        medians["slot_start"] = options.slot_seconds
    reports = []
    for trials in options.sizes:
        with tempfile.TemporaryDirectory(prefix="bd-") as folder:
            uri = options.tracking_uri or f"sqlite:///{folder}/mlflow.db"
            delays = Delays(calibration, medians)
            chosen = uri if trials <= options.mlflow_up_to else None
            past = int(trials * options.history)
            reports.append(simulate(trials, max(1, trials // 10), Path(folder), chosen, delays, past))
    ratio = round(min(aim_ms(one["trials"]) / max(decisions(one).values()) for one in reports), 2)
    table = [["milliseconds, median", *(f"{one['trials']:,} trials, {one['slots']:,} slots" for one in reports)]]
    table += [[name, *(f"{decisions(one)[name]:.2f}" for one in reports)] for name in decisions(reports[0])]
    table += [["aim for each of these", *(f"{aim_ms(one['trials']):.0f}" for one in reports)]]
    table += [["Tune's own share of an event", *(f"{one['ms_tune']:.2f}" for one in reports)]]
    memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    last = reports[-1]
    notes = [
        f"ratio {ratio} (aim 1): the aim over the slowest decision of all",
        f"driver: at most {memory:,} MiB; busy {last['driver_busy']:.1%} of {last['hours']:.1f} simulated hours,"
        f" slots busy {last['slots_busy']:.1%}, 99 % of events within {last['seconds_late_p99']:.2f} s",
        f"a resume of the longest: {json.dumps(last['resume'])}",
        *(
            f"{one['slots']:,} slots: {one['slots_requested']:,} were requested, {one['slots_started']:,} started"
            for one in reports
        ),
        *(f"MLflow, {one['trials']:,} trials: {json.dumps(one['mlflow'])}" for one in reports if one["mlflow"]),
        f"yardstick: a million additions took {last['yardstick_ms'][1]:.0f} ms",
    ]
    known = {name: calibration[name] for name in ("date", "commit", "trials")}
    measured = {"ratio": ratio, "aim": 1, "peak_mib": memory, "calibration": known, "sizes": reports}
    card.show("driver", "One driver: a search with simulated slots and a simulated clock", table, notes, measured)


if __name__ == "__main__":
    main()

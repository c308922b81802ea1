"""What trials do is recorded in the journal, then in MLflow, then on the screen: each epoch once, each end once."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import UnreachableError
from tuner.config.experiment import load
from tuner.errors import SearchError
from tuner.search import recorder
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal
from tuner.training.config import flatten

EXPERIMENT = """\
experiments:
  tiny:
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {kind: fused_mlp, towers: {rgb: 4}, hidden: 4, dropout: {uniform: [0.1, 0.6]}}
    optimizer: {kind: adam, learning_rate: 0.01}
    training: {epochs: 9}
"""
EPOCHS = 9
ID = "s-0000"


class Noted:
    """Stands for the tracker and the console: records the calls in their order."""

    def __init__(self, name: str, told: list[Any]) -> None:
        self.name, self.told = name, told

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments, **options: self.told.append((self.name, method, *arguments))

    @contextmanager
    def together(self, trial: journal.TrialHistory) -> Iterator[None]:
        told, self.told = self.told, []
        yield
        told.append((self.name, "together", [method for _, method, *_ in self.told]))
        self.told = told


class Driver:
    """A driver of a search of one trial."""

    def __init__(self, directory: Path, file: Path) -> None:
        experiment = load(file, "tiny")
        self.journal = Journal(directory)
        if self.journal.search is None:
            facts = {"fingerprint": "f", "planned": 1, "tracking_uri": "-", "overrides": [], "baseline": 0.1}
            self.journal.append("search", version=journal.VERSION, id="s", experiment="tiny", **facts)
            states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
            self.journal.append("suggested", number=0, id=ID, values=experiment.space.defaults(), settings={}, **states)
        search = self.journal.search
        assert search is not None
        self.told: list[Any] = []
        self.stop = StopRule(experiment, search)
        self.scheduler = ReplayingScheduler(experiment.search.scheduler, search, experiment.max_epochs)
        tracker, console = Noted("mlflow", self.told), Noted("screen", self.told)
        self.recorder = Recorder(experiment, self.journal, tracker, console, self.scheduler, self.stop)  # type: ignore[arg-type]
        self.trial = SimpleNamespace(config={"trial_id": ID}, get_error=lambda: RuntimeError("a\n  the actor died\n"))

    @property
    def history(self) -> journal.TrialHistory:
        return journal.read(self.journal.directory).trials[ID]

    def start(self) -> None:
        self.recorder.on_trial_start(0, [], self.trial)

    def hear(self, epoch: int, history: list[float] | None = None) -> dict[str, Any]:
        tags = {"host": "h", "device": "cpu"}
        result: dict[str, Any] = {"epoch": epoch, "epochs": EPOCHS, "tags": tags, "pid": 1, **metrics(epoch)}
        if history is not None:
            result["history"] = [{"epoch": past + 1, **metrics(past + 1)} for past in range(len(history))]
        self.recorder.on_trial_result(0, [], self.trial, result)
        return result

    def complete(self) -> None:
        self.recorder.on_trial_complete(0, [], self.trial)

    def lose_slot(self) -> None:
        self.recorder._search.trials[ID].failures = 99
        self.recorder.on_trial_error(0, [], self.trial)

    def methods(self) -> list[tuple[str, str]]:
        return [(name, method) for name, method, *_ in self.told]


def metrics(epoch: int) -> dict[str, float]:
    return {"gap": epoch / 10, "gap_best": epoch / 10, "loss_train": 1.0, "videos_per_second": 2.0}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT)
    return tmp_path / "s"


@pytest.fixture
def driver(directory: Path) -> Any:
    made = Driver(directory, directory.parent / "experiments.yaml")
    yield made
    made.journal.close()


def test_an_epoch_goes_to_the_journal_then_to_mlflow_then_onto_the_screen(driver: Driver) -> None:
    driver.start()
    driver.told.clear()
    driver.hear(1)
    assert driver.history.reports == {1: metrics(1)}  # metrics alone: no pid, no host
    assert driver.methods() == [("mlflow", "report"), ("screen", "trial_reported")]
    assert driver.told[0][2:] == (ID, 1, metrics(1), {"host": "h", "device": "cpu"})


def test_an_actor_that_starts_again_is_the_same_trial(driver: Driver) -> None:
    driver.start()
    driver.start()
    assert driver.methods() == [("mlflow", "start_trial"), ("screen", "trial_started")]


def test_losses_of_workers_and_of_slots_count_together(driver: Driver) -> None:
    driver.start()
    driver.recorder.on_trial_result(0, [], driver.trial, {"failure": "killed", "failures": 1})
    driver.hear(1)
    driver.recorder.on_trial_error(0, [], driver.trial)
    (told,) = (call[-1] for call in driver.told[-1:] if call[1] == "trial_noted")
    assert told == "its slot was lost (the actor died); another one resumes it from its last checkpoint"
    assert driver.history.status == "running"
    driver.recorder.on_trial_error(0, [], driver.trial)
    error = "its slot was lost (the actor died); 3 attempts (search.failures.per_trial)"
    assert (driver.history.status, driver.history.error) == ("failed", error)


def test_epochs_reported_again_are_journaled_and_shown_once(driver: Driver) -> None:
    driver.start()
    driver.hear(1)
    driver.hear(2)
    driver.told.clear()
    driver.hear(3, history=[0.1, 0.2, 0.3])  # the driver had not received the third
    assert list(driver.history.reports) == [1, 2, 3]
    assert [told[3] for told in driver.told if told[1] == "trial_reported"] == [3]
    assert [told[3] for told in driver.told if told[1] == "trial_resumed"] == [3]
    lines = [json.loads(line) for line in (driver.journal.directory / "journal.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["type"] == "resumed"] == [3]


def test_mlflow_gets_the_epochs_that_a_killed_driver_only_journaled(driver: Driver, directory: Path) -> None:
    driver.start()
    driver.hear(1)
    driver.journal.close()
    resumed = Driver(directory, directory.parent / "experiments.yaml")
    resumed.start()
    resumed.hear(1, history=[0.1])
    assert ("mlflow", "report") in resumed.methods()
    assert ("screen", "trial_reported") not in resumed.methods()
    resumed.journal.close()


def test_a_trial_that_completes_is_finished(driver: Driver) -> None:
    driver.start()
    driver.hear(1)
    driver.complete()
    assert (driver.history.status, driver.history.stopped_by) == ("finished", None)
    assert driver.methods()[-2:] == [("mlflow", "finish_trial"), ("screen", "trial_ended")]


def test_a_trial_records_what_stopped_it(driver: Driver) -> None:
    driver.start()
    driver.hear(1)
    driver.scheduler.stopped[ID] = 1
    driver.complete()
    assert driver.history.stopped_by == "asha"


def test_epochs_after_the_one_that_stopped_a_trial_do_not_count(driver: Driver) -> None:
    driver.start()
    driver.scheduler.stopped[ID] = 1
    assert driver.hear(2, history=[0.1, 0.2])["gap_best"] == 0.1  # Tune gives the searcher this result
    driver.complete()
    assert driver.history.reports == {1: metrics(1)}


def test_a_stop_that_a_killed_driver_did_not_record_is_recorded_by_the_next_one(driver: Driver) -> None:
    driver.hear(1)
    driver.scheduler.stopped[ID] = 1  # as it decides from the journal
    driver.told.clear()
    driver.recorder.catch_up()
    assert (driver.history.status, driver.history.stopped_by) == ("finished", "asha")
    assert driver.methods() == [("screen", "trial_ended"), ("mlflow", "together")]
    assert driver.told[-1][-1] == ["start_trial", "report", "finish_trial"]


@pytest.mark.parametrize("stopped", [False, True], ids=["", "at its last epoch"])
def test_a_trial_whose_last_epoch_a_killed_driver_recorded_has_completed(driver: Driver, stopped: bool) -> None:
    driver.hear(EPOCHS)
    if stopped:
        driver.scheduler.stopped[ID] = EPOCHS
    driver.recorder.catch_up()
    assert (driver.history.status, driver.history.stopped_by) == ("finished", None)


def test_a_past_trial_is_one_write(driver: Driver) -> None:
    """Of 10,000 finished trials of 20 epochs, a write for each epoch would be more than the outbox takes."""
    for epoch in range(1, EPOCHS + 1):
        driver.hear(epoch)
    driver.complete()
    driver.told.clear()
    driver.recorder.catch_up()
    (written,) = driver.told
    assert written == ("mlflow", "together", ["start_trial", *EPOCHS * ["report"], "finish_trial"])


def test_a_trial_that_was_running_continues(driver: Driver) -> None:
    driver.hear(EPOCHS - 1)
    driver.told.clear()
    driver.recorder.catch_up()
    assert driver.history.status == "running" and driver.told == []


def test_a_trial_that_reports_an_error_is_failed(driver: Driver) -> None:
    driver.start()
    driver.hear(1)
    report = {"error": "TrialDiverged: the loss is not finite", "cause": "settings"}
    driver.recorder.on_trial_result(0, [], driver.trial, report)
    driver.complete()
    assert (driver.history.status, driver.history.error) == ("failed", "TrialDiverged: the loss is not finite")
    assert driver.history.failed_by_settings


def test_a_trial_that_ends_without_a_report_is_failed(driver: Driver) -> None:
    driver.start()
    driver.complete()
    assert (driver.history.status, driver.history.error) == ("failed", "it ended without a report")
    assert not driver.history.failed_by_settings


def test_a_slot_that_is_lost_while_it_takes_a_trial_is_a_failure_without_an_error(driver: Driver) -> None:
    driver.start()
    driver.trial.get_error = lambda: None
    driver.recorder.on_trial_error(0, [], driver.trial)
    assert driver.told[-1][-1].startswith("its slot was lost (while it took the trial); another one")


def test_a_trial_that_no_slot_could_start_is_failed_in_mlflow_too(driver: Driver) -> None:
    for _ in range(3):
        driver.recorder.on_trial_error(0, [], driver.trial)
    ended = [("mlflow", "start_trial"), ("mlflow", "finish_trial"), ("screen", "trial_ended")]
    assert driver.methods() == [("screen", "trial_noted")] * 2 + ended


@pytest.mark.parametrize("end", ["complete", "error"])
def test_an_interrupted_search_ends_no_trial(driver: Driver, end: str) -> None:
    driver.start()
    driver.hear(1)
    driver.stop._interrupted.set()
    driver.complete() if end == "complete" else driver.recorder.on_trial_error(0, [], driver.trial)
    assert driver.history.status == "running"  # a resume continues it


def test_a_fatal_error_ends_the_search_and_fails_no_trial(driver: Driver) -> None:
    driver.start()
    driver.recorder.on_trial_result(0, [], driver.trial, {"fatal": "node 7: no room"})
    driver.recorder.on_trial_complete(0, [], driver.trial)
    assert driver.stop.stop_all() and driver.stop.fatal_error == "node 7: no room"
    assert driver.history.status == "running"


def test_a_journal_that_cannot_be_written_ends_the_search(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SearchError("journal.jsonl: cannot be written (No space left on device)")

    driver.start()
    driver.told.clear()
    monkeypatch.setattr(driver.journal, "append", full)
    result = {"epoch": 1, "epochs": 2, "gap": 0.5, "tags": {}}
    driver.recorder.on_trial_result(0, [], driver.trial, result)
    assert driver.stop.interrupted and "No space" in (driver.stop.fatal_error or "")
    assert driver.told == []  # MLflow and the screen get nothing that the journal does not have


def test_a_damaged_checkpoint_is_printed(driver: Driver) -> None:
    driver.start()
    result = {
        "epoch": 1,
        "epochs": 2,
        "gap": 0.5,
        "tags": {},
        "note": "epoch-0002: damaged; resumed after epoch 1",
    }
    driver.recorder.on_trial_result(0, [], driver.trial, result)
    assert [method for who, method, *_ in driver.told if who == "screen"][-2:] == ["trial_noted", "trial_reported"]


def test_settings_are_named_by_their_yaml_path() -> None:
    assert flatten({"loss": {"l1": 0, "deep": {"er": [1]}}, "seed": 1}) == {
        "loss.l1": 0,
        "loss.deep.er": [1],
        "seed": 1,
    }


def test_a_lost_worker_is_told_and_the_trial_goes_on(driver: Driver) -> None:
    driver.start()
    driver.recorder.on_trial_result(0, [], driver.trial, {"failure": "its worker crashed", "failures": 1})
    (_, _, told) = next(call[1:] for call in driver.told if call[1] == "trial_noted")[-3:]
    assert told == "its worker crashed; it resumes from its last checkpoint"
    assert driver.history.status == "running"


def test_what_a_worker_waits_for_is_told_and_not_recorded(driver: Driver) -> None:
    driver.start()
    before = (driver.journal.directory / "journal.jsonl").read_bytes()
    said = {"said": "node-1 decodes shards: 3 of 9, 1,000 videos"}
    driver.recorder.on_trial_result(0, [], driver.trial, said)
    assert driver.told[-1][:2] == ("screen", "trial_noted") and driver.told[-1][-1].startswith("node-1 decodes")
    assert (driver.journal.directory / "journal.jsonl").read_bytes() == before


def test_scores_from_a_slot_are_journaled_and_the_trial_ends_once(driver: Driver) -> None:
    driver.start()
    driver.hear(1)
    driver.complete()
    ended = len(driver.told)
    scoring = SimpleNamespace(config={"trial_id": ID, "score": True}, get_error=lambda: RuntimeError("gone"))
    scored = {"winner": ID, "scores": {"validate": {"gap": 0.5}}, "classes": {"validate": "class,name\n"}, "notes": []}
    driver.recorder.on_trial_start(0, [], scoring)
    driver.recorder.on_trial_result(0, [], scoring, scored)
    driver.recorder.on_trial_complete(0, [], scoring)
    driver.recorder.on_trial_error(0, [], scoring)
    assert len(driver.told) == ended
    assert journal.read(driver.journal.directory).winner == {"trial": ID, "metrics": {"validate": {"gap": 0.5}}}
    assert (driver.journal.directory / "classes-validate.csv").read_text() == "class,name\n"


def test_a_slot_that_cannot_score_says_why(driver: Driver) -> None:
    driver.start()
    scoring = SimpleNamespace(config={"trial_id": ID, "score": True})
    driver.recorder.on_trial_result(0, [], scoring, {"error": "NoShardsError: none", "notes": ["a note"]})
    told = [call[2] for call in driver.told if call[:2] == ("screen", "print")]
    assert told == ["scoring the best trial: a note", "scoring the best trial: NoShardsError: none"]


# The storage fails


@pytest.mark.parametrize(
    "error",
    [
        SearchError("another driver has taken over"),
        UnreachableError("s3://bucket/journal.jsonl", "cannot be reached: Service Unavailable (tried for 300 s)"),
        PermissionError(13, "Permission denied", "journal.jsonl"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("event", ["result", "complete", "error"])
def test_an_error_of_the_storage_ends_the_search_in_order_whatever_tune_tells(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: Exception, event: str
) -> None:
    """Tune would start a trial again whose end raised an exception."""
    driver.start()
    driver.hear(1)
    before = driver.history

    def fail(*arguments: Any, **fields: Any) -> None:
        raise error

    monkeypatch.setattr(driver.journal, "append", fail)
    tell = {"result": lambda: driver.hear(2), "complete": driver.complete, "error": driver.lose_slot}
    for _ in range(3):
        tell[event]()
    assert driver.stop.interrupted and driver.stop.stop_all()
    assert driver.stop.fatal_error is not None and "\n" not in driver.stop.fatal_error
    assert driver.stop.fatal_error.startswith(str(getattr(error, "filename", None) or error))
    assert driver.history == before, "a resume continues the trial"


def test_after_a_fatal_error_nothing_is_written(driver: Driver) -> None:
    """Every write would wait for the store that has failed."""
    driver.start()
    driver.stop.halt("the store is away")
    driver.told.clear()
    driver.hear(1)
    driver.complete()
    assert driver.told == [] and driver.history.reports == {}


def test_checkpoints_that_cannot_be_removed_end_the_search_after_the_trial(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied", "trials/s-0000")

    driver.start()
    driver.hear(EPOCHS)
    monkeypatch.setattr(recorder, "discard_training_states", fail)
    driver.complete()
    assert driver.stop.fatal_error == "trials/s-0000: Permission denied"
    assert driver.history.status == "finished"


def test_trials_that_run_when_the_search_ends_are_ended_by_its_reason(tmp_path: Path) -> None:
    """Tune stops them, and calls no callback."""
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT)
    driver = Driver(tmp_path / "search", tmp_path / "experiments.yaml")
    assert driver.journal.search is not None
    driver.journal.append("report", id=ID, epoch=1, metrics={"gap": 0.7})
    driver.recorder.end_stopped()
    assert driver.journal.search.unfinished
    driver.recorder.stop.reason = "goal"
    driver.recorder.end_stopped()
    assert driver.journal.search.finished[0].stopped_by == "goal"
    driver.journal.close()

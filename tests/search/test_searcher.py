"""Suggestions: each is on the disk before anyone uses it, and a resume changes none of them."""

import json
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tuner.config.experiment import Experiment, load
from tuner.errors import ConfigError
from tuner.search.sampling import tpe
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal, TrialHistory

SAMPLERS = ("tpe", "random", "gp", "cmaes", "qmc")
TRIALS = 15  # past the first ten, which TPE, GP and CMA-ES draw at random

CONTINUOUS = """\
experiments:
  tiny:
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {kind: fused_mlp, towers: {rgb: 4}, hidden: 4, dropout: {uniform: [0.1, 0.6], default: 0.3}}
    optimizer: {kind: adam, learning_rate: {loguniform: [1e-4, 1e-1]}}
    search: {trials: %d, sampler: {kind: %s, seed: 3}}
"""
CONDITIONAL = CONTINUOUS.replace(
    "    search:",
    "    loss: {l2: {choice: [0, {loguniform: [1, 100]}]}, bootstrap: {choice: [none, fixed]}}\n    search:",
)


def experiment_of(folder: Path, sampler: str, text: str = CONTINUOUS, trials: int = TRIALS) -> Experiment:
    (folder / "experiments.yaml").write_text(text % (trials, sampler))
    return load(folder / "experiments.yaml", "tiny")


def score(values: dict[str, Any]) -> float:
    """A score with one maximum."""
    dropout, rate, l2 = values["model.dropout"], values["optimizer.learning_rate"], values.get("loss.l2.loguniform", 30)
    return 0.9 - (dropout - 0.25) ** 2 - (rate - 0.02) ** 2 - (l2 - 10) ** 2 / 1e4


class Driver:
    """Calls a searcher as Tune does: one trial at a time, each of one epoch."""

    def __init__(self, directory: Path, experiment: Experiment, concurrency: int = 1) -> None:
        self.journal = Journal(directory)
        if self.journal.search is None:
            facts = {"fingerprint": "f", "tracking_uri": "-", "baseline": 0.1, "overrides": []}
            facts |= {"version": journal.VERSION, "planned": experiment.search.trials}
            self.journal.append("search", id=directory.name, experiment="tiny", **facts)
        assert self.journal.search is not None
        self.stop = StopRule(experiment, self.journal.search)
        self.searcher = JournaledSearch(experiment, self.journal, lambda: concurrency, self.stop)
        self.asked = 0

    @property
    def study(self) -> optuna.Study:
        return self.searcher.suggestions.study

    @property
    def trials(self) -> dict[str, TrialHistory]:
        assert self.journal.search is not None
        return self.journal.search.trials

    def ask(self) -> tuple[str, Any]:
        """Tune's id of the next trial, and its configuration."""
        self.asked += 1
        return f"tune-{self.asked}", self.searcher.suggest(f"tune-{self.asked}")

    def finish(self, name: str, asked: dict[str, Any]) -> None:
        gap = score(asked["values"])
        self.journal.append("report", id=asked["trial_id"], epoch=1, metrics={"gap": gap})
        self.searcher.on_trial_result(name, {"gap_best": gap})
        self.searcher.on_trial_complete(name, {"gap_best": gap})
        self.journal.append("finished", id=asked["trial_id"], stopped_by=None)

    def fail(self, name: str, asked: dict[str, Any], cause: str = "other") -> None:
        self.searcher.on_trial_complete(name, {"error": "it broke"})
        self.journal.append("failed", id=asked["trial_id"], error="it broke", cause=cause)

    def run(self) -> list[dict[str, Any]]:
        """Run all trials that remain; returns their configurations."""
        done = []
        while "values" in (asked := self.ask())[1]:
            self.finish(*asked)
            done.append(asked[1])
        return done

    def close(self) -> None:
        self.journal.close()


Drive = Callable[..., Driver]


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Starts drivers; their journals are closed after the test."""
    drivers: list[Driver] = []

    def start(directory: Path, experiment: Experiment, concurrency: int = 1) -> Driver:
        drivers.append(Driver(directory, experiment, concurrency))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()


@pytest.fixture
def driver(drive: Drive, tmp_path: Path) -> Driver:
    return drive(tmp_path / "search", experiment_of(tmp_path, "random", trials=4))


@dataclass(frozen=True, slots=True)
class Whole:
    """A search that was not interrupted."""

    directory: Path
    experiment: Experiment
    suggested: list[dict[str, Any]]


Run = Callable[..., Whole]


@pytest.fixture(scope="module")
def run_whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the search of a sampler over a space once for all tests, which only read it."""

    @cache
    def run(sampler: str, text: str = CONTINUOUS) -> Whole:
        folder = tmp_path_factory.mktemp(sampler)
        driver = Driver(folder / "search", experiment_of(folder, sampler, text))
        suggested = driver.run()
        driver.close()
        return Whole(folder / "search", driver.searcher._experiment, suggested)

    return run


def prefixes(directory: Path, target: Path, kind: str) -> Iterator[Path]:
    """The journal as it was before each entry of that kind, as if the driver had been killed there."""
    lines = (directory / "journal.jsonl").read_text().splitlines(keepends=True)
    for end, line in enumerate(lines):
        if json.loads(line)["type"] == kind:
            cut = target / f"cut-{end}" / directory.name
            cut.mkdir(parents=True)
            (cut / "journal.jsonl").write_text("".join(lines[:end]))
            yield cut


@pytest.mark.parametrize("text", [CONTINUOUS, CONDITIONAL], ids=["continuous", "conditional"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_cut_anywhere_makes_the_suggestions_of_the_uninterrupted_one(
    drive: Drive, run_whole: Run, tmp_path: Path, sampler: str, text: str
) -> None:
    whole = run_whole(sampler, text)
    assert [asked["number"] for asked in whole.suggested] == list(range(TRIALS))
    for number, cut in enumerate(prefixes(whole.directory, tmp_path, "suggested")):
        resumed = drive(cut, whole.experiment)
        assert resumed.ask()[1] == whole.suggested[number]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["report", "finished"])
def test_a_search_cut_within_a_trial_continues_as_the_uninterrupted_one(
    drive: Drive, run_whole: Run, tmp_path: Path, sampler: str, kind: str
) -> None:
    whole = run_whole(sampler)
    *_, cut, _, _ = prefixes(whole.directory, tmp_path, kind)
    resumed = drive(cut, whole.experiment)
    assert resumed.run() == whole.suggested[-3:]  # the interrupted trial comes first, unchanged
    assert [trial.values for trial in resumed.trials.values()] == [asked["values"] for asked in whole.suggested]


def rewritten(directory: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a search of which `change` has changed the entries of the journal."""
    entries = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    for entry in entries:
        change(entry)
        del entry["crc32c"]
    (target / directory.name).mkdir(parents=True)
    (target / directory.name / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return target / directory.name


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_journal_has_no_pickle(run_whole: Run, sampler: str) -> None:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for part in value.values():
                yield from texts(part)
        elif isinstance(value, str):
            yield value

    for line in (run_whole(sampler).directory / "journal.jsonl").read_text().splitlines():
        for text in texts(json.loads(line)):
            assert not text.startswith(pickle.dumps(None)[:2].hex())


class Planted:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.trace,)


@pytest.mark.parametrize("written", ["a pickle", "another text", "numbers of another size", "no numbers"])
def test_a_state_of_a_sampler_that_this_program_did_not_write_is_made_again_of_the_trials(
    drive: Drive, run_whole: Run, tmp_path: Path, written: str
) -> None:
    whole, trace = run_whole("cmaes"), tmp_path / "trace"
    longer = whole.experiment.search.trials + 10

    def change(entry: dict[str, Any]) -> None:
        if entry["type"] == "search":
            entry["planned"] = longer
        parts = [key for key in entry.get("sampler_state", {}) if key.startswith("cma:optimizer")]
        if not parts:
            return
        state = json.loads(bytes.fromhex("".join(entry["sampler_state"].pop(key) for key in parts)))
        match written:
            case "a pickle":
                planted = pickle.dumps(Planted(trace))
            case "another text":
                planted = b"once upon a time"
            case "numbers of another size":
                planted = json.dumps({**state, "_popsize": 10**9}).encode()
            case _:
                planted = json.dumps({**state, "_sigma": float("nan")}).encode()
        entry["sampler_state"]["cma:optimizer:0"] = planted.hex()

    cut = rewritten(whole.directory, tmp_path / "cut", change)
    resumed = drive(cut, whole.experiment)
    assert len(resumed.run()) == 10
    assert not trace.exists()
    made = [trial.sampler_state for trial in list(resumed.trials.values())[whole.experiment.search.trials :]]
    assert {state["cma:generation"] for state in made} >= {1, 2}, "the sampler begins again with its first generation"
    assert any("cma:optimizer:0" in state for state in made)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_suggested_twice(run_whole: Run, sampler: str) -> None:
    assert len({tuple(asked["values"].items()) for asked in run_whole(sampler).suggested}) == TRIALS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_two_of_several_at_a_time_are_the_same(drive: Drive, tmp_path: Path, sampler: str) -> None:
    made = drive(tmp_path / "search", experiment_of(tmp_path, sampler, trials=12), concurrency=4)
    running = [made.ask() for _ in range(4)]
    for _ in range(8):
        made.finish(*running.pop(1))
        running.append(made.ask())
    assert len({tuple(trial.values.items()) for trial in made.trials.values()}) == 12


@pytest.mark.parametrize("text", [CONTINUOUS, CONDITIONAL], ids=["continuous", "conditional"])
def test_a_search_longer_than_the_history_of_tpe_is_resumed_the_same(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(tpe, "HISTORY", 4)
    monkeypatch.setattr(tpe, "BEST", 2)
    experiment = experiment_of(tmp_path, "tpe", text, trials=18)
    whole = drive(tmp_path / "search", experiment)
    expected = whole.run()
    *_, cut, _ = prefixes(tmp_path / "search", tmp_path, "suggested")
    assert drive(cut, experiment).run() == expected[-2:]


def test_another_seed_is_another_search(drive: Drive, tmp_path: Path) -> None:
    first = drive(tmp_path / "a", experiment_of(tmp_path, "tpe", trials=3))
    second = drive(tmp_path / "b", experiment_of(tmp_path, "tpe", CONTINUOUS.replace("seed: 3", "seed: 4"), trials=3))
    one, other = first.run(), second.run()
    assert one[0]["values"] == other[0]["values"]  # the defaults
    assert one[1]["values"] != other[1]["values"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trial_0_is_the_untuned_model(drive: Drive, tmp_path: Path, sampler: str) -> None:
    experiment = experiment_of(tmp_path, sampler, CONDITIONAL)
    made = drive(tmp_path / "search", experiment)
    _, asked = made.ask()
    assert asked["values"] == experiment.space.defaults()
    assert asked["values"]["model.dropout"] == 0.3 and asked["number"] == 0


def test_a_suggestion_is_on_the_disk_before_it_is_returned(driver: Driver) -> None:
    for _ in range(3):
        name, asked = driver.ask()
        on_disk = journal.read(driver.journal.directory).trials[asked["trial_id"]]
        assert (on_disk.number, on_disk.values, on_disk.status) == (asked["number"], asked["values"], "running")
        driver.finish(name, asked)


def test_a_driver_that_cannot_write_suggests_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **fields: Any) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr(driver.journal, "append", refuse)
    assert driver.ask() == ("tune-1", None)
    assert driver.stop.fatal_error == "the storage: OSError: no space left on the device"


def test_unfinished_trials_come_first_with_their_numbers_and_ids(drive: Drive, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "tpe", trials=6)
    first = drive(tmp_path / "search", experiment, concurrency=4)
    asked = [first.ask() for _ in range(4)]
    first.finish(*asked[1])
    first.fail(*asked[2])
    first.close()
    resumed = drive(tmp_path / "search", experiment, concurrency=3)
    again = [resumed.ask()[1] for _ in range(3)]
    assert again[:2] == [asked[0][1], asked[3][1]]
    assert again[2]["number"] == 4 and again[2]["trial_id"] not in {config["trial_id"] for _, config in asked}


def test_a_failure_of_the_settings_is_worse_than_every_score_and_any_other_says_nothing(
    drive: Drive, tmp_path: Path
) -> None:
    experiment = experiment_of(tmp_path, "random", trials=5)
    driver = drive(tmp_path / "search", experiment)
    driver.fail(*driver.ask(), cause="other")
    driver.finish(*driver.ask())
    driver.fail(*driver.ask(), cause="settings")
    name, lost = driver.ask()
    driver.searcher.on_trial_complete(name, None, error=True)
    driver.journal.append("failed", id=lost["trial_id"], error="its slot was lost", cause="other")
    driver.ask()
    expected = [(TrialState.FAIL, None), (TrialState.COMPLETE, driver.study.trials[1].value)]
    expected += [(TrialState.COMPLETE, -math.inf), (TrialState.FAIL, None), (TrialState.RUNNING, None)]
    assert [(trial.state, trial.value) for trial in driver.study.trials] == expected
    resumed = drive(tmp_path / "search", experiment)
    assert [(trial.state, trial.value) for trial in resumed.study.trials] == expected


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_sampler_leaves_the_part_of_the_space_in_which_trials_fail(
    drive: Drive, tmp_path: Path, sampler: str
) -> None:
    text = CONTINUOUS.replace("{loguniform: [1e-4, 1e-1]}", "{loguniform: [1e-4, 1e2], default: 1e-3}")
    driver = drive(tmp_path / "search", experiment_of(tmp_path, sampler, text, trials=40))
    failed = []
    while "values" in (asked := driver.ask())[1]:
        diverges = asked[1]["values"]["optimizer.learning_rate"] > 0.1
        failed.append(diverges)
        driver.fail(*asked, cause="settings") if diverges else driver.finish(*asked)
    assert sum(failed[-20:]) <= 7


FINITE = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.3}", "{choice: [0.1, 0.3, 0.5]}").replace(
    "{loguniform: [1e-4, 1e-1]}", "{quniform: [0.01, 0.04, 0.01]}"
)


def number_of(values: dict[str, Any]) -> float:
    return float(values["model.dropout"]) + values["optimizer.learning_rate"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_finite_space_is_tried_once_and_ends_the_search(drive: Drive, tmp_path: Path, sampler: str) -> None:
    experiment = experiment_of(tmp_path, sampler, FINITE, trials=30)
    driver, cut = drive(tmp_path / "search", experiment), 7
    for position in range(12):
        name, asked = driver.ask()
        gap = 0.5 + number_of(asked["values"]) / 10
        driver.journal.append("report", id=asked["trial_id"], epoch=1, metrics={"gap": gap})
        driver.searcher.on_trial_complete(name, {"gap_best": gap})
        driver.journal.append("finished", id=asked["trial_id"], stopped_by=None)
        if position == cut:
            driver.close()
            driver = drive(tmp_path / "search", experiment)
    assert "score" in driver.ask()[1] and driver.stop.ended_by == "exhausted"
    assert len({tuple(trial.values.items()) for trial in driver.trials.values()}) == len(driver.trials) == 12
    assert experiment.space.num_combinations == 12


def test_a_trial_whose_workers_were_killed_may_be_drawn_again(drive: Drive, tmp_path: Path) -> None:
    text = FINITE.replace("{quniform: [0.01, 0.04, 0.01]}", "0.01").replace("[0.1, 0.3, 0.5]", "[0.1, 0.3]")
    driver = drive(tmp_path / "search", experiment_of(tmp_path, "tpe", text, trials=4))
    driver.fail(*driver.ask(), cause="other")
    driver.fail(*driver.ask(), cause="settings")
    driver.fail(*driver.ask(), cause="settings")
    dropouts = [trial.values["model.dropout"] for trial in driver.trials.values()]
    assert dropouts in (["0.1", "0.3", "0.1"], ["0.1", "0.1", "0.3"])
    assert driver.ask()[1] == Searcher.FINISHED


def test_the_same_settings_may_be_tried_with_another_seed(drive: Drive, tmp_path: Path) -> None:
    text = FINITE.replace("{quniform: [0.01, 0.04, 0.01]}", "0.01").replace(
        "    search:", "    training: {seed: per_trial}\n    search:"
    )
    driver = drive(tmp_path / "search", experiment_of(tmp_path, "random", text, trials=9))
    asked = []
    while "values" in (one := driver.ask())[1]:
        driver.fail(*one, cause="settings")
        asked.append(one[1]["values"]["model.dropout"])
    assert len(asked) == 9 and set(asked) == {"0.1", "0.3", "0.5"}


def test_ones_own_configurations_come_after_the_defaults(drive: Drive, tmp_path: Path) -> None:
    own = "first: [{optimizer.learning_rate: 0.02}, {model.dropout: 0.3}, {model: {dropout: 0.6}}], sampler"
    experiment = experiment_of(tmp_path, "tpe", CONTINUOUS.replace("sampler", own), trials=5)
    driver = drive(tmp_path / "search", experiment)
    defaults = experiment.space.defaults()
    expected = [defaults, {**defaults, "optimizer.learning_rate": 0.02}, {**defaults, "model.dropout": 0.6}]
    for _ in range(2):
        driver.finish(*driver.ask())
    resumed = drive(tmp_path / "search", experiment)
    resumed.run()
    tried = [trial.values for trial in resumed.trials.values()]
    assert tried[:3] == expected and len(tried) == 5  # {model.dropout: 0.3} is the defaults


def test_a_trial_whose_slot_was_lost_is_given_to_another_one(driver: Driver) -> None:
    name, lost = driver.ask()
    driver.trials[lost["trial_id"]].failures += 1  # the recorder counts it
    driver.searcher.on_trial_complete(name, None, error=True)
    assert driver.ask()[1] == {**lost, "failures": 1}
    assert [trial.state for trial in driver.study.trials] == [TrialState.RUNNING]


def test_a_resumed_study_holds_what_the_journal_holds(drive: Drive, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "tpe", CONDITIONAL, trials=6)
    first = drive(tmp_path / "search", experiment, concurrency=4)
    asked = [first.ask() for _ in range(4)]
    first.finish(*asked[0])
    first.fail(*asked[1])
    first.finish(*asked[3])
    asked.append(first.ask())
    first.close()
    resumed = drive(tmp_path / "search", experiment, concurrency=4)
    states = [TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE, TrialState.RUNNING]
    assert [trial.state for trial in resumed.study.trials] == states
    assert [trial.params for trial in resumed.study.trials] == [config["values"] for _, config in asked]
    assert [trial.values for trial in resumed.study.trials] == [trial.values for trial in first.study.trials]
    assert [t.distributions for t in resumed.study.trials] == [t.distributions for t in first.study.trials]


def test_the_score_is_the_best_epoch(driver: Driver) -> None:
    name, asked = driver.ask()
    for epoch, gap in enumerate((0.3, 0.7, 0.5), start=1):
        driver.journal.append("report", id=asked["trial_id"], epoch=epoch, metrics={"gap": gap})
    driver.searcher.on_trial_complete(name, {"gap": 0.5, "gap_best": 0.7})
    driver.journal.append("finished", id=asked["trial_id"], stopped_by=None)
    driver.ask()
    assert driver.study.trials[0].value == driver.trials[asked["trial_id"]].score == 0.7


def test_nothing_is_suggested_beyond_the_concurrency(drive: Drive, tmp_path: Path) -> None:
    driver = drive(tmp_path / "search", experiment_of(tmp_path, "tpe", trials=6), concurrency=2)
    first, second, none = (driver.ask() for _ in range(3))
    assert none[1] is None and len(driver.trials) == 2
    driver.fail(*first)
    assert driver.ask()[1]["number"] == 2
    assert driver.ask()[1] is None
    driver.finish(*second)
    assert driver.ask()[1]["number"] == 3


def test_what_was_planned_is_suggested_and_then_no_more(driver: Driver) -> None:
    assert len(driver.run()) == 4
    assert driver.ask()[1] == driver.ask()[1] == Searcher.FINISHED
    assert len(driver.trials) == 4


def test_an_extended_search_makes_the_suggestions_of_a_longer_one(drive: Drive, tmp_path: Path) -> None:
    longer = drive(tmp_path / "longer", experiment_of(tmp_path, "tpe", trials=14))
    expected = [asked["values"] for asked in longer.run()]
    experiment = experiment_of(tmp_path, "tpe", trials=11)
    first = drive(tmp_path / "search", experiment)
    first.run()
    first.journal.append("ended", reason="planned")
    first.journal.append("extended", trials=3)
    first.close()
    extended = drive(tmp_path / "search", experiment)
    assert [asked["values"] for asked in extended.run()] == expected[11:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conditional_parameters_come_only_with_their_branch(run_whole: Run, sampler: str) -> None:
    whole = run_whole(sampler, CONDITIONAL)
    branches = set()
    for asked in whole.suggested:
        values = asked["values"]
        branches.add(values["loss.l2"])
        assert ("loss.l2.loguniform" in values) == (values["loss.l2"] == "loguniform")
        whole.experiment.trial_config(values)
    assert branches == {"0", "loguniform"}


def test_a_snapshot_of_tune_holds_nothing_of_the_searcher(driver: Driver, tmp_path: Path) -> None:
    driver.ask()
    driver.searcher.save_to_dir(str(tmp_path / "snapshot"))
    assert not (tmp_path / "snapshot").exists()
    assert driver.searcher.__getstate__() == {}


GRID = """\
experiments:
  tiny:
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {choice: [{kind: logistic}, {kind: linear, penalty: {quniform: [1, 3, 1]}}]}
    optimizer: {kind: adam, learning_rate: 1e-3}
    search: {sampler: {kind: grid}}
"""


def test_a_grid_is_tried_once_even_with_a_resume(tmp_path: Path) -> None:
    (tmp_path / "experiments.yaml").write_text(GRID)
    experiment = load(tmp_path / "experiments.yaml", "tiny")
    assert experiment.search.trials == 4
    suggested = []
    for _ in range(2):
        driver = Driver(tmp_path / "search", experiment)
        for _ in range(2):
            suggestion = driver.searcher.suggest(f"trial-{len(suggested)}")
            suggested.append(suggestion["values"])
            driver.searcher.on_trial_complete(f"trial-{len(suggested) - 1}", {"gap_best": 0.5})
            driver.journal.append("finished", id=suggestion["trial_id"], stopped_by=None)
        over = driver.searcher.suggest("one more") == Searcher.FINISHED if len(suggested) == 4 else None
        driver.close()
    assert suggested == experiment.space.grid and over


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{sampler:",
            "{trials: 3, sampler:",
            "the grid has 4 combinations, a trial for each; leave trials out .got 3.",
        ),
        ("quniform: [1, 3, 1]", "uniform: [1, 3]", "model.linear.penalty has infinitely many values"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "experiments.yaml").write_text(GRID.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "experiments.yaml", "tiny")


def test_the_best_trial_is_scored_on_a_slot_when_all_have_ended(tmp_path: Path, drive: Drive) -> None:
    driver = drive(tmp_path / "s", experiment_of(tmp_path, "random", trials=2), concurrency=2)
    first, second = driver.ask(), driver.ask()
    driver.finish(*first)
    assert driver.ask()[1] is None  # the other one may become the best
    driver.finish(*second)
    best = max((first, second), key=lambda asked: score(asked[1]["values"]))[1]["trial_id"]
    assert driver.ask()[1] == {"trial_id": best, "score": True}
    assert driver.ask()[1] == Searcher.FINISHED
    assert not driver.searcher._stop.trains


def test_a_best_trial_that_is_scored_is_not_scored_again(tmp_path: Path, drive: Drive) -> None:
    driver = drive(tmp_path / "s", experiment_of(tmp_path, "random", trials=1))
    (done,) = driver.run()
    driver.journal.append("winner", id=done["trial_id"], metrics={"validate": {"gap": 0.5}})
    driver.close()
    assert drive(tmp_path / "s", experiment_of(tmp_path, "random", trials=1)).ask()[1] == Searcher.FINISHED

"""A search that begins with what earlier ones know."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.test_searcher import CONTINUOUS as OF_DEFAULTS
from tests.search.test_searcher import Driver
from tests.search.test_searcher import experiment_of as experiment_in
from tuner.config.experiment import STORED, Experiment, load
from tuner.errors import SearchError
from tuner.search import warm_start
from tuner.storage import journal
from tuner.storage.journal import SearchHistory

# The defaults are not the best.
CONTINUOUS = OF_DEFAULTS.replace("default: 0.3", "default: 0.6")
HERE: Any = SimpleNamespace(fingerprint="f")
ELSEWHERE: Any = SimpleNamespace(fingerprint="g")


OPENED: list[Driver] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Closes the journals of all drivers after the test."""
    yield
    while OPENED:
        OPENED.pop().close()


def driver_of(directory: Path, experiment: Experiment) -> Driver:
    OPENED.append(Driver(directory, experiment))
    return OPENED[-1]


def experiment_of(folder: Path, sampler: str, text: str = CONTINUOUS, trials: int = 6) -> Experiment:
    return experiment_in(folder, sampler, text, trials)


def earlier_search(folder: Path, text: str = CONTINUOUS, trials: int = 12, id: str = "20260101-000000-0001") -> Path:
    """A search of `tiny` on the data of HERE, that has ended."""
    experiment = experiment_of(folder, "random", text, trials=trials)
    directory = folder / "storage" / "tiny" / id
    driver = driver_of(directory, experiment)
    driver.run()
    driver.journal.append("ended", reason="planned")
    (directory / STORED).write_text(experiment.to_yaml())
    return directory


def warmed(folder: Path, experiment: Experiment, data: Any = HERE, *names: str) -> tuple[Driver, list[str]]:
    """The driver of a new search that was told what earlier ones know, and what was said."""
    directory = folder / "storage" / "tiny" / "20260202-000000-0001"
    driver = driver_of(directory, experiment)
    found = warm_start.find(names or ("tiny",), folder / "storage")
    said = warm_start.begin(driver.journal, experiment, data, found)
    return driver_of(directory, experiment), said


def history(directory: Path) -> SearchHistory:
    return journal.read(directory)


def test_the_trials_of_an_earlier_search_teach_the_sampler(tmp_path: Path) -> None:
    earlier = history(earlier_search(tmp_path))
    experiment = experiment_of(tmp_path, "tpe", trials=6)
    driver, said = warmed(tmp_path, experiment)
    of = f"search {earlier.id} of tiny"
    assert said == [
        f"warm start: 12 of 12 trials of {of} teach the sampler",
        "warm start: results that are known, and not trained again: 2",
    ]
    taught = {tuple(one["values"].items()): one["score"] for one in driver.journal.search.taught}
    best = earlier.finished[0]
    assert taught == {
        tuple(trial.values.items()): trial.score for trial in earlier.finished if trial.number and trial is not best
    }
    suggested = driver.run()
    assert [asked["number"] for asked in suggested] == [2, 3, 4, 5]
    cold = driver_of(tmp_path / "cold", experiment)
    assert [asked["values"] for asked in cold.run()][2:] != [asked["values"] for asked in suggested]


def test_the_defaults_and_the_best_known_trial_are_trials_with_their_results(tmp_path: Path) -> None:
    earlier = history(earlier_search(tmp_path))
    driver, _ = warmed(tmp_path, experiment_of(tmp_path, "tpe", trials=6))
    zero, one = driver.trials.values()
    assert (zero.status, zero.values, zero.score) == ("finished", *_of(next(iter(earlier.trials.values()))))
    assert (one.status, one.values, one.score) == ("finished", *_of(earlier.finished[0]))
    assert one.known == {"search": earlier.id, "trial": earlier.finished[0].id}


def _of(trial: journal.TrialHistory) -> tuple[dict[str, Any], float | None]:
    return trial.values, trial.score


def test_what_an_earlier_search_has_tried_is_not_drawn_again(tmp_path: Path) -> None:
    finite = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.6}", "{quniform: [0.1, 0.5, 0.2]}").replace(
        "{loguniform: [1e-4, 1e-1]}", "{quniform: [0.01, 0.02, 0.01]}"
    )
    directory = earlier_search(tmp_path, finite, trials=4)
    earlier = {tuple(trial.values.items()) for trial in history(directory).trials.values()}
    driver, _ = warmed(tmp_path, experiment_of(tmp_path, "tpe", finite, trials=9))
    new = {tuple(asked["values"].items()) for asked in driver.run()}
    assert len(new) == 2 and not new & earlier
    assert driver.stop.ended_by == "exhausted"


def test_a_step_that_optuna_has_drawn_is_the_one_that_was_written(tmp_path: Path) -> None:
    """Optuna draws 0.30000000000000004 for the 0.3 of `search.first`."""
    steps = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.6}", "{quniform: [0.1, 0.5, 0.2]}")
    directory = earlier_search(tmp_path, steps, trials=12)
    drawn = [trial for trial in history(directory).finished if trial.values["model.dropout"] == 0.1 + 0.2]
    assert drawn and drawn[0].values["model.dropout"] != 0.3
    rate = drawn[0].values["optimizer.learning_rate"]
    own = f"first: [{{model.dropout: 0.3, optimizer.learning_rate: {rate!r}}}], sampler"
    driver, _ = warmed(tmp_path, experiment_of(tmp_path, "tpe", steps.replace("sampler", own), trials=6))
    taken = [trial.known["trial"] for trial in driver.trials.values() if trial.known]
    assert drawn[0].id in taken and len(set(taken)) == len(taken)


def test_a_trial_outside_of_the_new_space_or_with_other_settings_does_not_teach(tmp_path: Path) -> None:
    earlier = history(earlier_search(tmp_path))
    narrow = CONTINUOUS.replace("{uniform: [0.1, 0.6], default: 0.6}", "{uniform: [0.1, 0.4], default: 0.3}")
    _, (said, *_) = warmed(tmp_path, experiment_of(tmp_path, "tpe", narrow, trials=6))
    inside = [trial for trial in earlier.finished if trial.values["model.dropout"] <= 0.4]
    assert 0 < len(inside) < 12 and said.startswith(f"warm start: {len(inside)} of 12 trials of ")
    assert "model.dropout: not in [0.1, 0.4]" in said
    other = CONTINUOUS.replace("hidden: 4", "hidden: 8")
    (tmp_path / "other").mkdir()
    experiment = experiment_of(tmp_path / "other", "tpe", other, trials=6)
    one = warm_start.Earlier.read(tmp_path / "storage" / "tiny" / earlier.id, experiment, HERE)
    assert one.usable == [] and list(one.refused) == ["model.hidden: is 8 in every trial, and not searched"]


def test_failures_of_the_settings_teach_and_killed_workers_do_not(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "random", trials=3)
    directory = tmp_path / "storage" / "tiny" / "20260101-000000-0001"
    first = driver_of(directory, experiment)
    first.finish(*first.ask())
    first.fail(*first.ask(), cause="settings")
    first.fail(*first.ask(), cause="other")
    (directory / STORED).write_text(experiment.to_yaml())
    driver, _ = warmed(tmp_path, experiment_of(tmp_path, "tpe", trials=6))
    failed = next(trial for trial in history(directory).trials.values() if trial.cause == "settings")
    taught = driver.journal.search.taught
    assert [(one["values"], one["score"]) for one in taught] == [(failed.values, None)]


def test_the_best_configurations_of_a_search_on_other_data_are_tried_first(tmp_path: Path) -> None:
    earlier = history(earlier_search(tmp_path))
    driver, (said,) = warmed(tmp_path, experiment_of(tmp_path, "tpe", trials=12), ELSEWHERE)
    assert said.endswith(
        "have settings that can be tried; it had other data, so its scores do not compare, and its best "
        "configurations are tried first"
    )
    assert driver.journal.search.taught == []
    first = [asked["values"] for asked in driver.run()][1:4]
    expected = [trial.values for trial in earlier.finished if trial.number]
    assert first == expected[:3] or first[0] == expected[0]


def test_a_driver_killed_before_the_entry_leaves_a_search_that_is_still_to_be_warmed(tmp_path: Path) -> None:
    earlier_search(tmp_path)
    driver, _ = warmed(tmp_path, experiment_of(tmp_path, "tpe", trials=6))
    search, lines = driver.journal.search, (driver.journal.directory / journal.FILE).read_bytes().splitlines(True)
    assert search.warmed and len(lines) == 2, "all that it knows is one entry"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / journal.FILE).write_bytes(lines[0])
    cut = journal.read(tmp_path / "cut")
    assert not cut.warmed and cut.trials == {}


def test_the_resumed_search_makes_the_suggestions_of_the_uninterrupted_one(tmp_path: Path) -> None:
    earlier_search(tmp_path)
    experiment = experiment_of(tmp_path, "tpe", trials=6)
    driver, _ = warmed(tmp_path, experiment)
    lines = (driver.journal.directory / journal.FILE).read_bytes().splitlines(True)
    expected = driver.run()
    for end in range(2, len((driver.journal.directory / journal.FILE).read_bytes().splitlines())):
        every = (driver.journal.directory / journal.FILE).read_bytes().splitlines(True)
        cut = tmp_path / f"cut-{end}" / driver.journal.directory.name
        cut.mkdir(parents=True)
        (cut / journal.FILE).write_bytes(b"".join(every[:end]))
        resumed = driver_of(cut, experiment)
        resumed.run()
        assert [trial.values for trial in resumed.trials.values()][2:] == [asked["values"] for asked in expected]
    assert len(lines) == 2


def test_a_search_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    earlier_search(tmp_path)
    with pytest.raises(SearchError, match="no search of an experiment 'tinyy'; did you mean 'tiny'"):
        warm_start.find(["tinyy"], tmp_path / "storage")
    with pytest.raises(SearchError, match="no search '20270101-000000-0001'"):
        warm_start.find(["20270101-000000-0001"], tmp_path / "storage")


def test_an_earlier_search_that_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    directory = earlier_search(tmp_path)
    (directory / journal.FILE).write_text("{}\n")
    _, (said,) = warmed(tmp_path, experiment_of(tmp_path, "tpe", trials=6))
    assert said.startswith(f"warm start: search {directory.name} is left out: ")


def test_names_are_read_from_the_yaml(tmp_path: Path) -> None:
    text = CONTINUOUS % (3, "tpe")
    (tmp_path / "experiments.yaml").write_text(text.replace("trials: 3", "trials: 3, warm_start: [tiny]"))
    assert load(tmp_path / "experiments.yaml", "tiny").search.warm_start == ("tiny",)

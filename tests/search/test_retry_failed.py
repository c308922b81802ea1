"""`--retry-failed`: failed trials are tried again, under their own ids, whatever entry the journal was cut after."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.test_cut_journals import EPOCHS, EXPERIMENT, Silent, drive, gap, told
from tuner.config.experiment import Experiment, load
from tuner.errors import SearchError
from tuner.search.begin import Options, begin, folder_and_experiment
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal

ID = "20260102-030405-0001"


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT)
    return load(tmp_path / "experiments.yaml", "tiny")


def add_failed(directory: Path, experiment: Experiment, cause: str, ended: str | None) -> None:
    """Add a search of three trials: 0 has failed in its second epoch, 1 has finished, 2 has failed at once."""
    opened = Journal(directory)
    facts: dict[str, Any] = {"fingerprint": "f", "planned": 3, "tracking_uri": "-", "overrides": []}
    opened.append("search", version=journal.VERSION, id=ID, experiment="tiny", baseline=0.1, **facts)
    (directory / "experiment.yaml").write_text(experiment.to_yaml())
    states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
    for number in range(3):
        values = {**experiment.space.defaults(), "model.dropout": 0.1 + number / 10}
        opened.append("suggested", number=number, id=f"t{number}", values=values, settings={}, place=number, **states)
    opened.append("report", id="t0", epoch=1, metrics={"gap": gap(0, 1)})
    opened.append("failed", id="t0", error="its workers were killed", cause=cause)
    for epoch in range(1, EPOCHS + 1):
        opened.append("report", id="t1", epoch=epoch, metrics={"gap": gap(1, epoch)})
    opened.append("finished", id="t1", stopped_by=None)
    opened.append("failed", id="t2", error="a shard is damaged", cause=cause)
    if ended:
        opened.append("ended", reason=ended)
        opened.append("tracked")
    opened.close()


def retry(directory: Path, experiment: Experiment) -> list[str]:
    """Write what `--retry-failed` writes; returns what it prints."""
    said: list[str] = []
    opened = Journal(directory)
    options = Options(storage=directory.parent.parent, retry_failed=True)
    begin(opened, experiment, options, "-", SimpleNamespace(fingerprint="f"), said.append)  # type: ignore[arg-type]
    opened.close()
    return said


def test_why_each_had_failed_is_said_and_they_are_running_again(tmp_path: Path, experiment: Experiment) -> None:
    directory = tmp_path / "storage" / "tiny" / ID
    add_failed(directory, experiment, "other", "planned")
    options = Options(storage=tmp_path / "storage", retry_failed=True)
    assert folder_and_experiment(experiment.file, "tiny", options)[0] == directory
    first, *why = retry(directory, experiment)
    assert first.endswith(": 2")
    assert [line.split()[1] for line in why] == ["000", "002"]
    assert why[0].endswith("its workers were killed") and "last checkpoint" in why[0]
    search = journal.read(directory)
    assert [trial.status for trial in search.trials.values()] == ["running", "finished", "running"]
    assert (search.num_ended, search.ended, search.failed) == (1, None, [])
    assert search.trials["t0"].reports.keys() == {1} and search.trials["t0"].error is None
    with pytest.raises(SearchError, match=r"no trial of search .* has failed; .*--resume"):
        folder_and_experiment(experiment.file, "tiny", options)


@pytest.mark.parametrize("rule", ["goal", "plateau", "time_budget"])
def test_a_search_whose_rule_would_end_the_trials_again_is_refused(
    tmp_path: Path, experiment: Experiment, rule: str
) -> None:
    add_failed(tmp_path / "storage" / "tiny" / ID, experiment, "other", rule)
    with pytest.raises(SearchError, match=rf"search\.{rule} would end"):
        folder_and_experiment(experiment.file, "tiny", Options(storage=tmp_path / "storage", retry_failed=True))


@pytest.mark.parametrize("cause", ["other", "settings"])
def test_a_retry_that_is_cut_anywhere_leads_to_the_same_end(tmp_path: Path, experiment: Experiment, cause: str) -> None:
    directory = tmp_path / "tiny" / ID
    add_failed(directory, experiment, cause, "failures")
    retry(directory, experiment)
    begun = len((directory / "journal.jsonl").read_bytes().splitlines())
    expected = told(drive(directory, experiment))
    assert [status for _, _, status, _, _ in expected] == ["finished"] * 3
    lines = (directory / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for end in range(begun, len(lines)):
        cut = tmp_path / f"cut-{end}"
        cut.mkdir()
        (cut / "journal.jsonl").write_bytes(b"".join(lines[:end]) + lines[end][: len(lines[end]) // 2])
        assert told(drive(cut, experiment)) == expected, f"cut after entry {end}: {lines[end - 1]!r}"


@pytest.mark.parametrize("cause", ["other", "settings"])
def test_checkpoints_stay_unless_the_settings_made_the_trial_fail(
    tmp_path: Path, experiment: Experiment, cause: str
) -> None:
    add_failed(tmp_path / "tiny" / ID, experiment, cause, "planned")
    retry(tmp_path / "tiny" / ID, experiment)
    opened = Journal(tmp_path / "tiny" / ID)
    assert opened.search is not None
    state = opened.directory / "trials" / "t0" / "epoch-0001" / "training.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    scheduler = ReplayingScheduler(experiment.search.scheduler, opened.search, EPOCHS)
    stop = StopRule(experiment, opened.search)
    recorder = Recorder(experiment, opened, Silent(), Silent(), scheduler, stop)  # type: ignore[arg-type]
    trial = SimpleNamespace(config={"trial_id": "t0"}, get_error=lambda: None)
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, {"error": "it failed again", "cause": cause})
    recorder.on_trial_complete(0, [], trial)
    assert opened.search.trials["t0"].status == "failed"
    assert state.exists() == (cause == "other")
    opened.close()

"""A journal that is cut after any of its entries, as by a kill -9: the search ends with the same verdicts."""

import itertools
import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from tuner.config.experiment import Experiment, load
from tuner.search.recorder import Recorder
from tuner.search.schedulers import ReplayingScheduler
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal, SearchHistory, TrialHistory

EPOCHS, TRIALS = 5, 7
EXPERIMENT = """\
experiments:
  tiny:
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {kind: fused_mlp, towers: {rgb: 4}, hidden: 4, dropout: {uniform: [0.1, 0.6]}}
    optimizer: {kind: adam, learning_rate: 0.01}
    training: {epochs: 5}
    search: {trials: 7, sampler: {kind: random}, scheduler: {kind: asha, grace: 1, reduction: 2}}
"""


class Silent:
    """Stands for the tracker and the console."""

    def together(self, trial: TrialHistory) -> AbstractContextManager[None]:
        return nullcontext()

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments, **options: None


def gap(number: int, epoch: int) -> float:
    return random.Random(number).random() / 2 + epoch / 100


def drive(directory: Path, experiment: Experiment, stored: int = 0) -> SearchHistory:
    """Run the rest of a search as Tune does, one trial at a time.

    Args:
        directory: of the search.
        experiment: what it searches.
        stored: how many checkpoints an unfinished trial has beyond the epochs in the journal.
    """
    opened = Journal(directory)
    if opened.search is None:
        facts: dict[str, Any] = {"fingerprint": "f", "planned": TRIALS, "tracking_uri": "-", "overrides": []}
        opened.append("search", version=journal.VERSION, id="s", experiment="tiny", baseline=0.1, **facts)
    search = opened.search
    assert search is not None
    stop, scheduler = StopRule(experiment, search), ReplayingScheduler(experiment.search.scheduler, search, EPOCHS)
    recorder = Recorder(experiment, opened, Silent(), Silent(), scheduler, stop)  # type: ignore[arg-type]
    recorder.catch_up()
    searcher = JournaledSearch(experiment, opened, lambda: 1, stop)
    for asked in itertools.count():
        if stop.stop_all():
            break
        config = searcher.suggest(f"tune-{asked}")
        if not isinstance(config, dict) or "score" in config:
            break
        trial = SimpleNamespace(trial_id=f"tune-{asked}", config=config, get_error=lambda: None)
        number, known = config["number"], search.trials[config["trial_id"]].last_epoch
        scheduler.on_trial_add(None, trial)
        recorder.on_trial_start(0, [], trial)
        resumed = min(known + stored, EPOCHS) if known else 0
        best = 0.0
        for epoch in range(max(resumed, 1), EPOCHS + 1):
            best = max(gap(number, each) for each in range(1, epoch + 1))
            result: dict[str, Any] = {"epoch": epoch, "epochs": EPOCHS, "gap": gap(number, epoch), "tags": {}}
            result["gap_best"] = best
            if epoch == resumed:
                result["history"] = [
                    {"epoch": each, "gap": gap(number, each), "gap_best": gap(number, each)}
                    for each in range(1, epoch + 1)
                ]
            decision = scheduler.on_trial_result(None, trial, result)
            recorder.on_trial_result(0, [], trial, result)
            searcher.on_trial_result(trial.trial_id, result)
            if decision == TrialScheduler.STOP:
                break
            if stop.stop_all():
                break
        recorder.on_trial_complete(0, [], trial)
        searcher.on_trial_complete(trial.trial_id, result)
    opened.close()
    return search


def told(search: SearchHistory) -> list[tuple[Any, ...]]:
    return [(t.number, t.values, t.status, t.stopped_by, t.reports) for t in search.trials.values()]


@pytest.mark.parametrize("scheduler, stored", [("asha", 0), ("asha", 2), ("median", 1)])
def test_a_journal_that_is_cut_anywhere_leads_to_the_same_verdicts(tmp_path: Path, scheduler: str, stored: int) -> None:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT.replace("kind: asha", f"kind: {scheduler}"))
    experiment = load(tmp_path / "experiments.yaml", "tiny")
    expected = told(drive(tmp_path / "whole", experiment))
    assert {by for _, _, _, by, _ in expected} == {None, scheduler}, "some trials complete, and some are stopped"
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for end in range(1, len(lines)):
        cut = tmp_path / f"cut-{end}"
        cut.mkdir()
        (cut / "journal.jsonl").write_bytes(b"".join(lines[:end]) + lines[end][: len(lines[end]) // 2])  # a torn line
        assert told(drive(cut, experiment, stored)) == expected, f"cut after entry {end}: {lines[end - 1]!r}"


@pytest.mark.parametrize("stored", [0, 1])
def test_a_search_that_has_reached_its_goal_ends_so_wherever_it_was_cut(tmp_path: Path, stored: int) -> None:
    goal = gap(2, 3)  # the first trial that reaches it does so in its third epoch
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT.replace("{trials: 7", f"{{trials: 7, goal: {goal}"))
    experiment = load(tmp_path / "experiments.yaml", "tiny")
    expected = told(drive(tmp_path / "whole", experiment))
    assert [by for _, _, _, by, _ in expected][-1] == "goal" and len(expected) < TRIALS
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for end in range(1, len(lines)):
        cut = tmp_path / f"cut-{end}"
        cut.mkdir()
        (cut / "journal.jsonl").write_bytes(b"".join(lines[:end]))
        assert told(drive(cut, experiment, stored)) == expected, f"cut after entry {end}: {lines[end - 1]!r}"

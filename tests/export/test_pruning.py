"""The best trials keep their weights, unfinished ones their checkpoints; everything else of an ended trial goes."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import refusal_of, run_command
from tests.support.finished import FinishedSearch
from tests.support.trials import trial
from tuner.export.pruning import BestTrials, needless, remove_needless
from tuner.storage import journal, lock
from tuner.storage.journal import Journal, SearchHistory, TrialHistory

Printed = pytest.CaptureFixture[str]


def stored(directory: Path) -> set[str]:
    """The checkpoints of a search, and what else lies in the folders of its trials."""
    return {str(path.relative_to(directory / "trials")) for path in directory.glob("trials/*/*")}


@pytest.fixture
def mixed(own: FinishedSearch) -> FinishedSearch:
    """A search with checkpoints of its failed and its unfinished trial as well, and files of Ray."""
    for id in ("trial-2", "trial-3"):
        shutil.copytree(own.directory / "trials" / "trial-0", own.directory / "trials" / id)
    (own.directory / "ray" / "attempt-1").mkdir(parents=True)
    (own.directory / "ray" / "attempt-1" / "tuner.pkl").write_bytes(b"x" * 2**20)
    return own


def test_what_neither_a_resume_nor_an_export_needs_is_found(mixed: FinishedSearch) -> None:
    for keep, kept in ((1, {"trial-1"}), (2, {"trial-0", "trial-1"}), ("all", {"trial-0", "trial-1"})):
        found = needless(mixed.directory, mixed.search, keep)  # type: ignore[arg-type]
        gone = {str(path.relative_to(mixed.directory)) for path in found}
        best = {f"trials/{id}/epoch-{3 - (mixed.search.trials[id].best_epoch or 0):04d}" for id in kept}
        assert gone == {"ray", "trials/trial-2", *best, *({"trials/trial-0"} if keep == 1 else ())}


def test_an_unknown_folder_is_left_alone(mixed: FinishedSearch) -> None:
    (mixed.directory / "trials" / "mine").mkdir()
    remove_needless(mixed.directory, mixed.search, 1, lambda line: None)
    assert {path.name for path in (mixed.directory / "trials").iterdir()} == {"trial-1", "trial-3", "mine"}
    assert not needless(mixed.directory, mixed.search, 1)


def test_where_the_best_checkpoint_is_incomplete_the_others_stay(mixed: FinishedSearch) -> None:
    best = mixed.directory / "trials" / "trial-1" / f"epoch-{mixed.best.best_epoch:04d}"
    (best / "checkpoint.json").unlink()
    remove_needless(mixed.directory, mixed.search, 1, lambda line: None)
    assert {name for name in stored(mixed.directory) if name.startswith("trial-1")} == {
        "trial-1/epoch-0001",
        "trial-1/epoch-0002",
    }


@pytest.mark.parametrize("keep", [1, 3, "all"])
def test_while_a_search_runs_exactly_the_best_so_far_are_stored(tmp_path: Path, keep: Any) -> None:
    """Trials that end in any order, with equal scores, failures, and a driver that begins again in between."""
    rng = random.Random(0)
    search = SearchHistory(id="s", experiment="tiny", fingerprint="f", planned=40, tracking_uri="-")
    best = BestTrials(tmp_path, search, keep)
    for number in rng.sample(range(40), 40):
        score = rng.randint(0, 5) / 10
        made: TrialHistory = trial(number, score, score / 2, status="failed" if rng.random() < 0.2 else "finished")
        made.cause = rng.choice(["settings", "other"])
        search.trials[made.id] = made
        for epoch in (1, 2):
            folder = tmp_path / "trials" / made.id / f"epoch-{epoch:04d}"
            folder.mkdir(parents=True)
            (folder / "checkpoint.json").touch()
        best.ended(made)
        kept = search.finished if keep == "all" else search.finished[:keep]
        may_be_retried = [each for each in search.failed if each.cause == "other"]
        assert stored(tmp_path) == {f"{each.id}/epoch-0001" for each in (*kept, *may_be_retried)} | {
            f"{each.id}/epoch-0002" for each in may_be_retried
        }
        if rng.random() < 0.1:
            best = BestTrials(tmp_path, search, keep)


def test_the_command_says_what_it_would_remove_and_removes_it_with_yes(
    mixed: FinishedSearch, tmp_path: Path, capsys: Printed
) -> None:
    before = stored(mixed.directory)
    arguments = ("tiny", "--storage", mixed.storage, "--prune", "--keep", "1")
    run_command("tuner.best", *arguments)
    said = capsys.readouterr().out
    assert f"search {mixed.directory.name} of tiny: checkpoints of 3 trials, " in said
    assert "trials that have not ended keep their checkpoints: 1" in said
    assert "nothing is removed yet: --yes removes 1." in said
    assert stored(mixed.directory) == before and (mixed.directory / "ray").exists()

    run_command("tuner.best", *arguments, "--yes")
    assert "removed 1." in capsys.readouterr().out
    assert {path.name for path in (mixed.directory / "trials").iterdir()} == {"trial-1", "trial-3"}
    assert not (mixed.directory / "ray").exists()
    run_command("tuner.best", *arguments)
    assert capsys.readouterr().out.startswith("nothing is removed yet: --yes removes 0.0 MiB")
    run_command("tuner.best", "--storage", mixed.storage, "--export", tmp_path / "out")
    assert (tmp_path / "out" / "model.pt2").exists()


def test_without_keep_the_setting_of_the_search_counts(mixed: FinishedSearch, capsys: Printed) -> None:
    run_command("tuner.best", "--storage", mixed.storage, "--search", mixed.directory.name, "--prune", "--yes")
    assert {path.name for path in (mixed.directory / "trials").iterdir()} == {"trial-0", "trial-1", "trial-3"}


def test_nothing_is_removed_under_a_driver_that_runs(mixed: FinishedSearch, capsys: Printed) -> None:
    before = stored(mixed.directory)
    with lock.only_driver(mixed.directory.parent, mixed.directory.name):
        arguments = ("--storage", mixed.storage, "--prune", "--yes")
        said = refusal_of(capsys, "tuner.best", *arguments, prints_before=True)
    assert "is being run by process" in said and stored(mixed.directory) == before


@pytest.mark.parametrize("option", [("--yes",), ("--keep", "2")])
def test_options_of_prune_alone_are_refused(option: tuple[str, ...], finished_search: FinishedSearch) -> None:
    with pytest.raises(AssertionError):
        run_command("tuner.best", "--storage", finished_search.storage, *option)


def test_a_trial_whose_weights_are_gone_says_why(own: FinishedSearch, capsys: Printed, tmp_path: Path) -> None:
    opened = Journal(own.directory)
    opened.close()
    shutil.rmtree(own.directory / "trials" / "trial-0")
    run_command("tuner.best", "--storage", own.storage, "--ensemble", "2", "--weights", "equal")
    assert "search.keep says how many of the best trials keep their weights" in capsys.readouterr().out
    assert journal.read(own.directory).finished

"""The command `python -m tuner.train`: what it prints, refuses and resumes."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from models import LinearConfig
from tests.support.finished import FinishedSearch
from tests.support.workplace import Workplace
from tuner import train as command
from tuner.cli import main
from tuner.training.checkpoint import prepare_folder
from tuner.training.config import TrialConfig
from tuner.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("one_thread")

# Metrics that depend on the clock.
TIMES = ("seconds", "videos_per_second")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    command.run(list(arguments))
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(partial(command.run, list(arguments))) == 2
    return capsys.readouterr().err


def test_the_command_prints_epochs_and_ends_with_json(workplace: Workplace) -> None:
    ran = workplace.python(
        "-m", "tuner.train", "tiny", "--set", "training.epochs=2", "--device", "cpu", "--save", "kept"
    )
    assert ran.returncode == 0, ran.stderr
    file, head, settings, *epochs, last = ran.stdout.splitlines()
    assert file == f"experiments: {workplace.folder.resolve() / 'experiments.yaml'}"
    assert head == "tiny on cpu: 300 training videos, 100 validation videos"
    assert json.loads(settings)["training"]["epochs"] == 2
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert json.loads(last)["gap_best"] > 0
    assert (workplace.folder / "kept" / "checkpoint.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("tinny",), "there is no experiment 'tinny'; did you mean 'tiny'?"),
        (("--set", "optimizer.momentun=1"), "tiny.optimizer.momentun: unknown key; did you mean 'momentum'?"),
        (("--set", "data.train=nothing*"), "nothing*"),
        (("--trial", "no-such-trial"), "no trial no-such-trial"),
        (("--file", "absent.yaml"), "absent.yaml"),
    ],
)
def test_an_error_is_one_sentence_with_exit_code_2(
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(workplace.folder)
    error = refused(capsys, *arguments)
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, threads",
    [
        ((), os.cpu_count()),
        (("--set", "resources.cpu=3"), 3),
        (("--set", "resources.cpu=0.5"), 1),
        (("--set", "resources.cpu=3", "--threads", "2"), 2),
    ],
)
def test_the_threads_are_those_of_a_worker_in_a_search(
    finished_search: FinishedSearch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], threads: int
) -> None:
    file = str(finished_search.folder / "experiments.yaml")
    told(capsys, "--file", file, "--device", "cpu", "--set", "training.epochs=1", *arguments)
    assert torch.get_num_threads() == threads


def test_it_needs_a_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.run(["--threads", "0"])
    assert "argument --threads: must be a whole number from 1 to 4,096, but got '0'" in capsys.readouterr().err


class Kept(NamedTuple):
    folder: Path
    arguments: tuple[str, ...]


class TestKeptCheckpoint:
    """`--save DIR` where a checkpoint exists: it is resumed or renamed, but never lost."""

    @pytest.fixture
    def kept(self, finished_search: FinishedSearch, tmp_path: Path) -> Kept:
        file = str(finished_search.folder / "experiments.yaml")
        return Kept(tmp_path / "kept", ("--file", file, "--device", "cpu", "--save", str(tmp_path / "kept")))

    def test_a_resume_continues_where_it_stopped(self, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
        *_, whole = told(capsys, *kept.arguments)
        shutil.rmtree(kept.folder)
        stop_after_the_first_epoch(kept)
        capsys.readouterr()
        *_, resumed = told(capsys, *kept.arguments, "--resume")
        assert {k: v for k, v in json.loads(resumed).items() if k not in TIMES} == {
            k: v for k, v in json.loads(whole).items() if k not in TIMES
        }

    def test_different_settings_are_named_and_no_file_is_changed(
        self, kept: Kept, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stop_after_the_first_epoch(kept)
        before = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
        capsys.readouterr()
        said = refused(capsys, *kept.arguments, "--resume", "--set", "training.batch_size=16", "--set", "loss.l2=3")
        assert "loss.l2: " in said and "training.batch_size: " in said and "-> 16" in said and "--fresh" in said
        said = refused(capsys, *kept.arguments)
        assert "kept exists: --resume continues it, --fresh renames it" in said
        assert {path.name: path.read_bytes() for path in kept.folder.iterdir()} == before

    def test_a_fresh_start_renames_the_old_folder(self, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
        settings = TrialConfig(model=LinearConfig()).settings
        for n in (1, 2):
            kept.folder.mkdir()
            (kept.folder / "old").write_text(str(n))
            assert prepare_folder(kept.folder, settings=settings, resume=False, fresh=True, print_line=print) is None
        assert [(kept.folder.with_name(f"kept.{n}") / "old").read_text() for n in (1, 2)] == ["1", "2"]
        assert not kept.folder.exists()

    def test_a_resume_without_a_checkpoint_is_refused(self, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
        assert "kept: there is no checkpoint to resume" in refused(capsys, *kept.arguments, "--resume")

    @pytest.mark.parametrize("choice", ["--resume", "--fresh"])
    def test_resume_or_fresh_without_a_folder_is_refused(self, choice: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            command.run(["tiny", choice])
        assert "name it with --save DIR" in capsys.readouterr().err


def stop_after_the_first_epoch(kept: Kept) -> None:
    """Interrupt the training after the first checkpoint, as Ctrl-C does."""
    save = TrainingState.save

    def interrupted(self: TrainingState, directory: Path, config: TrialConfig) -> None:
        save(self, directory, config)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingState, "save", interrupted)
        command.run(list(kept.arguments))


def test_a_replayed_trial_uses_its_stored_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.run(["tiny", "--trial", "t"])
    assert "--trial brings its own settings" in capsys.readouterr().err


def test_a_replay_by_trial_id_gives_the_numbers_of_the_search(
    finished_search: FinishedSearch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished_search.folder / "experiments.yaml", tmp_path)  # another place, the same storage
    file, storage = str(tmp_path / "experiments.yaml"), str(finished_search.storage)
    *_, last = told(capsys, "--trial", "trial-1", "--file", file, "--storage", storage, "--device", "cpu")
    journaled = finished_search.search.trials["trial-1"].reports[2]
    replayed = json.loads(last)
    # The search had another number of threads.
    expected = {key: value for key, value in journaled.items() if key not in TIMES}
    assert {key: replayed[key] for key in expected} == pytest.approx(expected, rel=1e-4)

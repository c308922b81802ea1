"""What would fail in every trial is one sentence, in the dry run and at the start of a search."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data import machine
from tests.support.workplace import Workplace
from tuner.config import preflight
from tuner.config.experiment import load
from tuner.console import Console
from tuner.errors import ConfigError, TrialOutOfMemory
from tuner.search import driver
from tuner.search.begin import Options
from tuner.search.dry_run import dry_run
from tuner.storage.stores import place
from tuner.training import teacher
from tuner.training.dataset import open_dataset
from tuner.training.pipelines import train
from tuner.workers import connection

Tell = Callable[..., str]


@pytest.fixture(params=["dry run", "start"])
def told(request: pytest.FixtureRequest, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """The error of a dry run, or of a search that gets no further than to Ray."""
    file = workplace.folder / "experiments.yaml"

    def no_ray(address: str) -> None:
        raise AssertionError("everything was accepted")

    def tell(*overrides: str) -> str:
        console = Console()
        with pytest.raises(ConfigError) as error, console._out:
            if request.param == "dry run":
                dry_run(load(file, "tiny", overrides), console, address="local")
            else:
                monkeypatch.setattr(connection, "connect", no_ray)
                options = Options(storage=place(str(workplace.folder / "storage"), ""), overrides=overrides)
                driver.run(file, "tiny", options, console)
        assert not list((workplace.folder / "storage").glob("tiny/*/*"))
        return str(error.value)

    return tell


def write_shards(workplace: Workplace) -> Path:
    """Write the sample, and return its folder."""
    experiment = load(workplace.folder / "experiments.yaml", "tiny")
    open_dataset(experiment.data)
    return workplace.folder / "shards"


def teacher_file(path: Path, ids: list[bytes], num_classes: int) -> str:
    arrays = (np.zeros((len(ids), 1), np.int32), np.ones((len(ids), 1), np.float16))
    teacher.write(path, ids, *arrays, num_classes=num_classes, model={})
    return f"loss.distill={{predictions: {path}, weight: 0.5}}"


def test_a_shard_in_two_splits_is_refused(workplace: Workplace, told: Tell) -> None:
    write_shards(workplace)
    message = told("data.validate='shards/*.tfrecord'")
    assert "tiny.data.validate: 2 of its 4 shards are in data.train too (such as " in message
    assert "so its scores say nothing about new videos" in message and "data.overlap to allow" in message


def test_a_video_in_two_splits_is_refused(workplace: Workplace, told: Tell) -> None:
    shards = write_shards(workplace)
    shutil.copy(shards / "train0001.tfrecord", shards / "other.tfrecord")
    open_dataset(load(workplace.folder / "experiments.yaml", "tiny", ["data.validate=shards/other.tfrecord"]).data)
    message = told("data.validate=shards/other.tfrecord")
    assert "tiny.data.validate: 150 of its 150 videos are in data.train too (such as " in message


def test_a_test_split_is_compared_as_well(workplace: Workplace, told: Tell) -> None:
    write_shards(workplace)
    assert "tiny.data.test: 1 of its 1 shards are in data.validate too" in told("data.test=shards/validate*.tfrecord")


def test_a_buffer_beyond_the_memory_is_told_with_one_that_fits(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 1 << 20)
    experiment = load(workplace.folder / "experiments.yaml", "tiny", ["data.cache=none", "data.buffer=10000"])
    with pytest.raises(ConfigError) as raised:
        preflight.check_buffer(experiment, num_videos=50_000, video_bytes=80.0)
    message = str(raised.value)
    assert "tiny.data.buffer: two groups of 10,000 videos, of 80 bytes each, are kept in memory: 2 MiB" in message
    assert message.endswith("but this machine has 1 MiB; set data.buffer to 1,638 or less")
    preflight.check_buffer(experiment, num_videos=1000, video_bytes=80.0)  # there are no more


def test_an_overlap_that_is_allowed_is_said(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    write_shards(workplace)
    overrides = ["data.validate='shards/*.tfrecord'", "data.overlap=allow"]
    console = Console()
    with console._out:
        dry_run(load(workplace.folder / "experiments.yaml", "tiny", overrides), console, address="local")
    assert "data.overlap allows it, but scores on them say nothing about new videos" in capfd.readouterr().out


def test_a_pattern_without_a_file_has_its_line(workplace: Workplace, told: Tell) -> None:
    file = workplace.folder / "experiments.yaml"
    file.write_text(file.read_text().replace("validate: shards/validate*", "validate: shards/valdiate*"))
    message = told()
    assert f"{file}:7: tiny.data.validate: " in message and message.endswith("valdiate*.tfrecord: no file matches")


def test_too_few_classes_name_the_setting_and_the_largest_label(workplace: Workplace, told: Tell) -> None:
    write_shards(workplace)
    message = told("data.num_classes=4", "data.sample=null")
    assert (
        message.startswith("--set data.num_classes=4: tiny.data.num_classes: ")
        and "outside the classes [0, 4)" in message
    )
    assert message.endswith("the largest label of this shard is 19; set num_classes to 20 or more")


def test_the_files_of_a_teacher_are_looked_at(workplace: Workplace, told: Tell) -> None:
    write_shards(workplace)
    path = workplace.folder / "teacher.safetensors"
    missing = told(f"loss.distill={{predictions: {path}, weight: 0.5}}")
    assert f"tiny.loss.distill.predictions: {path}: cannot be read as teacher predictions" in missing
    other = told(teacher_file(path, [b"a"], num_classes=7))
    assert f"{path}: the teacher has 7 classes, but the data has 20" in other


def test_the_vocabulary_must_count_the_classes_where_the_loss_needs_it(workplace: Workplace, told: Tell) -> None:
    names = workplace.folder / "names.csv"
    assert f"tiny.data.vocabulary: {names}: cannot be read" in told("data.vocabulary=names.csv")
    names.write_text("Index,Name\n" + "".join(f"{index},c\n" for index in range(20)))
    lacking = told("data.vocabulary=names.csv", "loss.kind=weighted_hamming")
    assert f"tiny.data.vocabulary: {names}: lacks the column TrainVideoCount" in lacking


def test_tuner_train_checks_the_same(workplace: Workplace) -> None:
    shards = write_shards(workplace)
    done = workplace.python(
        "-m", "tuner.train", "tiny", "--device", "cpu", "--set", f"data.validate={shards}/*.tfrecord"
    )
    assert done.returncode == 2 and re.fullmatch(r"experiments: .*experiments\.yaml\n", done.stdout)
    assert "2 of its 4 shards are in data.train too" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("told", ["start"], indirect=True)
def test_a_single_video_to_learn_from_is_refused(workplace: Workplace, told: Tell) -> None:
    message = told("data.sample.train=1", "data.sample.shards=1")
    assert "tiny.data.train: BatchNorm needs at least 2 videos at a time" in message


@pytest.mark.parametrize("told", ["start"], indirect=True)
def test_a_teacher_must_know_all_training_videos(workplace: Workplace, told: Tell) -> None:
    write_shards(workplace)
    message = told(teacher_file(workplace.folder / "teacher.safetensors", [b"a"], num_classes=20))
    assert "teacher.safetensors: has no predictions of 300 of the 300 training videos" in message


def test_a_model_that_no_machine_holds_is_refused_in_the_dry_run(workplace: Workplace) -> None:
    console = Console()
    corner = "model.hidden={int: [16, 16000000], default: 16}"
    experiment = load(workplace.folder / "experiments.yaml", "tiny", [corner, "model.towers.mean_rgb=100000"])
    with pytest.raises(ConfigError) as error, console._out:
        dry_run(experiment, console, address="local")
    message = str(error.value)
    assert ": tiny.model: the model has 1,600," in message and "GiB of memory with model.hidden 16000000" in message
    assert f"but this machine has {machine.memory() / 2**30:,.1f} GiB; make the model or its batches smaller" in message


def test_a_worker_refuses_such_a_model_before_it_takes_memory(workplace: Workplace) -> None:
    overrides = ["model.hidden=16000000", "model.towers.mean_rgb=100000"]
    experiment = load(workplace.folder / "experiments.yaml", "tiny", overrides)
    trial = experiment.trial_config(experiment.space.defaults())
    with pytest.raises(TrialOutOfMemory, match=r"training needs at least .* GiB of memory, but this machine has"):
        next(train(trial, open_dataset(experiment.data), device=torch.device("cpu"), seed=1))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("search.scheduler={kind: asha, grace: 12}",),
            "asha stops no trial, as a trial has 12 epochs and grace is 12",
        ),
        (("search.plateau={trials: 3}",), "no plateau ends the search, as it has 3 trials and plateau.trials is 3"),
        (("search.max_concurrent=4",), "at most 3 trials can run at a time, as the search has no more (got 4)"),
        (("training.batch_size=512",), "an epoch is a single step, as there are 300 videos to learn from (got 512)"),
        (("optimizer.schedule.kind=staircase",), "the learning rate never falls, as a trial sees 3,600 videos"),
        (("data.num_classes=50", "data.sample=null"), "50 classes, but the largest label that was read is 19"),
    ],
)
def test_settings_that_make_each_other_useless_are_said(
    workplace: Workplace, capfd: pytest.CaptureFixture[str], overrides: tuple[str, ...], sentence: str
) -> None:
    write_shards(workplace)
    console = Console()
    with console._out:
        dry_run(load(workplace.folder / "experiments.yaml", "tiny", overrides), console, address="local")
    printed = capfd.readouterr().out
    assert sentence in printed
    assert (
        " parameters, and its training needs at least " in printed
        and " training videos/s, so an epoch takes" in printed
    )

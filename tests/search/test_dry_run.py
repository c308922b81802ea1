"""`python tune.py --dry-run` prints what is wrong before anything starts, and trains nothing."""

import gzip
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.workplace import Workplace
from tuner.cluster import nodes
from tuner.cluster.resources import Node
from tuner.config.experiment import load
from tuner.console import Console
from tuner.errors import ConfigError
from tuner.search.dry_run import dry_run
from tuner.storage.journal import Attempt
from tuner.workers import connection


def change(place: Workplace, old: str, new: str) -> None:
    file = place.folder / "experiments.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def left_behind(place: Workplace) -> set[str]:
    return {path.name for path in place.folder.iterdir()} - {"output.txt"}


def test_a_valid_experiment_is_shown_with_configurations_and_trains_nothing(workplace: Workplace) -> None:
    code, printed = workplace.run("--dry-run")
    assert code == 0, printed
    assert "tiny is valid at all 2 corners of its space, 2 parameters" in printed
    assert "data.train: 2 shards, about 300 videos; the first holds 150 valid ones" in printed
    assert "data.validate: 1 shard, 100 videos; the first holds 100 valid ones" in printed
    assert " at a time, each with " in printed
    assert "3 trials of at most 12 epochs, sampler tpe, scheduler none" in printed
    above, header, first, *others = (line.split() for line in printed.splitlines()[-5:])
    assert above == ["model.", "optimizer."] and header == ["trial", "dropout", "learning_rate"]
    assert first == ["0", "0.35", "0.003162"] and [row[0] for row in others] == ["1", "2"]
    assert "A new study created" not in printed  # Optuna's own log
    assert left_behind(workplace) == {"experiments.yaml", "shards"}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "data.cache: node keeps all features on the disk of each node, about "),
        (
            ("--set", "data.cache=none", "--set", "data.buffer=100"),
            "data.cache: none keeps no features, and takes about ",
        ),
        (
            ("--set", "data.cache=share", "--set", "resources.workers=2"),
            "data.cache: share keeps a share for each of 2 workers, about ",
        ),
    ],
    ids=["node", "none", "share"],
)
def test_what_is_kept_on_the_disks_is_said(workplace: Workplace, arguments: tuple[str, ...], sentence: str) -> None:
    code, printed = workplace.run("--dry-run", *arguments)
    assert code == 0, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("data.cache: ")]
    assert line.startswith(sentence) and " would keep " in line


@pytest.mark.parametrize(
    "arguments, sentences",
    [
        (
            ("--set", "optimizer.momentun=1", "--set", "model.hiden=2"),
            (
                "tiny.optimizer.momentun: unknown key; did you mean 'momentum'?",
                "tiny.model.hiden: unknown key; did you mean 'hidden'?",
            ),
        ),
        (
            ("--set", "data.sample=null", "--set", "data.train=shards/none*.tfrecord"),
            ("tiny.data.train: ", "tiny.data.validate: "),
        ),
    ],
    ids=["unknown keys", "no shard"],
)
def test_each_mistake_is_one_sentence_and_the_exit_code_is_2(
    workplace: Workplace, arguments: tuple[str, ...], sentences: tuple[str, ...]
) -> None:
    code, printed = workplace.run("--dry-run", *arguments)
    assert code == 2, printed
    lines = printed.splitlines()
    told = lines[-len(sentences) :]
    for sentence in sentences:
        assert any(sentence in line for line in told), printed
    assert "Traceback" not in printed
    assert "shards" not in left_behind(workplace)


class Here:
    """A dry run in this process: its lines, or its error."""

    def __init__(self, place: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
        self.place, self.capfd = place, capfd

    def run(self, *overrides: str) -> str:
        experiment = load(self.place.folder / "experiments.yaml", "tiny", overrides)
        shown = Console()
        with shown._out:
            dry_run(experiment, shown, address="local")
        return self.capfd.readouterr().out


@pytest.fixture
def here(workplace: Workplace, capfd: pytest.CaptureFixture[str]) -> Here:
    return Here(workplace, capfd)


def test_a_feature_of_another_width_is_reported_with_its_record(here: Here) -> None:
    here.run()  # writes the shards
    overrides = ("data.sample=null", "data.features={mean_rgb: 31, mean_audio: 8}")
    with pytest.raises(Exception, match=r"train0000\.tfrecord: record at byte 0.*mean_rgb.*32.*31") as told:
        here.run(*overrides)
    assert type(told.value).__name__ == "ShardError"


def test_a_damaged_first_shard_is_reported(here: Here) -> None:
    here.run()
    shard = here.place.folder / "shards" / "train0000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(gzip.compress(content))
    with pytest.raises(Exception, match=r"train0000\.tfrecord: record at byte 0"):
        here.run("data.sample=null")


def test_empty_shards_are_told(here: Here) -> None:
    here.run()
    empty = here.place.folder / "shards" / "train.tfrecord"
    empty.touch()
    printed = here.run("data.sample=null", "data.train=shards/train*.tfrecord")
    assert f"data.train: 1 of 3 shards are empty: {empty}\n" in printed


def test_what_cmaes_draws_at_random_is_printed(here: Here) -> None:
    change(here.place, "training:", "loss: {l2: {choice: [0, {loguniform: [1, 100]}]}}\n    training:")
    printed = here.run("search.sampler.kind=cmaes")
    assert "cmaes draws loss.l2 at random: it models numbers only, and this is a choice\n" in printed
    assert "cmaes draws loss.l2.loguniform at random: it models only what every trial has" in printed
    assert "at random" not in here.run("search.sampler.kind=tpe")


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc"])
def test_every_sampler_shows_what_it_would_try(here: Here, sampler: str) -> None:
    printed = here.run(f"search.sampler.kind={sampler}", "search.trials=12")
    rows = printed[printed.index("trial  ") :].splitlines()[1:]
    assert len(rows) == len(set(rows)) == 8  # of the twelve


def test_resources_that_no_machine_has_are_reported(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a worker needs 4096 CPUs and 0 GPUs, but no node of the cluster can hold"):
        here.run("resources.cpu=4096", "resources.gpu=0")


def test_a_running_cluster_is_asked_for_its_nodes(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Attempt(cluster="session", job="01", scratch=None)
    monkeypatch.setattr(connection, "connect", lambda address: nullcontext(joined))
    monkeypatch.setattr(nodes, "alive", lambda: [Node(cpus=16, gpus=4)] * 2)
    experiment = load(here.place.folder / "experiments.yaml", "tiny", ["resources.cpu=auto"])
    shown = Console()
    with shown._out:
        dry_run(experiment, shown, address="10.0.0.1:6379")
    assert "8 trials at a time, each with 1 GPU and 4 CPU" in here.capfd.readouterr().out


def test_nodes_that_an_autoscaler_may_start_count(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Attempt(cluster="session", job="01", scratch=None)
    monkeypatch.setattr(connection, "connect", lambda address: nullcontext(joined))
    monkeypatch.setattr(nodes, "alive", lambda: [Node(cpus=4, gpus=0)])
    told = ["resources={gpu: 1, startable: {nodes: 6, cpu: 8, gpu: 1}}"]
    experiment = load(here.place.folder / "experiments.yaml", "tiny", told)
    shown = Console()
    with shown._out:
        dry_run(experiment, shown, address="10.0.0.1:6379")
    assert "6 trials at a time, each with 1 GPU and 8 CPU" in here.capfd.readouterr().out


def test_a_damaged_vocabulary_is_reported(here: Here) -> None:
    with pytest.raises(ConfigError, match=r"names\.csv"):
        here.run("data.vocabulary=names.csv")
    assert not Path(here.place.folder / "storage").exists()


def test_a_grid_of_models_of_frames_is_shown_whole(here: Here) -> None:
    change(here.place, "data:", "data:\n      level: frame")
    models = "{choice: [{kind: average_logistic}, {kind: linear}]}"
    overrides = (f"model={models}", "optimizer.learning_rate=0.01", "search={sampler: {kind: grid}}")
    printed = here.run(*overrides)
    assert "2 trials of at most" in printed and "sampler grid" in printed
    assert [row.split()[:2] for row in printed.splitlines()[-2:]] == [["0", "average_logistic"], ["1", "linear"]]

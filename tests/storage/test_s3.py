"""Shards, searches and exports on an S3 server, with the protocol and the drivers of a cluster."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from upath import UPath

from data import retry, sample
from data.cache import recipe
from data.cache.recipe import find_shards
from data.cache.store import open_cache
from data.errors import UnreachableError
from data.tfrecord.framing import count_records
from tests.support.commands import run_command
from tests.support.finished import FinishedSearch
from tests.support.workplace import PROJECT, Workplace
from tuner.errors import ConfigError, ModelFolderError, SearchError
from tuner.export import layout
from tuner.export.loader import load_model
from tuner.project import storage_place
from tuner.storage import journal, lease, searches, stores
from tuner.storage.journal import Journal
from tuner.storage.lock import only_driver
from tuner.storage.stores import at, place

if TYPE_CHECKING:
    from tests.support.finished import FinishedSearch

pytestmark = pytest.mark.slow  # starting the server takes seconds


def upload(folder: Path, target: str) -> UPath:
    url = UPath(target)
    for path in folder.rglob("*"):
        if path.is_file():
            url.joinpath(path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return url


def test_a_search_in_a_bucket_is_found_scored_and_exported(
    s3: str, finished_search: "FinishedSearch", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(finished_search.storage, f"{s3}/storage")
    upload(finished_search.folder / "shards", f"{s3}/shards")
    model, validate, test = f"{s3}/models/best", f"{s3}/shards/validate*", f"{s3}/shards/test*"
    arguments = ["--storage", f"{s3}/storage", "--export", model]
    run_command("tuner.best", *arguments)
    assert f"exported trial 001, epoch 2, to {model}\n" in capsys.readouterr().out
    run_command("tuner.best", *arguments)
    assert "replaced an earlier export of the same trial" in capsys.readouterr().out

    run_command("tuner.evaluate", model, "--data", validate)
    gap = json.loads(capsys.readouterr().out.splitlines()[-1])["gap"]
    assert gap == pytest.approx(finished_search.best.score, abs=1e-6)
    run_command("tuner.predict", model, "--data", test, "--output", tmp_path / "predictions.csv")
    run_command("tuner.embed", model, "--data", test, "--output", tmp_path / "embeddings.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "embeddings.parquet"}


def test_a_killed_search_in_a_bucket_is_resumed_and_its_model_is_used_from_there(
    s3: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards, searches and exports are in a bucket; only the decoded shards are on this machine."""
    sample.write_splits(
        workplace.folder / "shards",
        num_videos={"train": 300, "validate": 100},
        num_shards=2,
        num_classes=20,
        features={"mean_rgb": 32, "mean_audio": 8},
    )
    upload(workplace.folder / "shards", f"{s3}/shards")
    shutil.rmtree(workplace.folder / "shards")
    file = workplace.folder / "experiments.yaml"
    text = file.read_text().replace("      sample: {directory: shards, train: 300, validate: 100, shards: 2}\n", "")
    file.write_text(text.replace("shards/", f"{s3}/shards/"))
    monkeypatch.setenv("TUNER_STORAGE", f"{s3}/storage")

    driver = workplace.start()
    workplace.wait_for_line(driver, "trial 001  epoch 3/")
    driver.kill()
    driver.wait()
    storage = storage_place(None, None)
    (directory,) = searches.folders(storage)
    before = journal.read(directory)
    assert len(before.finished) == 1 and before.ended is None
    code, printed = workplace.run("--resume", output="resumed.txt", timeout=600)
    assert code == 0, printed
    assert "trial 000  epoch" not in printed and "trial 001  epoch 1/" not in printed
    search = journal.read(directory)
    assert search.ended == "planned" and len(search.finished) == 3
    assert [list(trial.reports) for trial in search.trials.values()] == 3 * [list(range(1, 13))]
    assert {path.name for path in directory.parent.glob("*")} == {directory.name, "lease.0002"}
    assert json.loads((directory.parent / "lease.0002").read_text())["released"]
    assert (directory / "ray.log").exists() and not (directory / searches.RAY).exists()
    assert not [path for path in directory.glob("trials/*/*/training.pt")]
    assert not (workplace.folder / "storage").exists()

    exported = workplace.python("-m", "tuner.best", "--export", f"{s3}/models/best")
    assert exported.returncode == 0, exported.stderr
    data = ("--data", f"{s3}/shards/validate*.tfrecord")
    evaluated = workplace.python("-m", "tuner.evaluate", f"{s3}/models/best", *data)
    assert evaluated.returncode == 0, evaluated.stderr
    gap = json.loads(evaluated.stdout.splitlines()[-1])["gap"]
    assert gap == pytest.approx(search.finished[0].score, abs=1e-6)


def test_a_journal_is_written_by_one_driver_at_a_time(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "STALE_SECONDS", 5.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.5)
    directory = place(f"{s3}/tiny/20260101-000000-0001", "--storage")
    with only_driver(directory.parent, "first") as still_ours:
        first = Journal(directory, still_ours)
        begin = {"version": journal.VERSION, "id": "s", "experiment": "tiny", "fingerprint": "f", "planned": 4}
        first.append("search", tracking_uri="", overrides=[], baseline=0.2, **begin)
        with (
            pytest.raises(SearchError, match="search first is being run by process "),
            only_driver(directory.parent, "s"),
        ):
            pytest.fail("two drivers")
        assert searches.folders(directory.parent.parent, "tiny") == [directory]
        assert journal.read(directory) == first.search

        with monkeypatch.context() as asleep:
            asleep.setattr(lease.Lease, "renew", lambda lease: None)
            with only_driver(directory.parent, "second") as also_ours:
                second = Journal(directory, also_ours)
                second.append("extended", trials=3)
                asleep.undo()
                time.sleep(2)
                with pytest.raises(SearchError, match=r"search second is being run by .*: it has taken over"):
                    first.append("extended", trials=100)
    assert journal.read(directory).planned == 7


DRIVER = """
import sys
from tuner.errors import SearchError
from tuner.storage import lease
from tuner.storage.journal import Journal
from tuner.storage.lock import only_driver
from tuner.storage.stores import place
lease.STALE_SECONDS, lease.RENEW_SECONDS = 3.0, 0.5
directory = place(sys.argv[1], "--storage")
try:
    with only_driver(directory.parent, "first") as still_ours:
        journal = Journal(directory, still_ours)
        for line in sys.stdin:
            journal.append("extended", trials=int(line))
            print("appended", flush=True)
except SearchError as error:
    print(error, flush=True)
"""


def test_a_driver_that_was_stopped_and_wakes_appends_nothing(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP for longer than a lease lasts; then the second driver has ended, and a third one holds the lease."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 3.0)
    directory = place(f"{s3}/tiny/20260101-000000-0001", "--storage")
    begin = {"version": journal.VERSION, "id": "s", "experiment": "tiny", "fingerprint": "f", "planned": 0}
    Journal(directory).append("search", tracking_uri="", overrides=[], baseline=0.2, **begin)
    command = [sys.executable, "-c", DRIVER, str(directory)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None and first.stdout is not None
        try:
            print(1, file=first.stdin, flush=True)
            assert first.stdout.readline() == "appended\n"
            first.send_signal(signal.SIGSTOP)
            for trials in (10, 100):
                with only_driver(directory.parent, f"driver of {trials}") as still_ours:
                    Journal(directory, still_ours).append("extended", trials=trials)
            first.send_signal(signal.SIGCONT)
            print(1000, file=first.stdin, flush=True)
            assert "it has taken over in" in first.stdout.readline()
            assert first.wait() == 0
        finally:
            first.kill()
    assert journal.read(directory).planned == 111


def test_a_worker_stores_and_finds_its_checkpoints_in_the_bucket(s3: str, tmp_path: Path) -> None:
    """The worker gets the folder pickled, as Ray sends it to its process."""
    from tuner.training.ranks import ALONE
    from tuner.workers.reports import Reporter, checkpoints

    reported: list[dict[str, int]] = []

    def send(report: dict[str, int]) -> bool:
        reported.append(report)
        return True

    trial = pickle.loads(pickle.dumps(UPath(f"{s3}/search/trials/t0", use_listings_cache=False)))

    def save(directory: Path) -> None:
        directory.mkdir()
        (directory / "model.safetensors").write_bytes(b"weights")

    reporter = Reporter(trial, tmp_path, send)
    for epoch in (1, 2):
        reporter({"epoch": epoch}, save, ["epoch-0002"])
    reporter.wait()
    assert reported == [{"epoch": 1}, {"epoch": 2}]
    assert [path.name for path in UPath(f"{s3}/search").glob("trials/t0/epoch-*")] == ["epoch-0002"]
    assert UPath(f"{s3}/search/trials/t0/epoch-0002/model.safetensors").read_bytes() == b"weights"
    read = [(path.name, (path / "model.safetensors").read_bytes()) for path in checkpoints(trial, tmp_path, ALONE)]
    assert len(read) == 1 and read[0][1] == b"weights"


def test_an_incomplete_export_is_not_loaded(s3: str, exported: Path, tmp_path: Path) -> None:
    import torch

    folder = place(f"{s3}/model", "MODEL_DIR")
    cut = pytest.raises(ConfigError, match=f"{s3}/model: ")
    with cut, at(folder).publish(first=layout.CONFIG, last=layout.CHECKSUMS) as staging:
        shutil.copytree(exported, staging, dirs_exist_ok=True)
        (staging / layout.WEIGHTS).unlink()
        (staging / layout.WEIGHTS).symlink_to(tmp_path / "gone")
    assert (folder / layout.CONFIG).exists() and not (folder / layout.CHECKSUMS).exists()
    with pytest.raises(ModelFolderError, match=f"{s3}/model/SHA256SUMS: is missing"):
        load_model(folder, torch.device("cpu"))


def test_the_log_of_a_driver_is_appended_to_that_of_the_drivers_before(s3: str) -> None:
    log = UPath(f"{s3}/search/ray.log")
    for line in ("first\n", "second\n"):
        with at(log).buffered() as local:
            local.write_text(line)
    assert log.read_text() == "first\nsecond\n" and not local.exists()
    at(log.parent).remove()
    assert not log.exists()


def test_a_missing_bucket_is_an_error_before_anything_runs(s3: str, workplace: Workplace) -> None:
    for command in ((), ("--resume",)):
        code, printed = workplace.run("--storage", f"{s3}-missing/x", *command)
        told = f"--storage {s3}-missing/x: The specified bucket does not exist"
        assert code == 2 and printed.splitlines()[-1] == told, printed
    evaluated = workplace.python("-m", "tuner.evaluate", f"{s3}/nothing", "--data", "x")
    assert evaluated.returncode == 2 and f"{s3}/nothing: is not an exported model" in evaluated.stderr


def test_a_store_that_does_not_answer_is_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(stores, "FIRST_PATIENCE_SECONDS", 1.0)
    with pytest.raises(
        UnreachableError, match="--storage s3://bucket: cannot be reached: Could not connect to the end"
    ):
        storage_place("s3://bucket", None)


def test_a_bucket_without_write_permission_is_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place(f"{s3}/searches", "--storage")
    monkeypatch.setattr(folder.fs._filesystem, "pipe_file", _denied)
    with pytest.raises(ConfigError, match=f"{s3}/searches: Access Denied"), only_driver(folder, "s"):
        pytest.fail("it was written")


def _denied(*arguments: object, **options: object) -> None:
    raise PermissionError(13, "Access Denied")


def test_shards_in_a_bucket_are_decoded_by_several_processes_and_damaged_ones_are_named(
    s3: str, finished_search: "FinishedSearch", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    upload(finished_search.folder / "shards", f"{s3}/shards")
    shards = find_shards(f"{s3}/shards/train*")
    assert shards == [f"{s3}/shards/train{number:04d}.tfrecord" for number in range(3)]
    cache = open_cache(shards, finished_search.experiment.data.schema, tmp_path, workers=2)
    assert cache.fingerprint == finished_search.data.train.fingerprint

    (UPath(f"{s3}/shards") / "train0003.tfrecord").write_bytes(b"not one")
    assert len(find_shards(f"{s3}/shards/train*")) == 4  # no listing is cached
    with pytest.raises(UnreachableError, match=f"{s3}/shards/none: cannot be read"):
        count_records(f"{s3}/shards/none")
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(recipe, "FIRST_PATIENCE_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    for pattern in (f"{s3}/shards/train*", f"{s3}/shards/train0000.tfrecord"):
        with pytest.raises(UnreachableError, match="cannot be reached: Could not connect"):
            find_shards(pattern)
    with pytest.raises(UnreachableError, match="cannot be reached: Could not connect"):
        count_records(shards[0])


def test_a_search_in_a_bucket_is_pruned(
    s3: str, finished_search: FinishedSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = place(f"{s3}/pruned/tiny/{finished_search.directory.name}", "--storage")
    for file in finished_search.directory.rglob("*"):
        if file.is_file():
            (directory / str(file.relative_to(finished_search.directory))).write_bytes(file.read_bytes())
    arguments = ("--storage", f"{s3}/pruned", "--prune", "--keep", "1")
    run_command("tuner.best", *arguments)
    assert "checkpoints of 2 trials, " in capsys.readouterr().out
    assert len(list(directory.glob("trials/*/epoch-*/model.safetensors"))) == 4
    run_command("tuner.best", *arguments, "--yes")
    best = finished_search.best
    (kept,) = directory.glob("trials/*/epoch-*/model.safetensors")
    assert kept.parts[-3:-1] == (best.id, f"epoch-{best.best_epoch:04d}")
    at(directory.parent.parent).remove()

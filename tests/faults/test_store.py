"""A search in a bucket whose store is overloaded, breaks connections and is away has the numbers of a calm one."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data import sample
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.workplace import Workplace
from tuner.project import storage_place
from tuner.storage import journal, searches

pytestmark = pytest.mark.fault

AWAY_SECONDS = 60.0


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    import s3fs

    with faulty_s3() as server:
        settings = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        for name, value in {"ENDPOINT_URL": server.address, **settings}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server


def numbers(search: journal.SearchHistory) -> list[tuple[object, ...]]:
    """Settings, state and metrics of all trials, without what the clock measured."""
    return [
        (trial.settings, trial.status, [(report["gap"], report["loss_train"]) for report in trial.reports.values()])
        for trial in search.trials.values()
    ]


def search(workplace: Workplace, bucket: str, name: str) -> journal.SearchHistory:
    """The search that a workplace has run with its storage in a folder of the bucket."""
    (directory,) = searches.folders(storage_place(f"s3://{bucket}/{name}", None))
    return journal.read(directory)


@pytest.fixture
def bucket(store: FaultyS3, workplace: Workplace, tmp_path: Path) -> str:
    """A bucket with the shards of the workplace's experiment."""
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex}"
    filesystem = s3fs.S3FileSystem()
    filesystem.mkdir(bucket)
    sample.write_splits(
        tmp_path / "own",
        num_videos={"train": 300, "validate": 100},
        num_shards=2,
        num_classes=20,
        features={"mean_rgb": 32, "mean_audio": 8},
    )
    for path in (tmp_path / "own").iterdir():
        filesystem.pipe_file(f"{bucket}/shards/{path.name}", path.read_bytes())
    file = workplace.folder / "experiments.yaml"
    text = file.read_text().replace("      sample: {directory: shards, train: 300, validate: 100, shards: 2}\n", "")
    file.write_text(text.replace("shards/", f"s3://{bucket}/shards/"))
    return bucket


def test_a_store_that_is_overloaded_breaks_connections_and_is_away_for_a_minute_changes_no_number(
    store: FaultyS3, bucket: str, workplace: Workplace, fault_row: Callable[..., None], tmp_path: Path
) -> None:
    """Nothing is lost: requests are repeated, and the search waits while the store is away."""

    def run(name: str, during: Callable[[], None] = lambda: None) -> journal.SearchHistory:
        workplace.variables["TUNER_CACHE"] = str(tmp_path / f"cache-{name}")  # the shards are read again
        process = workplace.start(
            "--storage", f"s3://{bucket}/{name}", "--set", "search.trials=6", output=f"{name}.txt"
        )
        workplace.wait_for_line(process, "trial 002  epoch 3/", output=f"{name}.txt")
        during()
        assert process.wait(900) == 0, workplace.printed(f"{name}.txt")
        store.busy_every = store.drop_every = 0
        return search(workplace, bucket, name)

    calm = run("calm")
    assert set(store.happened) == {""} and len(calm.finished) == 6
    store.busy_every, store.drop_every = 5, 37
    disturbed = run("disturbed", during=lambda: store.leave(AWAY_SECONDS))
    assert store.happened["away"] > 0 and store.happened["busy"] > 50
    assert store.happened["dropped"] > 5 and store.happened["answer lost"] > 5
    assert "waiting for s3://" in workplace.printed("disturbed.txt")
    assert disturbed.ended == "planned"
    assert numbers(disturbed) == numbers(calm)
    fault_row(
        "503 to every fifth request, broken connections, store away for 60 s", lost_epochs=0, recovery_seconds=None
    )
    print(dict(store.happened))

"""A search in a bucket whose store is overloaded, breaks connections and is away has the numbers of a calm one."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data import sample
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.workplace import PROJECT, Workplace
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


def test_a_store_that_stays_away_ends_the_search_in_order_and_a_resume_goes_on(
    store: FaultyS3, bucket: str, workplace: Workplace, fault_row: Callable[..., None]
) -> None:
    """The epochs whose checkpoints were on their way. The search ends with one sentence; --resume goes on."""
    hook = workplace.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import data.retry\ndata.retry.PATIENCE_SECONDS, data.retry.FIRST_PATIENCE_SECONDS = 15.0, 3.0\n"
    )
    workplace.variables["PYTHONPATH"] = f"{hook}:{PROJECT}"
    storage = ("--storage", f"s3://{bucket}/searches")
    process = workplace.start(*storage)
    workplace.wait_for_line(process, "trial 001  epoch 3/")
    store.leave(3600)
    assert process.wait(600) == 2
    printed = workplace.printed()
    assert "cannot be reached" in printed and "resume it with: " in printed and "Traceback" not in printed
    store.leave(0)
    before = search(workplace, bucket, "searches")
    assert before.ended is None and len(before.finished) == 1 and not before.failed
    code, resumed = workplace.run(*storage, "--resume", output="resumed.txt")
    assert code == 0, resumed
    assert "trial 000  epoch" not in resumed and "trial 001  epoch 1/" not in resumed
    after = search(workplace, bucket, "searches")
    assert after.ended == "planned" and len(after.finished) == 3 and not after.failed
    assert [list(trial.reports) for trial in after.trials.values()] == 3 * [list(range(1, 13))]
    fault_row("a store that stays away, then --resume", lost_epochs=0, recovery_seconds=None)

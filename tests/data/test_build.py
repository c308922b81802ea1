"""Builds: bad shards, builds that are interrupted, several processes at once, full disks."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import retry
from data.cache import build, columns, decoding, eviction
from data.cache import journal as journal_of
from data.cache.journal import read_journal
from data.cache.progress import BuildProgress
from data.cache.store import open_cache
from data.errors import CacheError, ShardError, UnreachableError
from data.tfrecord import framing
from tests.support.cached import SCHEMA, Decodings, assert_holds, damage, make_videos, output_of, start, write
from tests.support.workplace import PROJECT


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_first_shard_fails_and_leaves_nothing_behind(shards, folder, workers):
    damage(shards[0])
    with pytest.raises(ShardError, match=r"train0.tfrecord: record at byte \d+") as caught:
        open_cache(shards, SCHEMA, folder, workers=workers)
    assert caught.value.path == shards[0]
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_decoded_before_a_bad_one_are_not_decoded_again_when_it_is_skipped(shards, folder, workers, monkeypatch):
    damage(shards[3])
    with pytest.raises(ShardError, match=r"train3.tfrecord: record at byte \d+"):
        open_cache(shards, SCHEMA, folder, workers=workers)
    decodings = Decodings(monkeypatch)
    cached = open_cache(shards, SCHEMA, folder, on_bad_shard="skip")
    assert_holds(cached, shards[:3] + shards[4:])
    assert decodings.paths == shards[3:]


def test_a_build_that_skipped_a_shard_and_was_interrupted_fails_at_once_where_none_may_be_skipped(
    shards, folder, monkeypatch
):
    damage(shards[1])
    Decodings(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder, on_bad_shard="skip")
    decodings = Decodings(monkeypatch)
    with pytest.raises(ShardError, match=r"train1.tfrecord: record at byte \d+"):
        open_cache(shards, SCHEMA, folder)
    assert_holds(open_cache(shards, SCHEMA, folder, on_bad_shard="skip"), [shards[0], *shards[2:]])
    assert decodings.paths == shards[3:]


def test_a_resumed_build_that_finds_too_small_a_disk_keeps_what_is_decoded(shards, folder, monkeypatch):
    Decodings(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    with monkeypatch.context() as patch:
        patch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(CacheError, match=r"0\.00 GB are free"):
            open_cache(shards, SCHEMA, folder)
    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder), shards)
    assert decodings.paths == shards[3:]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_shard_may_be_left_out_whole(shards, folder, workers):
    damage(shards[3])
    rest = shards[:3] + shards[4:]
    reports = []
    cached = open_cache(shards, SCHEMA, folder, on_bad_shard="skip", workers=workers, progress=reports.append)
    assert_holds(cached, rest)
    assert [path for path, _ in cached.skipped] == [shards[3]]
    assert "CRC" in cached.skipped[0][1]
    assert reports[-1] == BuildProgress(shards_done=5, shards_total=5, num_videos=19, num_skipped=1)
    assert cached.fingerprint == open_cache(rest, SCHEMA, folder).fingerprint


def test_a_cache_with_a_skipped_shard_fails_where_none_may_be_skipped(shards, folder):
    damage(shards[3])
    open_cache(shards, SCHEMA, folder, on_bad_shard="skip")
    with pytest.raises(ShardError, match=r"train3.tfrecord: record at byte \d+"):
        open_cache(shards, SCHEMA, folder)


def test_a_missing_shard_is_named(shards, folder):
    Path(shards[1]).unlink()
    with pytest.raises(ShardError, match=r"train1\.tfrecord: no such file"):
        open_cache(shards, SCHEMA, folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_bad_shard": "ignore"}, "on_bad_shard must be 'fail' or 'skip', but got 'ignore'"),
        ({"dtype": "int8"}, "dtype must be 'float16' or 'float32', but got 'int8'"),
        ({"workers": 0}, "workers must be at least 1, but got 0"),
    ],
)
def test_a_setting_out_of_range_is_named(shards, folder, settings, message):
    with pytest.raises(ValueError, match=message):
        open_cache(shards, SCHEMA, folder, **settings)


# Interrupted builds


def test_an_interrupted_build_resumes_after_the_last_whole_shard(shards, folder, monkeypatch):
    first = Decodings(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    assert first.paths == shards[:3]
    second = Decodings(monkeypatch)
    reports = []
    assert_holds(open_cache(shards, SCHEMA, folder, progress=reports.append), shards)
    assert second.paths == shards[3:]
    assert [report.shards_done for report in reports] == [3, 4, 5]


@pytest.mark.parametrize("loss", ["torn line", "foreign line", "features", "ids", "label_indices"])
def test_a_shard_that_was_not_written_as_a_whole_is_decoded_again(shards, folder, monkeypatch, loss):
    Decodings(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    (working,) = folder.glob("*.building")
    if loss == "torn line":
        journal = (working / "journal.jsonl").read_text()
        (working / "journal.jsonl").write_text(journal[:-20])
    elif loss == "foreign line":
        lines = (working / "journal.jsonl").read_text().splitlines()
        lines[2] = json.dumps(json.loads(lines[2]) | {"path": "another"})
        (working / "journal.jsonl").write_text("\n".join(lines) + "\n")
    else:
        (path,) = working.glob(f"{loss}.*")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1  # pages lost with the power come back as zeros
        path.write_bytes(data)
    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder), shards)
    assert decodings.paths == shards[2:]


@settings(max_examples=25, deadline=None)
@given(
    stop_after=st.integers(0, 4),
    lengths=st.dictionaries(
        st.sampled_from(["features.npy", "label_lengths.bin", "label_indices.npy", "ids.bin", "journal.jsonl"]),
        st.floats(0, 1),
    ),
)
def test_files_cut_anywhere_never_show_in_the_cache(stop_after, lengths):
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        paths = [write(Path(directory) / f"s{i}", make_videos(1 + i, seed=i)) for i in range(4)]
        folder = Path(directory) / "caches"
        Decodings(patch, stop_after=stop_after)
        if stop_after < 4:
            with pytest.raises(KeyboardInterrupt):
                open_cache(paths, SCHEMA, folder)
            (working,) = folder.glob("*.building")
            for name, share in lengths.items():
                os.truncate(working / name, int(share * (working / name).stat().st_size))
        patch.undo()
        assert_holds(open_cache(paths, SCHEMA, folder), paths)


@pytest.mark.parametrize(
    ("module", "step"),
    [(columns, "sync"), (build, "_write_manifest"), (build, "find_each")],
    ids=["sync", "manifest", "find_each"],
)
def test_a_build_interrupted_at_its_end_decodes_no_shard_again(shards, folder, monkeypatch, module, step):
    original, calls = getattr(module, step), []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    monkeypatch.undo()
    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder), shards)
    assert decodings.paths == []


# The other process is slow and logs what it decodes.
SLOW_BUILDER = """
    import sys, time
    from pathlib import Path
    from data.cache import build
    from data.cache.store import open_cache
    from data.frames import decode_blocks
    from data.schema import Schema

    folder, log, *shards = sys.argv[1:]

    def slow(path, reading):
        time.sleep(0.1)
        with open(log, "a") as file:
            file.write(path + "\\n")
        return decode_blocks(path, reading)

    build.decode_blocks = slow
    waited = []
    cache = open_cache(
        shards,
        Schema(features={"rgb": 3, "audio": 2}, num_classes=7),
        Path(folder),
        workers=1,
        progress=lambda report: waited.append(report.waiting_for_lock),
    )
    print(cache.num_videos, any(waited))
"""


@pytest.mark.fault
def test_a_build_killed_in_the_middle_decodes_no_finished_shard_again(shards, folder, tmp_path, monkeypatch, fault_row):
    """The shards that were being decoded; those that were finished are not decoded again."""
    process = start(SLOW_BUILDER, folder, tmp_path / "log", *shards)
    deadline = time.monotonic() + 60
    while len([line for path in folder.glob("*/journal.jsonl") for line in path.read_text().splitlines()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (working,) = folder.glob("*.building")
    done = [shard.path for shard in read_journal(working)]
    assert 2 <= len(done) < 5
    decodings = Decodings(monkeypatch)
    resumed = open_cache(shards, SCHEMA, folder)
    assert_holds(resumed, shards)
    assert decodings.paths == shards[len(done) :]
    assert resumed.fingerprint == open_cache(shards, SCHEMA, tmp_path / "fresh").fingerprint
    fault_row("kill -9 of the process that decodes the shards", lost_epochs=0, recovery_seconds=None)


def test_several_processes_that_open_at_once_build_once(shards, folder, tmp_path):
    processes = [start(SLOW_BUILDER, folder, tmp_path / "log", *shards) for _ in range(3)]
    outputs = [output_of(process) for process in processes]
    assert [videos for videos, _ in outputs] == ["25", "25", "25"]
    assert sorted((tmp_path / "log").read_text().split()) == shards
    assert "True" in {waited for _, waited in outputs}


def test_a_builder_that_is_stopped_and_wakes_ends_its_build_and_nobody_else_touches_it(
    shards, folder, tmp_path, monkeypatch
):
    builder = start(SLOW_BUILDER, folder, tmp_path / "log", *shards)
    deadline = time.monotonic() + 60
    while not any(folder.glob("*.building/journal.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.send_signal(signal.SIGSTOP)
    (working,) = folder.glob("*.building")
    monkeypatch.setattr(eviction, "IDLE_SECONDS", -1.0)
    assert eviction.evict(folder, 1 << 60, folder / "another") == [] and working.exists()
    reports = []

    def wake(report):
        reports.append(report)
        if len(reports) == 5:
            builder.send_signal(signal.SIGCONT)

    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder, progress=wake), shards)
    assert reports[0].waiting_for_lock and decodings.paths == []
    assert output_of(builder) == ["25", "False"]
    assert (tmp_path / "log").read_text().split() == shards


def test_a_waiting_process_sees_the_progress_of_the_other(shards, folder):
    reports, waiting = [], threading.Event()

    def hold(report):
        if report.shards_done == 2:
            waiting.wait(30)

    def note(report):
        reports.append(report)
        waiting.set()

    builder = threading.Thread(target=open_cache, args=(shards, SCHEMA, folder), kwargs={"progress": hold})
    builder.start()
    while not any(folder.glob("*.building/journal.jsonl")):
        time.sleep(0.01)
    assert_holds(open_cache(shards, SCHEMA, folder, progress=note), shards)
    builder.join()
    assert reports[0].waiting_for_lock
    assert reports[0].shards_total == 5


def test_the_journal_is_read_on_where_the_last_look_stopped(shards, folder, monkeypatch):
    """Also after half a line, and after another build has begun."""
    Decodings(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    (working,) = folder.glob("*.building")
    journal = working / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:20])
    reader = journal_of.JournalReader(working)
    assert [shard.path for shard in reader.read()] == shards[:1] and reader.restarted
    journal.write_bytes(lines[0] + lines[1][:-1])
    assert reader.read() == [] and not reader.restarted
    journal.write_bytes(b"".join(lines))
    monkeypatch.setattr(journal_of.json, "loads", Counted(json.loads))
    assert [shard.path for shard in reader.read()] == shards[1:3] and not reader.restarted
    assert journal_of.json.loads.calls == 2
    monkeypatch.undo()
    journal.write_bytes(lines[0])
    assert [shard.path for shard in reader.read()] == shards[:1] and reader.restarted


class Counted:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


# Processes, whatever starts them


@pytest.mark.parametrize(
    ("cpus", "gib", "environment", "expected"),
    [(64.0, 256, "", 64), (64.0, 8, "", 3), (1.5, 8, "", 1), (0.25, 0.5, "", 1), (64.0, 8, "7", 7)],
)
def test_as_many_processes_decode_as_cpus_and_memory_allow(monkeypatch, cpus, gib, environment, expected):
    monkeypatch.setattr(decoding.machine, "cpus", lambda: cpus)
    monkeypatch.setattr(decoding.machine, "memory", lambda: int(gib * 2**30))
    monkeypatch.setenv("TUNER_DECODE_WORKERS", environment)
    assert decoding.default_workers() == expected


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("TUNER_DECODE_WORKERS", value)
    with pytest.raises(CacheError, match=f"TUNER_DECODE_WORKERS must be a whole number above 0, but is '{value}'"):
        decoding.default_workers()


def test_processes_start_from_another_thread(shards, folder):
    result = SimpleNamespace()
    thread = threading.Thread(target=lambda: setattr(result, "cache", open_cache(shards, SCHEMA, folder, workers=2)))
    thread.start()
    thread.join()
    assert_holds(result.cache, shards)


UNGUARDED = """
    import sys
    from pathlib import Path
    from data.cache.store import open_cache
    from data.schema import Schema

    print("once")
    schema = Schema(features={"rgb": 3, "audio": 2}, num_classes=7)
    print(open_cache(sys.argv[2:], schema, Path(sys.argv[1]), workers=2).num_videos)
"""


def test_processes_start_from_a_command_line(shards, folder):
    assert output_of(start(UNGUARDED, folder, *shards)) == ["once", "25"]


def test_processes_start_from_a_script_without_a_main_guard(shards, folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(UNGUARDED))
    process = subprocess.run(
        [sys.executable, str(script), str(folder), *shards],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.stdout.split() == ["once", "25"], process.stderr


@pytest.mark.slow
def test_processes_start_inside_a_ray_worker(shards, folder):
    """Its __main__ is Ray's own script, which no other process may run again."""
    code = """
        import sys
        from pathlib import Path
        import ray
        from data.cache.store import open_cache
        from data.schema import Schema

        @ray.remote(num_cpus=1)
        def build(folder, shards):
            schema = Schema(features={"rgb": 3, "audio": 2}, num_classes=7)
            return open_cache(shards, schema, Path(folder), workers=2).num_videos

        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        print(ray.get(build.remote(sys.argv[1], sys.argv[2:])))
        ray.shutdown()
    """
    assert output_of(start(code, folder, *shards)) == ["25"]
    assert_holds(open_cache(shards, SCHEMA, folder), shards)


# Disk


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(shards, folder, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    decodings = Decodings(monkeypatch)
    with pytest.raises(
        CacheError, match=r"caches: the cache of 5 shards needs about 0.00 GB more, but 0.00 GB are free"
    ):
        open_cache(shards, SCHEMA, folder)
    assert decodings.paths == []
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


def test_a_disk_that_fills_up_is_reported_and_cleared(shards, folder, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns.ColumnFiles, "finish", full)
    with pytest.raises(CacheError, match="the disk became full while the cache was written"):
        open_cache(shards, SCHEMA, folder)
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


# The way to the shards


class Broken:
    """Replaces `open` for shards: reading the one of that name fails as often as `errors` has entries."""

    def __init__(self, monkeypatch, name, *errors):
        self._name, self._errors = name, list(errors)
        monkeypatch.setattr(framing, "open", self, raising=False)
        monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)

    def __call__(self, path, *arguments, **options):
        if self._errors and path.endswith(self._name):
            raise self._errors.pop(0)
        return open(path, *arguments, **options)

    @property
    def is_over(self):
        return not self._errors


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("rule", ["skip", "fail"])
def test_a_read_that_fails_for_a_moment_is_tried_again_and_no_shard_is_left_out(
    shards, folder, monkeypatch, number, rule
):
    broken = Broken(monkeypatch, "train3.tfrecord", *[OSError(number, os.strerror(number))] * 3)
    cached = open_cache(shards, SCHEMA, folder, on_bad_shard=rule)
    assert broken.is_over and cached.skipped == ()
    assert_holds(cached, shards)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied")], ids=repr
)
def test_a_shard_that_cannot_be_read_is_never_skipped_and_the_next_build_resumes(shards, folder, monkeypatch, error):
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        Broken(patch, "train3.tfrecord", *[error] * 1000)
        with pytest.raises(UnreachableError, match=rf"train3.tfrecord: cannot be rea.*{error.strerror}"):
            open_cache(shards, SCHEMA, folder, on_bad_shard="skip")
    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder, on_bad_shard="skip"), shards)
    assert decodings.paths == shards[3:]


def test_a_stream_goes_on_behind_the_record_at_which_it_broke(shards, monkeypatch):
    reads = 0

    class Flaky(io.FileIO):
        def read(self, size=-1):
            nonlocal reads
            reads += 1
            if reads % 5 == 0:
                raise OSError(errno.ESTALE, "Stale file handle")
            return super().read(size)

    expected = list(framing.read_records(shards[0]))
    monkeypatch.setattr(framing, "open", lambda path, mode: Flaky(path), raising=False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    assert list(framing.read_records(shards[0])) == expected and reads > 5

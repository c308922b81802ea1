"""The cache: the same columns as decoding one by one, built once, and never half a cache."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tfrecord import TFRecordWriter

from data import frames
from data.cache import build
from data.cache import store as cache
from data.cache.store import BuildProgress, Cache, find_shards, open_cache
from data.errors import CacheError, NoShardsError, ShardError
from data.schema import Schema
from data.tfrecord.shards import decode_shard

PROJECT = Path(__file__).parents[2]
REAL = PROJECT.parent / "shared" / "data" / "yt8m"
SCHEMA = Schema(features={"rgb": 3, "audio": 2}, num_classes=7)
COLUMNS = [column.finished for column in build.columns_of(SCHEMA, "float16")]


def make_videos(num_videos, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": (f"{seed}-{row}".encode(), "byte"),
            "labels": (sorted(rng.choice(7, rng.integers(1, 4), replace=False).tolist()), "int"),
            "rgb": (rng.normal(size=3).tolist(), "float"),
            "audio": (rng.normal(size=2).tolist(), "float"),
        }
        for row in range(num_videos)
    ]


def write(path, videos):
    writer = TFRecordWriter(str(path))
    for video in videos:
        writer.write(video)
    writer.close()
    return str(path)


@pytest.fixture
def shards(tmp_path):
    """Five shards of three to seven videos."""
    (tmp_path / "shards").mkdir()
    return [write(tmp_path / "shards" / f"train{i}.tfrecord", make_videos(3 + i, seed=i)) for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "caches"


def assert_holds(cached, paths, dtype="float16"):
    """The columns are those of the shards, decoded one by one and laid end to end."""
    parts = [decode_shard(path, SCHEMA) for path in paths]
    assert cached.num_videos == sum(len(part.ids) for part in parts)
    assert cached.features_ND.shape == (cached.num_videos, 5)
    assert cached.features_ND.dtype == dtype
    expected_ND = np.concatenate([np.zeros((0, 5)), *(part.features_ND for part in parts)]).astype(dtype)
    np.testing.assert_array_equal(cached.features_ND, expected_ND)
    assert cached.ids.tolist() == [video for part in parts for video in part.ids.tolist()]
    labels = [part.label_indices[a:b].tolist() for part in parts for a, b in windows(part.label_offsets)]
    assert [cached.label_indices[a:b].tolist() for a, b in windows(cached.label_offsets)] == labels
    assert cached.label_offsets.dtype == np.int64
    assert cached.label_indices.dtype == np.int32
    assert cached.damaged() == []


def windows(offsets):
    return list(pairwise(offsets))


class Decodings:
    """Counts what is decoded in this process; may break off in the middle."""

    def __init__(self, monkeypatch, stop_after=None):
        self.paths, self.stop_after = [], stop_after
        monkeypatch.setattr(frames, "decode", self)

    def __call__(self, path, schema, **settings):
        if len(self.paths) == self.stop_after:
            raise KeyboardInterrupt
        self.paths.append(path)
        return decode_shard(path, schema, **settings)


# -------------------------------------------------------------------------------------------------- what it holds


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.booleans())
def test_any_split_over_shards_gives_the_columns_of_decoding_one_by_one(sizes, long_ids):
    with tempfile.TemporaryDirectory() as directory:
        paths, videos = [], make_videos(sum(sizes))
        if long_ids:
            videos[-1:] = [video | {"id": (b"a-much-longer-id", "byte")} for video in videos[-1:]]
        for index, size in enumerate(sizes):
            paths.append(write(Path(directory) / f"s{index}", videos[:size]))
            videos = videos[size:]
        # Any order of the arguments: rows come in the sorted order of the shards.
        assert_holds(open_cache(paths[::-1], SCHEMA, Path(directory) / "caches"), paths)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_and_none_build_the_same_cache(shards, folder, workers):
    cached = open_cache(shards, SCHEMA, folder, workers=workers)
    assert_holds(cached, shards)
    assert [shard.num_videos for shard in cached.shards] == [3, 4, 5, 6, 7]
    assert cached.num_bytes == sum((cached.directory / name).stat().st_size for name in COLUMNS)
    assert sorted(path.name for path in cached.directory.iterdir()) == sorted([*COLUMNS, "manifest.json"])


def test_a_split_without_videos_is_a_cache_of_none(tmp_path, folder):
    (tmp_path / "empty").touch()
    cached = open_cache([str(tmp_path / "empty")], SCHEMA, folder)
    assert_holds(cached, [])
    assert cached.num_videos == 0
    assert cached.statistics().num_videos == 0


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(shards, tmp_path, folder):
    here = open_cache(shards, SCHEMA, folder)
    (tmp_path / "copy").mkdir()
    copies = [write(tmp_path / "copy" / f"other{i}.tfrecord", make_videos(3 + i, seed=i)) for i in range(5)]
    there = open_cache(copies, SCHEMA, tmp_path / "elsewhere")
    assert here.fingerprint == there.fingerprint
    assert here.directory.name != there.directory.name
    assert open_cache(shards[:4], SCHEMA, folder).fingerprint != here.fingerprint
    narrower = Schema(features={"rgb": 3}, num_classes=7)
    assert open_cache(shards, narrower, folder).fingerprint != here.fingerprint


def test_float32_keeps_every_bit(shards, folder):
    assert_holds(open_cache(shards, SCHEMA, folder, dtype="float32"), shards, dtype="float32")


def test_a_value_beyond_float16_is_named_and_float32_takes_it(tmp_path, folder):
    videos = make_videos(3)
    videos[1]["audio"] = ([0.5, 70000.0], "float")
    path = write(tmp_path / "large", videos)
    with pytest.raises(ShardError, match=r"large: record at byte \d+, key 'audio': .*70000.*float16"):
        open_cache([path], SCHEMA, folder)
    assert open_cache([path], SCHEMA, folder, dtype="float32").features_ND.max() == 70000


def test_labels_are_needed_unless_said_otherwise(tmp_path, folder):
    videos = make_videos(2)
    del videos[1]["labels"]
    path = write(tmp_path / "unlabelled", videos)
    with pytest.raises(ShardError, match="labels"):
        open_cache([path], SCHEMA, folder)
    cached = open_cache([path], SCHEMA, folder, require_labels=False)
    assert cached.label_offsets[1] == cached.label_offsets[2] > 0


def test_statistics_are_computed_once_and_kept(shards, folder, monkeypatch):
    cached = open_cache(shards, SCHEMA, folder)
    first = cached.statistics()
    np.testing.assert_allclose(first.mean_D, cached.features_ND.astype(np.float64).mean(axis=0), rtol=1e-6)
    monkeypatch.setattr(cache, "statistics_of", None)
    second = open_cache(shards, SCHEMA, folder).statistics()
    np.testing.assert_array_equal(first.variance_D, second.variance_D)
    np.testing.assert_array_equal(first.label_counts_C, second.label_counts_C)
    monkeypatch.undo()
    (cached.directory / "statistics.npz").write_bytes(b"damaged")
    np.testing.assert_array_equal(cached.statistics().mean_D, first.mean_D)


def test_statistics_need_no_room_on_the_disk(shards, folder, monkeypatch):
    cached = open_cache(shards, SCHEMA, folder)

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    assert cached.statistics().num_videos == 25
    assert not list(cached.directory.glob("statistics*"))


def test_a_cache_crosses_processes_as_its_folders_name(shards, folder):
    cached = open_cache(shards, SCHEMA, folder)
    data = pickle.dumps(cached)
    assert len(data) < 1000
    assert_holds(pickle.loads(data), shards)


def test_columns_cannot_be_written(shards, folder):
    with pytest.raises(ValueError, match="read-only"):
        open_cache(shards, SCHEMA, folder).features_ND[0, 0] = 1


# ------------------------------------------------------------------------------------------- built once, or again


def test_a_cache_that_is_there_is_not_built_again(shards, folder, monkeypatch):
    open_cache(shards, SCHEMA, folder)
    decodings = Decodings(monkeypatch)
    reports = []
    assert_holds(open_cache(shards, SCHEMA, folder, progress=reports.append), shards)
    assert decodings.paths == reports == []


@pytest.mark.parametrize("change", ["content", "touch", "schema", "dtype"])
def test_a_change_of_shard_or_schema_builds_another_cache(shards, folder, change):
    before = open_cache(shards, SCHEMA, folder)
    schema, dtype = SCHEMA, "float16"
    if change == "content":
        write(shards[2], make_videos(9, seed=9))
    if change == "touch":
        os.utime(shards[2], ns=(1, 1))
    if change == "schema":
        schema = Schema(features={"audio": 2, "rgb": 3}, num_classes=7)
    if change == "dtype":
        dtype = "float32"
    after = open_cache(shards, schema, folder, dtype=dtype)
    assert after.directory != before.directory
    assert (after.num_videos == before.num_videos) == (change != "content")
    if change == "schema":
        np.testing.assert_array_equal(after.features_ND[:, 2:], before.features_ND[:, :3])


@pytest.mark.parametrize("damage", ["short column", "missing column", "missing manifest", "garbled manifest", "header"])
def test_a_damaged_cache_is_built_again(shards, folder, damage):
    directory = open_cache(shards, SCHEMA, folder).directory
    if damage == "short column":
        with open(directory / "features.npy", "r+b") as file:
            file.truncate(200)
    if damage == "missing column":
        (directory / "ids.npy").unlink()
    if damage == "missing manifest":
        (directory / "manifest.json").unlink()
    if damage == "garbled manifest":
        (directory / "manifest.json").write_text('{"format": 1, "columns"')
    if damage == "header":
        with open(directory / "label_offsets.npy", "r+b") as file:
            file.write(b"nonsense")
    assert_holds(open_cache(shards, SCHEMA, folder), shards)


def test_flipped_bits_are_found_by_reading_everything(shards, folder):
    cached = open_cache(shards, SCHEMA, folder)
    with open(cached.directory / "features.npy", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x55")
    assert Cache.load(cached.directory).damaged() == [shards[-1]]


def test_a_shard_that_changes_while_it_is_read_is_not_trusted(shards, folder, monkeypatch):
    def touched(path, schema, **settings):
        os.utime(path, ns=(1, 1))
        return decode_shard(path, schema, **settings)

    monkeypatch.setattr(frames, "decode", touched)
    with pytest.raises(CacheError, match="changed while it was read"):
        open_cache(shards, SCHEMA, folder)
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


# ------------------------------------------------------------------------------------------------------ bad shards


def damage(path):
    data = bytearray(Path(path).read_bytes())
    data[-6] ^= 1
    Path(path).write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_shard_fails_and_leaves_nothing_behind(shards, folder, workers):
    damage(shards[3])
    with pytest.raises(ShardError, match=r"train3.tfrecord: record at byte \d+") as caught:
        open_cache(shards, SCHEMA, folder, workers=workers)
    assert caught.value.path == shards[3]
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


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


def test_a_cache_with_a_gap_still_fails_for_those_who_want_none(shards, folder):
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


# ---------------------------------------------------------------------------------------------- interrupted builds


def test_an_interrupted_build_goes_on_behind_the_last_whole_shard(shards, folder, monkeypatch):
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
def test_what_was_not_written_whole_is_decoded_again(shards, folder, monkeypatch, loss):
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


@pytest.mark.parametrize("step", ["_sync", "_write_manifest", "find_shard"])
def test_a_build_interrupted_at_its_end_decodes_nothing_again(shards, folder, monkeypatch, step):
    original, calls = getattr(build, step), []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == (7 if step == "find_shard" else 1):  # five looks before, then those after
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(build, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder)
    monkeypatch.undo()
    decodings = Decodings(monkeypatch)
    assert_holds(open_cache(shards, SCHEMA, folder), shards)
    assert decodings.paths == []


# The other process: slow, and it writes down what it decodes.
SLOW_BUILDER = """
    import sys, time
    from pathlib import Path
    from data import frames
    from data.cache.store import open_cache
    from data.schema import Schema
    from data.tfrecord.shards import decode_shard

    folder, log, *shards = sys.argv[1:]

    def slow(path, schema, **settings):
        time.sleep(0.1)
        with open(log, "a") as file:
            file.write(path + "\\n")
        return decode_shard(path, schema, **settings)

    frames.decode = slow
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


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process):
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out.split()


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
    done = [record.path for record in build.read_journal(working)]
    assert 2 <= len(done) < 5
    decodings = Decodings(monkeypatch)
    resumed = open_cache(shards, SCHEMA, folder)
    assert_holds(resumed, shards)
    assert decodings.paths == shards[len(done) :]
    assert resumed.fingerprint == open_cache(shards, SCHEMA, tmp_path / "fresh").fingerprint
    fault_row("kill -9 of who decodes the shards", lost_epochs=0, recovery_seconds=None)


def test_several_processes_that_ask_at_once_build_once(shards, folder, tmp_path):
    processes = [start(SLOW_BUILDER, folder, tmp_path / "log", *shards) for _ in range(3)]
    outputs = [output_of(process) for process in processes]
    assert [videos for videos, _ in outputs] == ["25", "25", "25"]
    assert sorted((tmp_path / "log").read_text().split()) == shards
    assert "True" in {waited for _, waited in outputs}


def test_who_waits_sees_how_far_the_other_is(shards, folder):
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


# --------------------------------------------------------------------------- processes, from wherever they are called


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


# ------------------------------------------------------------------------------------------------------------ disk


def test_too_small_a_disk_is_said_before_anything_is_written(shards, folder, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    decodings = Decodings(monkeypatch)
    with pytest.raises(
        CacheError, match=r"caches: the cache of 5 shards needs about 0.00 GB more, but 0.00 GB are free"
    ):
        open_cache(shards, SCHEMA, folder)
    assert decodings.paths == []
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


def test_a_disk_that_fills_up_is_said_and_cleared(shards, folder, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build._Columns, "finish", full)
    with pytest.raises(CacheError, match="the disk became full while the cache was written"):
        open_cache(shards, SCHEMA, folder)
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


# ----------------------------------------------------------------------------------------------------- finding shards


def test_globs_and_lists_give_sorted_files_once(shards, tmp_path, monkeypatch):
    assert find_shards(str(tmp_path / "shards" / "*.tfrecord")) == shards
    monkeypatch.chdir(tmp_path)
    assert find_shards(["shards/train3.tfrecord", "shards/train[13].tfrecord", shards[0]]) == [
        shards[0],
        shards[1],
        shards[3],
    ]
    assert find_shards("**/train1.tfrecord") == [shards[1]]
    assert find_shards(f"file://{tmp_path}/shards/*") == shards


def test_a_file_with_brackets_in_its_name_is_found(tmp_path):
    path = write(tmp_path / "train[1].tfrecord", [])
    assert find_shards(path) == [path]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none*.tfrecord", r"none\*.tfrecord: no file matches"),
        ("none.tfrecord", "none.tfrecord: no such file"),
        ("shards", r"shards: is a folder; give its files, as in .*shards/\*.tfrecord"),
        ("memory://none/*.tfrecord", "no file matches"),
        ("nothing://none/*.tfrecord", "cannot be listed: Protocol not known: nothing"),
    ],
)
def test_a_pattern_without_files_is_named(shards, tmp_path, monkeypatch, pattern, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoShardsError, match=message):
        find_shards([shards[0], pattern])


def test_no_pattern_is_no_shards(folder):
    with pytest.raises(NoShardsError):
        find_shards([])
    with pytest.raises(NoShardsError):
        open_cache([], SCHEMA, folder)


def test_shards_behind_a_url_are_cached_alike(shards, folder):
    memory = fsspec.filesystem("memory")
    for path in shards:
        memory.pipe(f"/bucket/{Path(path).name}", Path(path).read_bytes())
    urls = find_shards("memory://bucket/*.tfrecord")
    assert len(urls) == 5
    cached = open_cache(urls, SCHEMA, folder)
    assert_holds(cached, shards)
    assert open_cache(urls, SCHEMA, folder).directory == cached.directory
    memory.pipe("/bucket/train0.tfrecord", Path(shards[1]).read_bytes())
    assert open_cache(urls, SCHEMA, folder).num_videos == 26


# ------------------------------------------------------------------------------------------------------ command line


def arguments(folder, *data):
    features = ["--features", "rgb=3", "audio=2", "--num-classes", "7"]
    return ["--data", *data, *features, "--directory", str(folder)]


def test_the_command_says_what_the_cache_holds(shards, folder, capsys):
    assert cache.main(arguments(folder, str(Path(shards[0]).parent / "*.tfrecord"))) == 0
    out = capsys.readouterr().out
    assert "25" in out and "rgb 3, audio 2" in out and "without a positive" in out and "built in" in out
    assert cache.main(arguments(folder, *shards)) == 0
    assert "was there; checked" in capsys.readouterr().out


def test_the_command_lists_skipped_shards(shards, folder, capsys):
    damage(shards[2])
    assert cache.main([*arguments(folder, *shards), "--on-bad-shard", "skip"]) == 0
    assert "train2.tfrecord" in capsys.readouterr().out


def test_the_command_mends_a_damaged_cache(shards, folder, capsys):
    cached = open_cache(shards, SCHEMA, folder)
    with open(cached.directory / "features.npy", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x55")
    assert cache.main(arguments(folder, *shards)) == 0
    assert "built in" in capsys.readouterr().out
    assert_holds(Cache.load(cached.directory), shards)


def test_bad_input_is_one_sentence_and_exit_code_2(shards, folder, capsys):
    damage(shards[2])
    for bad in (
        arguments(folder, *shards),
        arguments(folder, "nowhere/*"),
        [*arguments(folder, *shards), "--workers=0"],
    ):
        assert cache.main(bad) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len([line for line in captured.err.splitlines() if line.strip()]) == 1
    with pytest.raises(SystemExit) as caught:
        cache.main(["--data", shards[0], "--features", "rgb"])
    assert caught.value.code == 2
    assert "'rgb' is not NAME=WIDTH" in capsys.readouterr().err


def test_opening_a_cache_imports_no_torch():
    code = (
        "import sys, data.cache.store; print(sorted({'torch', 'ray', 'rich', 'mlflow', 'fsspec'} & set(sys.modules)))"
    )
    assert output_of(start(code)) == ["[]"]


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.skipif(not REAL.exists(), reason="needs the real shards beside the project")
def test_real_shards_are_cached_whole(folder):
    cached = open_cache(find_shards(str(REAL / "validate" / "*")), Schema(), folder)
    assert cached.num_videos == 3501
    assert cached.features_ND.shape == (3501, 1152)
    assert 2.5 < len(cached.label_indices) / 3501 < 3.5
    assert np.abs(cached.statistics().mean_D).max() < 1

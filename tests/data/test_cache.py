"""The cache: the columns that decoding shard by shard gives, and never half a cache."""

import os
import pickle
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cache import build, store
from data.cache.recipe import find_shards
from data.cache.store import Cache, open_cache
from data.errors import CacheError, ShardError
from data.frames import decode_blocks
from data.schema import Schema
from tests.support.cached import COLUMNS, SCHEMA, Decodings, assert_holds, make_videos, output_of, start, write
from tests.support.workplace import PROJECT

REAL = PROJECT.parent / "shared" / "data" / "yt8m"


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
    assert sorted(path.name for path in cached.directory.iterdir()) == sorted(
        [*COLUMNS, "manifest.json", "statistics.npz"]
    )


def test_a_split_without_videos_is_a_cache_of_none(tmp_path, folder):
    (tmp_path / "empty").touch()
    cached = open_cache([str(tmp_path / "empty")], SCHEMA, folder)
    assert_holds(cached, [])
    assert cached.num_videos == 0
    assert cached.statistics().num_videos == 0


def test_the_fingerprint_depends_on_the_content_and_not_on_the_path(shards, tmp_path, folder):
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


def test_a_value_beyond_float16_is_named_and_float32_stores_it(tmp_path, folder):
    videos = make_videos(3)
    videos[1]["audio"] = ([0.5, 70000.0], "float")
    path = write(tmp_path / "large", videos)
    with pytest.raises(ShardError, match=r"large: record at byte \d+, key 'audio': .*70000.*float16"):
        open_cache([path], SCHEMA, folder)
    assert open_cache([path], SCHEMA, folder, dtype="float32").features_ND.max() == 70000


def test_labels_are_required_unless_told_otherwise(tmp_path, folder):
    videos = make_videos(2)
    del videos[1]["labels"]
    path = write(tmp_path / "unlabelled", videos)
    with pytest.raises(ShardError, match="labels"):
        open_cache([path], SCHEMA, folder)
    cached = open_cache([path], SCHEMA, folder, require_labels=False)
    assert cached.label_offsets[1] == cached.label_offsets[2] > 0


def summed_up(monkeypatch):
    """Counts the passes over the features of a cache."""
    passes, original = [], Cache._summed_up
    monkeypatch.setattr(Cache, "_summed_up", lambda self, report: passes.append(1) or original(self, report))
    return passes


def test_statistics_are_summed_up_while_shards_are_decoded(shards, folder, monkeypatch):
    passes = summed_up(monkeypatch)
    cached = open_cache(shards, SCHEMA, folder, workers=2)
    statistics = cached.statistics()
    assert passes == []
    wide_ND = cached.features_ND.astype(np.float64)
    np.testing.assert_array_equal(statistics.mean_D, wide_ND.mean(axis=0).astype(np.float32))
    np.testing.assert_allclose(statistics.variance_D, wide_ND.var(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(statistics.label_counts_C, np.bincount(cached.label_indices, minlength=7))
    again = open_cache(shards, SCHEMA, folder / "alone", workers=1).statistics()
    np.testing.assert_array_equal(statistics.variance_D, again.variance_D)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_statistics_that_are_missing_are_computed_once_and_said(shards, folder, monkeypatch, damage):
    """A cache of an earlier version has none before they are asked for."""
    passes, reports = summed_up(monkeypatch), []
    cached = open_cache(shards, SCHEMA, folder)
    first = cached.totals()
    path = cached.directory / "statistics.npz"
    path.unlink() if damage == "missing" else path.write_bytes(b"damaged")
    second = cached.statistics(reports.append)
    np.testing.assert_array_equal(first.statistics().mean_D, second.mean_D)
    np.testing.assert_array_equal(first.statistics().variance_D, second.variance_D)
    assert [report.shards_done for report in reports] == [1, 2, 3, 4, 5] and reports[-1].summing
    np.testing.assert_array_equal(
        open_cache(shards, SCHEMA, folder).totals().moments.squares_D, first.moments.squares_D
    )
    assert len(passes) == 1


def test_statistics_are_computed_by_one_process_at_a_time(shards, folder, monkeypatch):
    passes = summed_up(monkeypatch)
    cached = open_cache(shards, SCHEMA, folder)
    (cached.directory / "statistics.npz").unlink()
    together = threading.Barrier(2)

    def compute():
        together.wait()
        return open_cache(shards, SCHEMA, folder).statistics()

    with ThreadPoolExecutor(2) as threads:
        one, other = (threads.submit(compute) for _ in range(2))
        np.testing.assert_array_equal(one.result().mean_D, other.result().mean_D)
    assert len(passes) == 1


def test_statistics_are_computed_on_a_full_disk_too(shards, folder, monkeypatch):
    cached = open_cache(shards, SCHEMA, folder)
    (cached.directory / "statistics.npz").unlink()

    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    assert cached.statistics().num_videos == 25
    assert not list(cached.directory.glob("statistics*"))


def test_a_cache_pickles_as_the_path_of_its_folder(shards, folder):
    cached = open_cache(shards, SCHEMA, folder)
    data = pickle.dumps(cached)
    assert len(data) < 1000
    assert_holds(pickle.loads(data), shards)


def test_columns_cannot_be_written(shards, folder):
    with pytest.raises(ValueError, match="read-only"):
        open_cache(shards, SCHEMA, folder).features_ND[0, 0] = 1


# Built once, or again


def test_an_existing_cache_is_not_built_again(shards, folder, monkeypatch):
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


def test_a_shard_that_changes_while_it_is_read_is_refused(shards, folder, monkeypatch):
    def touched(path, reading):
        os.utime(path, ns=(1, 1))
        return decode_blocks(path, reading)

    monkeypatch.setattr(build, "decode_blocks", touched)
    with pytest.raises(CacheError, match="changed while it was read"):
        open_cache(shards, SCHEMA, folder)
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])


def test_opening_a_cache_imports_no_torch():
    code = (
        "import sys, data.cache.store; print(sorted({'torch', 'ray', 'rich', 'mlflow', 'fsspec'} & set(sys.modules)))"
    )
    assert output_of(start(code)) == ["[]"]


# Real data


@pytest.mark.skipif(not REAL.exists(), reason="needs the real shards beside the project")
def test_real_shards_are_cached_whole(folder):
    cached = open_cache(find_shards(str(REAL / "validate" / "*")), Schema(), folder)
    assert cached.num_videos == 3501
    assert cached.features_ND.shape == (3501, 1152)
    assert 2.5 < len(cached.label_indices) / 3501 < 3.5
    assert np.abs(cached.statistics().mean_D).max() < 1

"""Which shards there are, by path, glob or URL."""

from pathlib import Path

import fsspec
import pytest

from data.cache.recipe import find_shards
from data.cache.store import open_cache
from data.errors import NoShardsError
from tests.support.cached import SCHEMA, assert_holds, write


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

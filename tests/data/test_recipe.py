"""Which shards there are, by path, glob or URL."""

import threading
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data.cache import recipe
from data.cache.recipe import find_each, find_shard, find_shards
from data.cache.store import open_cache
from data.errors import NoShardsError, ShardError, UnreachableError
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


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_the_name_of_a_folder_is_no_pattern(tmp_path, monkeypatch, scheme):
    """The folder of a yaml is part of every pattern in it, and the user did not write it as one."""
    folder = f"/{tmp_path.name}/data [2018]" if scheme == "memory://" else f"{tmp_path}/data [2018]"
    filesystem = fsspec.filesystem(scheme.removesuffix("://") or "file")
    for name in ("train1", "train2", "train[12]", "a/b [1]/c1"):
        filesystem.makedirs(f"{folder}/a/b [1]", exist_ok=True)
        filesystem.pipe(f"{folder}/{name}.tfrecord", b"")

    def names(pattern):
        return [path.rpartition("/")[2] for path in find_shards(f"{scheme}{folder}/{pattern}")]

    assert names("train*.tfrecord") == ["train1.tfrecord", "train2.tfrecord", "train[12].tfrecord"]
    assert names("train[12].tfrecord") == ["train[12].tfrecord"]
    assert names("train[2-9].tfrecord") == ["train2.tfrecord"]
    assert names("a/b [1]/c?.tfrecord") == names("*/b [[]1]/c1.tfrecord") == ["c1.tfrecord"]


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


# What is asked of a store


@pytest.fixture
def bucket(shards):
    """The URLs of ten shards in a store, and of one in another folder."""
    memory = fsspec.filesystem("memory")
    names = [f"/asked/train{number:02d}.tfrecord" for number in range(10)] + ["/asked/beside/train.tfrecord"]
    for name in names:
        memory.pipe(name, Path(shards[0]).read_bytes())
    yield [f"memory:/{name}" for name in names]
    memory.rm("/asked", recursive=True)


@pytest.fixture
def etags(monkeypatch):
    """Lets the store give every file an etag, as object stores do."""
    ls, info = MemoryFileSystem.ls, MemoryFileSystem.info

    def tagged(entry):
        return entry | {"ETag": f'"{entry["name"]}"'}

    monkeypatch.setattr(
        MemoryFileSystem, "ls", lambda *given, **named: [tagged(entry) for entry in ls(*given, **named)]
    )
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *given, **named: tagged(info(*given, **named)))


def test_shards_of_a_folder_are_found_by_one_listing(bucket, etags, monkeypatch):
    alone = [find_shard(url) for url in bucket]
    asked = []
    for function in ("ls", "info"):
        original = getattr(MemoryFileSystem, function)

        def counted(self, path, *arguments, original=original, function=function, **options):
            asked.append((function, path))
            return original(self, path, *arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, function, counted)
    found = find_each(bucket)
    assert sorted(asked) == [("info", "/asked/beside/train.tfrecord"), ("ls", "/asked")]
    assert found == alone and found[0].size > 0


def test_stores_and_disks_are_asked_for_several_shards_at_once(bucket, shards, monkeypatch):
    """Every request waits until four have begun."""
    together = threading.Barrier(4, timeout=10)
    info = recipe._info
    monkeypatch.setattr(recipe, "_info", lambda url: (together.wait(), info(url))[1])
    assert [shard.path for shard in find_each(bucket[:4])] == bucket[:4]


def test_a_shard_that_is_not_in_the_listing_is_named(bucket):
    with pytest.raises(ShardError, match=r"^memory://asked/none.tfrecord: no such file$"):
        find_each([*bucket, "memory://asked/none.tfrecord"])


def test_a_folder_that_may_not_be_listed_is_asked_file_by_file(bucket, etags, monkeypatch):
    expected = find_each(bucket)

    def denied(*arguments, **options):
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "ls", denied)
    assert find_each(bucket) == expected


def test_a_file_that_cannot_be_asked_for_is_no_missing_one(shards, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(recipe.os, "stat", denied)
    with pytest.raises(UnreachableError, match=r"train0.tfrecord: cannot be read: Permission denied"):
        find_each(shards)
    assert recipe.shard_exists(shards[0])

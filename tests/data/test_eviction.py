"""Caches are removed for a new one: the least recently used first, none that a process has open."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data.cache import build, eviction
from data.cache.recipe import find_shards
from data.cache.store import Cache, find_cache, open_cache
from data.errors import CacheError
from data.sample import write_splits
from data.schema import Schema
from tests.support.workplace import PROJECT

SCHEMA = Schema(features={"rgb": 1024}, num_classes=4)
HOLDER = """
import sys
from pathlib import Path
from data.cache.store import Cache
cache = Cache.load(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""
Open = Callable[[str], Cache]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens the cache of some shards by name, made where they are missing."""

    def open_named(name: str, **settings: Any) -> Cache:
        write_splits(
            tmp_path / name,
            num_videos={"train": 40},
            num_shards=1,
            num_classes=4,
            features=SCHEMA.features,
            seed=len(name),
        )
        return open_cache(find_shards(str(tmp_path / name / "*.tfrecord")), SCHEMA, tmp_path / "caches", **settings)

    return open_named


def idle(cache: Cache, hours: float) -> Path:
    """Makes a cache look unused for some hours."""
    then = time.time() - 3600 * hours
    os.utime(cache.directory / eviction.MANIFEST, (then, then))
    return cache.directory


@contextmanager
def held(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A second process that has the cache open."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_the_least_recently_used_caches_are_removed_and_no_more_than_needed(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: idle(opened(name), hours) for name, hours in (("a", 5), ("bb", 9), ("ccc", 2), ("dddd", 0.5))}
    available = iter([0, 0, 0, 1 << 40, 1 << 40, 1 << 40])  # before, and after the second that is removed
    monkeypatch.setattr(eviction, "_available_bytes", lambda *_: next(available))
    reports: list[build.BuildProgress] = []
    opened("eeeee", progress=reports.append)  # type: ignore[call-arg]
    assert [name for name, folder in folders.items() if folder.exists()] == ["ccc", "dddd"]
    assert [line.split()[1] for line in reports[-1].removed] == [str(folders["bb"]), str(folders["a"])]
    assert "last used 9 h ago" in reports[-1].removed[0]


def test_a_cache_that_is_open_or_was_used_within_the_hour_stays(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = idle(opened("a"), 9), idle(opened("bb"), 0.9), idle(opened("ccc"), 2)
    monkeypatch.setattr(eviction, "_available_bytes", lambda *_: 0)
    with held(first) as process:
        idle(Cache.load(first), 9)  # opening it was a use
        with pytest.raises(CacheError, match=r"0\.00 GB are free"):
            opened("dddd")
        assert [folder.exists() for folder in (first, second, third)] == [True, True, False]
        process.kill()
        process.wait()
        with pytest.raises(CacheError):
            opened("dddd")
    assert [folder.exists() for folder in (first, second)] == [False, True]


def test_on_a_full_disk_an_old_cache_is_removed(opened: Open, tmp_path: Path) -> None:
    """A tmpfs that holds one cache: the second takes the place of the first."""
    caches = tmp_path / "caches"
    caches.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(caches)], check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        first = idle(opened("a"), 2)
        second = opened("bb")
        assert not first.exists() and second.num_videos == 40
        with pytest.raises(CacheError, match="free space there"):  # in use
            opened("ccc")
        assert second.directory.exists()
    finally:
        subprocess.run(["umount", "--lazy", str(caches)], check=True)


def test_a_limit_of_gigabytes_for_the_folder(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = idle(opened("a"), 2)
    monkeypatch.setenv("TUNER_CACHE_LIMIT", "0.0012")  # two caches take less, but a build asks for 1 MiB to spare
    second = opened("bb").directory
    assert not first.exists() and second.exists()
    monkeypatch.setenv("TUNER_CACHE_LIMIT", "plenty")
    with pytest.raises(CacheError, match="TUNER_CACHE_LIMIT must be a number of GB above 0, but is 'plenty'"):
        opened("ccc")


def test_the_working_folder_of_a_killed_build_is_removed_too(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "caches" / f"abc{eviction.BUILDING}"
    left.mkdir(parents=True)
    (left / "journal.jsonl").touch()
    os.utime(left / "journal.jsonl", (0, 0))
    (tmp_path / "caches" / "something else").mkdir()
    available = iter([0, 0, 1 << 40, 1 << 40])
    monkeypatch.setattr(eviction, "_available_bytes", lambda *_: next(available))
    opened("a")
    assert not left.exists() and (tmp_path / "caches" / "something else").exists()


def test_a_cache_is_found_by_its_content_without_its_shards(opened: Open, tmp_path: Path) -> None:
    cache = opened("a")
    (shard,) = (tmp_path / "a").glob("*.tfrecord")
    shard.unlink()
    found = find_cache(tmp_path / "caches", cache.fingerprint[:16], "float16")
    assert found is not None and found.directory == cache.directory
    assert find_cache(tmp_path / "caches", cache.fingerprint[:16], "float32") is None
    assert find_cache(tmp_path / "caches", "0" * 16, "float16") is None

"""`python -m data.cache`."""

import os
from pathlib import Path

from data.cache.store import Cache, open_cache
from tests.support.cached import SCHEMA, assert_holds, damage
from tests.support.commands import exit_code_of


def arguments(folder, *data):
    features = ["--features", "rgb=3", "audio=2", "--num-classes", "7"]
    return ["--data", *data, *features, "--directory", str(folder)]


def test_the_command_prints_what_the_cache_holds(shards, folder, capsys):
    assert exit_code_of("data.cache", *arguments(folder, str(Path(shards[0]).parent / "*.tfrecord"))) == 0
    out = capsys.readouterr().out
    assert "25" in out and "rgb 3, audio 2" in out and "without a positive" in out and "built in" in out
    assert exit_code_of("data.cache", *arguments(folder, *shards)) == 0
    assert "existed; checked" in capsys.readouterr().out


def test_the_command_lists_skipped_shards(shards, folder, capsys):
    damage(shards[2])
    assert exit_code_of("data.cache", *arguments(folder, *shards), "--on-bad-shard", "skip") == 0
    assert "train2.tfrecord" in capsys.readouterr().out


def test_the_command_builds_a_damaged_cache_again(shards, folder, capsys):
    cached = open_cache(shards, SCHEMA, folder)
    with open(cached.directory / "features.npy", "r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x55")
    assert exit_code_of("data.cache", *arguments(folder, *shards)) == 0
    assert "built in" in capsys.readouterr().out
    assert_holds(Cache.load(cached.directory), shards)


def test_bad_input_is_one_sentence_and_exit_code_2(shards, folder, capsys):
    damage(shards[2])
    for bad in (
        arguments(folder, *shards),
        arguments(folder, "nowhere/*"),
    ):
        assert exit_code_of("data.cache", *bad) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len([line for line in captured.err.splitlines() if line.strip()]) == 1
    assert exit_code_of("data.cache", *arguments(folder, *shards), "--workers=0") == 2
    assert "argument --workers: must be a whole number from 1 to 4,096, but got '0'" in capsys.readouterr().err
    assert exit_code_of("data.cache", "--data", shards[0], "--features", "rgb") == 2
    assert "'rgb' is not NAME=WIDTH" in capsys.readouterr().err

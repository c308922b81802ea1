"""Shards that are read block by block: the same values, no more memory than a block, and the same faults."""

import gzip
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from data.cache.store import open_cache
from data.errors import ShardError
from data.frames import decode, decode_blocks
from data.sample import write_shards
from data.schema import Schema
from data.tfrecord import framing, read_examples
from data.tfrecord.framing import count_records
from data.tfrecord.shards import Reading
from tests.support.cached import SCHEMA, assert_holds, damage, make_videos, write

LEVELS = {
    "video": Schema(features={"rgb": 3, "audio": 2}, num_classes=7),
    "frame": Schema(features={"rgb": 3, "audio": 2}, num_classes=7, level="frame"),
    "segment": Schema(features={"rgb": 3, "audio": 2}, num_classes=7, level="segment"),
}
COMPRESSIONS = {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}


@pytest.fixture(params=LEVELS)
def schema(request):
    return LEVELS[request.param]


def sample(folder, schema, **options):
    """Writes sample shards; returns their paths."""
    options = {"num_videos": 40, "num_shards": 2, "num_classes": 7, "seed": 3} | options
    write_shards(folder, **options, features=schema.features, level=schema.level)
    return sorted(map(str, folder.glob("*.tfrecord")))


def same(one, other):
    """Whether two decoded shards hold the same."""
    names = ("ids", "features_ND", "frame_offsets", "label_offsets", "label_indices", "rated_offsets", "rated_indices")
    for name in names:
        left, right = getattr(one, name), getattr(other, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype and np.array_equal(left, right), name
    return one.content_hash == other.content_hash


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("block", [64, 1000, 4096])
def test_a_shard_in_blocks_is_the_shard_as_a_whole(tmp_path, monkeypatch, schema, compression, block):
    path = sample(tmp_path, schema)[0]
    whole = decode(path, schema)
    compressed = tmp_path / "compressed"
    compressed.write_bytes(COMPRESSIONS[compression](Path(path).read_bytes()))
    monkeypatch.setattr(framing, "BLOCK_BYTES", block)
    assert block > 1000 or len(list(decode_blocks(compressed, Reading(schema=schema)))) > 1
    assert same(decode(compressed, schema), whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cache_of_shards_in_blocks_is_byte_for_byte_that_of_whole_shards(tmp_path, monkeypatch, schema, workers):
    paths = sample(tmp_path / "shards", schema)
    whole = open_cache(paths, schema, tmp_path / "whole")
    monkeypatch.setattr(framing, "BLOCK_BYTES", 700)
    blocks = open_cache(paths, schema, tmp_path / "blocks", workers=workers)
    assert blocks.fingerprint == whole.fingerprint and blocks.damaged() == []
    assert blocks.shards == whole.shards
    for name in sorted(path.name for path in whole.directory.glob("*.npy")):
        assert (blocks.directory / name).read_bytes() == (whole.directory / name).read_bytes(), name


@pytest.mark.parametrize("on_bad_shard", ["fail", "skip"])
def test_a_shard_that_is_damaged_in_a_later_block_leaves_no_rows(shards, folder, monkeypatch, on_bad_shard):
    monkeypatch.setattr(framing, "BLOCK_BYTES", 200)
    whole = write(Path(shards[1]), make_videos(30, seed=9))
    offsets = [example.offset for example in read_examples(whole)]
    damage(shards[1])
    if on_bad_shard == "fail":
        with pytest.raises(ShardError, match=f"record at byte {offsets[-1]}: is damaged"):
            open_cache(shards, SCHEMA, folder)
    assert_holds(open_cache(shards, SCHEMA, folder, on_bad_shard="skip"), [shards[0], *shards[2:]])


def test_an_interrupted_build_forgets_the_blocks_of_an_unfinished_shard(shards, folder, monkeypatch):
    monkeypatch.setattr(framing, "BLOCK_BYTES", 200)
    reports = []

    def stop(report):
        reports.append(report)
        if report.shards_done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(shards, SCHEMA, folder, progress=stop)
    (features,) = folder.glob("*.building/features.npy")
    with features.open("ab") as file:
        file.write(bytes(77))  # blocks of the fourth shard
    assert_holds(open_cache(shards, SCHEMA, folder), shards)


def test_decoding_a_large_shard_needs_the_memory_of_a_block(tmp_path, monkeypatch):
    schema = Schema(features={"rgb": 256}, num_classes=7)
    (path,) = sample(tmp_path, schema, num_videos=4000, num_shards=1)
    assert Path(path).stat().st_size > 4_000_000
    for compress in COMPRESSIONS.values():
        compressed = tmp_path / "compressed"
        compressed.write_bytes(compress(Path(path).read_bytes()))
        monkeypatch.setattr(framing, "BLOCK_BYTES", 1 << 17)
        tracemalloc.start()
        count = sum(len(block.ids) for block in decode_blocks(compressed, Reading(schema=schema, dtype="float16")))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 4000 and peak < 1_500_000, peak


def test_a_record_larger_than_a_block_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(framing, "BLOCK_BYTES", 64)
    path = write(tmp_path / "a", make_videos(5))
    assert len(decode(path, SCHEMA).ids) == 5


# zlib


def test_every_reader_takes_zlib(tmp_path, shards):
    path = tmp_path / "shard"
    for level in (0, 1, 6, 9):
        path.write_bytes(zlib.compress(Path(shards[2]).read_bytes(), level))
        assert same(decode(path, SCHEMA), decode(shards[2], SCHEMA))
        assert count_records(path) == 5
        assert [e.offset for e in read_examples(path)] == [e.offset for e in read_examples(shards[2])]
    assert open_cache([str(path)], SCHEMA, tmp_path / "caches").num_videos == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-3], "record at byte .*: cannot be read: the zlib stream is cut short"),
        (lambda data: data[:40], "record at byte .*: cannot be read: the zlib stream is cut short"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "cannot be read: Error -3 .* incorrect data check"),
        (lambda data: data[:20] + b"\xff" + data[21:], "record at byte .*: (cannot be read: Error -3|is damaged)"),
        (lambda data: data + b"more", "cannot be read: bytes follow the zlib stream"),
    ],
)
def test_a_damaged_zlib_stream_is_refused(tmp_path, shards, change, message):
    path = tmp_path / "shard"
    path.write_bytes(change(zlib.compress(Path(shards[4]).read_bytes())))
    for read in (lambda: decode(path, SCHEMA), lambda: count_records(path), lambda: list(read_examples(path))):
        with pytest.raises(ShardError, match=message):
            read()


# Bad records


def videos_with(*changes, num=6):
    """Videos of which the first ones are wrong."""
    videos = make_videos(num, seed=5)
    for video, change in zip(videos, changes, strict=False):
        video.update(change)
    return videos


NAN = {"rgb": ([1.0, float("nan"), 2.0], "float")}
LABEL = {"labels": ([99], "int")}
WIDTH = {"audio": ([1.0], "float")}
HUGE = {"rgb": ([1e6, 0.0, 0.0], "float")}
NAMELESS = {"id": (b"", "byte")}


@pytest.mark.parametrize("block", [100, framing.BLOCK_BYTES])
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_are_left_out_and_counted(tmp_path, monkeypatch, block, workers):
    monkeypatch.setattr(framing, "BLOCK_BYTES", block)
    changes = (NAN, LABEL, WIDTH, HUGE, NAMELESS)
    path = write(tmp_path / "mixed", videos_with(*changes, num=9))
    good = write(tmp_path / "good", make_videos(9, seed=5)[5:])
    other = write(tmp_path / "other", make_videos(3, seed=8))
    offsets = [example.offset for example in read_examples(path)]
    cache = open_cache([path, other], SCHEMA, tmp_path / "caches", on_bad_record="skip", workers=workers)
    assert_holds(cache, [good, other])
    assert [(error.path, error.offset, error.key) for error in cache.bad_records] == [
        (path, offsets[0], "rgb"),
        (path, offsets[1], "labels"),
        (path, offsets[2], "audio"),
        (path, offsets[3], "rgb"),
        (path, offsets[4], "id"),
    ]
    assert cache.fingerprint == open_cache([good, other], SCHEMA, tmp_path / "caches").fingerprint
    assert cache.remarks() == [f"left out 5 bad records, the first one: {cache.bad_records[0]}"]
    with pytest.raises(ShardError, match=f"record at byte {offsets[0]}, key 'rgb': value 1 is nan"):
        open_cache([path, other], SCHEMA, tmp_path / "caches")
    with pytest.raises(ShardError, match=r"value 0 is 1e\+06.*; before it 3 other bad records were left out"):
        open_cache([path, other], SCHEMA, tmp_path / "caches", on_bad_record="skip", max_bad_records=3)


def test_more_bad_records_than_the_limit_in_all_shards_together_are_an_error(tmp_path):
    paths = [write(tmp_path / f"{n}", videos_with(NAN, NAN, num=4)) for n in range(3)]
    settings = {"on_bad_record": "skip", "on_bad_shard": "skip"}
    with pytest.raises(ShardError, match=r"/2: record at byte 0, .*; before it 4 other bad records were left out"):
        open_cache(paths, SCHEMA, tmp_path / "caches", max_bad_records=4, **settings)
    assert len(open_cache(paths, SCHEMA, tmp_path / "caches", max_bad_records=6, **settings).bad_records) == 6


def test_a_shard_with_more_bad_records_than_the_limit_is_a_bad_shard(tmp_path):
    bad, good = write(tmp_path / "bad", videos_with(NAN, NAN, NAN)), write(tmp_path / "good", make_videos(4))
    cache = open_cache(
        [bad, good], SCHEMA, tmp_path / "caches", on_bad_record="skip", on_bad_shard="skip", max_bad_records=2
    )
    assert_holds(cache, [good])
    assert cache.bad_records == [] and [path for path, _ in cache.skipped] == [bad]


def test_a_damaged_record_is_no_bad_record(shards, folder):
    damage(shards[0])
    with pytest.raises(ShardError, match="does not match its CRC"):
        open_cache(shards, SCHEMA, folder, on_bad_record="skip")


@pytest.mark.parametrize("level", ["frame", "segment"])
def test_bad_records_of_frames_are_left_out(tmp_path, level):
    schema = LEVELS[level]
    path = sample(tmp_path, schema)[0]
    wider = Schema(features=schema.features, num_classes=3, level=level)  # labels of 3 to 6 are bad now
    with pytest.raises(ShardError, match="outside the classes"):
        decode(path, wider)
    shard, whole = decode(path, wider, max_bad_records=100), decode(path, schema)
    bad = {error.offset for error in shard.bad_records}
    assert bad and len(shard.ids)
    videos = [example.id for example in read_examples(path) if example.offset not in bad]
    kept = [row for row, name in enumerate(whole.ids.tolist()) if name.split(b":")[0] in videos]
    assert shard.ids.tolist() == whole.ids[kept].tolist()
    for number, row in enumerate(kept):
        for offsets, values in (("frame_offsets", "features_ND"), ("label_offsets", "label_indices")):
            here, there = getattr(shard, offsets)[number : number + 2], getattr(whole, offsets)[row : row + 2]
            assert np.array_equal(getattr(shard, values)[slice(*here)], getattr(whole, values)[slice(*there)])


def test_empty_shards_are_told(shards, folder, tmp_path):
    for name in ("aa", "ab"):
        (tmp_path / name).touch()
    cache = open_cache([*shards, str(tmp_path / "aa"), str(tmp_path / "ab")], SCHEMA, folder)
    assert cache.remarks() == [f"2 of 7 shards are empty: {tmp_path / 'aa'}, {tmp_path / 'ab'}"]

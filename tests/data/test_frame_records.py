"""Frame-level and segment-level shards: compared with the `tfrecord` package, and damaged shards."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from tfrecord.example_pb2 import Example, SequenceExample
from tfrecord.reader import tfrecord_loader

from data import frames
from data.cache import build
from data.cache.recipe import find_shards
from data.cache.statistics import ByteMoments
from data.cache.store import open_cache
from data.errors import ShardError
from data.frames import decode
from data.sample import write_shards
from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT, Schema, quantise
from data.tfrecord.examples import varint
from data.tfrecord.shards import Reading
from tests.support.commands import exit_code_of

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "audioset"
SMALL = Schema(features={"rgb": 6, "audio": 2}, num_classes=12, level="frame")
SEGMENTS = Schema(features={"rgb": 6, "audio": 2}, num_classes=12, level="segment")
AUDIOSET = Schema(features={"audio_embedding": 128}, num_classes=527, level="frame")


def write(path, *records):
    """A shard of these records, bytes or protobuf messages."""
    blob = b""
    for record in records:
        data = record if isinstance(record, bytes) else record.SerializeToString(deterministic=True)
        length = len(data).to_bytes(8, "little")
        blob += length + masked(length) + data + masked(data)
    path.write_bytes(blob)
    return path


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFF_FFFF).to_bytes(4, "little")


def video(rgb=3, audio=None, *, id_key="id", name=b"abcd", labels=(4, 1, 4), ratings=None, **widths):
    """A SequenceExample of `rgb` frames whose bytes count up."""
    record = SequenceExample()
    record.context.feature[id_key].bytes_list.value.append(name)
    record.context.feature["labels"].int64_list.value.extend(labels)
    if ratings is not None:
        for key, values in zip(("segment_start_times", "segment_labels"), ratings[:2], strict=True):
            record.context.feature[key].int64_list.value.extend(values)
        record.context.feature["segment_scores"].float_list.value.extend(ratings[2])
    for key, count, width in (("rgb", rgb, 6), ("audio", rgb if audio is None else audio, 2)):
        width = widths.get(key + "_width", width)
        for frame in range(count):
            values = ((frame * width + np.arange(width)) % 256).astype(np.uint8).tobytes()
            record.feature_lists.feature_list[key].feature.add().bytes_list.value.append(values)
    return record


def bytes_of(count):
    """[T, D] as `video` writes them."""
    return np.concatenate([(np.arange(count * width) % 256).reshape(-1, width) for width in (6, 2)], axis=1)


def assert_as_the_package_reads(path, schema, id_key):
    ours = decode(path, schema)
    names = dict.fromkeys(schema.features, "byte")
    theirs = list(tfrecord_loader(str(path), None, {id_key: "byte", "labels": "int"}, sequence_description=names))
    assert len(theirs) == len(ours.ids) == len(ours.frame_offsets) - 1
    for n, (context, lists) in enumerate(theirs):
        begin, end = ours.frame_offsets[n : n + 2]
        matrices = [np.stack([np.frombuffer(bytes(frame), np.uint8) for frame in lists[name]]) for name in names]
        np.testing.assert_array_equal(ours.features_ND[begin:end], np.concatenate(matrices, axis=1))
        assert ours.ids[n] == bytes(context[id_key])
        labels = ours.label_indices[ours.label_offsets[n] : ours.label_offsets[n + 1]]
        assert labels.tolist() == sorted(set(context["labels"].tolist()))


def test_sample_shards_are_read_in_lockstep_as_the_package_reads_them(tmp_path, monkeypatch):
    paths = write_shards(
        tmp_path, num_videos=20, num_shards=2, num_classes=12, seed=1, features=SMALL.features, level="frame"
    )
    monkeypatch.setattr(frames, "example_of", None)
    for path in paths:
        assert_as_the_package_reads(path, SMALL, "id")


@pytest.mark.skipif(not REAL.exists(), reason="the real AudioSet shards are not here")
def test_real_audioset_shards_are_read_by_their_names_and_widths_alone():
    for path in find_shards(str(REAL / "train" / "*"))[::50]:
        assert_as_the_package_reads(path, AUDIOSET, "video_id")


@pytest.mark.parametrize("id_key", ["id", "video_id"])
def test_frames_and_labels_of_a_video(tmp_path, id_key):
    shard = decode(write(tmp_path / "a", video(3, id_key=id_key), video(2, name=b"e")), SMALL)
    np.testing.assert_array_equal(shard.features_ND, np.concatenate([bytes_of(3), bytes_of(2)]))
    assert shard.features_ND.dtype == np.uint8
    assert shard.frame_offsets.tolist() == [0, 3, 5]
    assert shard.ids.tolist() == [b"abcd", b"e"]
    assert shard.label_indices.tolist() == [1, 4, 1, 4]


def test_frames_beyond_max_frames_are_left_out(tmp_path):
    schema = Schema(features=SMALL.features, num_classes=12, level="frame", max_frames=2)
    shard = decode(write(tmp_path / "a", video(5), video(1)), schema)
    assert shard.frame_offsets.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(shard.features_ND[:2], bytes_of(2))


def test_a_record_with_another_layout_is_parsed_by_protobuf(tmp_path):
    """Feature lists before the context, the id in a fragment of its own: protobuf merges them."""
    whole = video(3)
    parts = [SequenceExample(feature_lists=whole.feature_lists), SequenceExample(context=whole.context)]
    data = b"".join(part.SerializeToString() for part in parts)
    shard = decode(write(tmp_path / "a", video(2, name=b"long id"), data), SMALL)
    np.testing.assert_array_equal(shard.features_ND, np.concatenate([bytes_of(2), bytes_of(3)]))
    assert shard.ids.tolist() == [b"long id", b"abcd"]
    assert shard.label_indices.tolist() == [1, 4, 1, 4]


def test_lists_outside_the_schema_are_skipped(tmp_path, monkeypatch):
    def with_others(count):
        record = video(3)
        for number in range(count):
            record.feature_lists.feature_list[f"rgb{number}"].feature.add().bytes_list.value.append(b"other")
        return record

    many = write(tmp_path / "many", with_others(20))
    np.testing.assert_array_equal(decode(many, SMALL).features_ND, bytes_of(3))
    monkeypatch.setattr(frames, "example_of", None)
    few = write(tmp_path / "few", with_others(3), video(2))
    np.testing.assert_array_equal(decode(few, SMALL).features_ND, np.concatenate([bytes_of(3), bytes_of(2)]))


def test_the_last_of_two_lists_with_one_name_counts(tmp_path):
    """As with any key of a map in protobuf."""
    lists = video(4).feature_lists.SerializeToString() + video(2).feature_lists.SerializeToString()
    data = SequenceExample(context=video(2).context).SerializeToString() + b"\x12" + varint(len(lists)) + lists
    shard = decode(write(tmp_path / "a", data, video(1)), SMALL)
    np.testing.assert_array_equal(shard.features_ND, np.concatenate([bytes_of(2), bytes_of(1)]))


def test_an_empty_file_is_a_shard_of_no_videos(tmp_path):
    (tmp_path / "a").touch()
    for schema in (SMALL, SEGMENTS):
        shard = decode(tmp_path / "a", schema)
        assert shard.features_ND.shape == (0, 8) and len(shard.ids) == 0 and shard.frame_offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (video(5, 4), "'audio': has 4 frames, but 'rgb' has 5"),
        (video(3, audio_width=3), "'audio': frame 0 has 3 bytes, but the schema says 2"),
        (video(3, 0), "'audio': is missing; the record has the feature lists 'rgb'"),
        (video(0, 0), "'rgb': is missing: this is no SequenceExample with feature lists"),
        (video(2, labels=(3, 12)), "'labels': holds the label 12, outside the classes"),
        (video(2, id_key="name"), "'id': is missing"),
    ],
)
def test_a_fault_is_named_with_file_record_and_key(tmp_path, wrong, words):
    path = write(tmp_path / "a", video(4), wrong)
    with pytest.raises(ShardError) as raised:
        decode(path, SMALL)
    assert words in str(raised.value)
    assert raised.value.path == str(path) and raised.value.offset == len(video(4).SerializeToString()) + 16


def test_an_empty_list_and_a_frame_that_is_no_bytes_are_named(tmp_path):
    empty = video(2)
    del empty.feature_lists.feature_list["rgb"].feature[:]
    with pytest.raises(ShardError, match="'rgb': has no frame"):
        decode(write(tmp_path / "a", empty), SMALL)
    floats = video(2)
    floats.feature_lists.feature_list["rgb"].feature[1].int64_list.value.append(1)
    with pytest.raises(ShardError, match="'rgb': frame 1 holds int64, but a frame is bytes or float32"):
        decode(write(tmp_path / "b", floats), SMALL)


def test_a_record_of_the_other_level_is_named(tmp_path):
    example = Example()
    example.features.feature["id"].bytes_list.value.append(b"abcd")
    with pytest.raises(ShardError, match="no SequenceExample with feature lists, but frames are due"):
        decode(write(tmp_path / "a", example), SMALL)
    with pytest.raises(ShardError, match="this is a SequenceExample"):
        decode(write(tmp_path / "b", video(2)), Schema(features={"rgb": 6}, num_classes=12))


def test_any_flipped_bit_is_found(tmp_path):
    path = write(tmp_path / "a", video(2), video(3))
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(ShardError, match=r"damaged|cut short"):
            decode(path, SMALL)


def test_videos_without_labels_are_read_for_prediction(tmp_path):
    unlabelled = video(2)
    del unlabelled.context.feature["labels"]
    path = write(tmp_path / "a", unlabelled)
    with pytest.raises(ShardError, match="'labels': is missing"):
        decode(path, SMALL)
    assert decode(path, SMALL, require_labels=False).label_offsets.tolist() == [0, 0]


def test_shards_decoded_together_give_what_each_gives_alone(tmp_path):
    """Among them an empty shard, a record that protobuf parses, and faults of every kind with their messages."""
    whole = video(3)
    parts = [SequenceExample(feature_lists=whole.feature_lists), SequenceExample(context=whole.context)]
    contents = {
        "long ids": [video(2, name=b"a rather long id"), video(9, name=b"x")],
        "short ids": [video(1, name=b"y", labels=()), video(4, name=b"z", labels=(11, 0))],
        "empty": [],
        "general": [video(2), b"".join(part.SerializeToString() for part in parts)],
        "wrong": [video(4), video(5, 4)],
        "last": [video(3, id_key="video_id")],
    }
    paths = [str(write(tmp_path / name, *records)) for name, records in contents.items()]
    flipped = Path(paths[0]).read_bytes()
    (tmp_path / "flipped").write_bytes(flipped[:60] + bytes([flipped[60] ^ 1]) + flipped[61:])
    (tmp_path / "cut").write_bytes(flipped[:-5])
    (tmp_path / "header").write_bytes(flipped + b"1234")
    (tmp_path / "compressed").write_bytes(gzip.compress(flipped))
    paths[2:2] = [str(tmp_path / name) for name in ("flipped", "cut", "header", "compressed")]
    schema = Schema(features=SMALL.features, num_classes=12, level="frame", max_frames=4)
    outcomes = frames.decode_together(paths, Reading(schema=schema))
    failed = []
    for path, found in zip(paths, outcomes, strict=True):
        if isinstance(found, ShardError):
            failed.append(Path(path).name)
            with pytest.raises(ShardError) as raised:
                decode(path, schema)
            assert str(found) == str(raised.value) and found.path == path
            continue
        alone = decode(path, schema)
        assert found.content_hash == alone.content_hash
        for name in ("ids", "features_ND", "frame_offsets", "label_offsets", "label_indices"):
            one, other = getattr(found, name), getattr(alone, name)
            assert one.dtype == other.dtype and np.array_equal(one, other), name
    assert failed == ["flipped", "cut", "header", "wrong"]


@pytest.mark.parametrize("on_bad_shard", ["fail", "skip"])
def test_a_cache_of_small_shards_is_byte_for_byte_that_of_one_shard_at_a_time(tmp_path, monkeypatch, on_bad_shard):
    paths = [str(write(tmp_path / f"{n:02d}", *[video(n % 3 + 1, name=b"v" * (n + 1))] * 2)) for n in range(12)]
    if on_bad_shard == "skip":
        Path(paths[5]).write_bytes(Path(paths[5]).read_bytes()[:-3])
    caches = []
    for together in (0, 300, build._TOGETHER_BYTES):
        monkeypatch.setattr(build, "_TOGETHER_BYTES", together)
        caches.append(open_cache(paths, SMALL, tmp_path / f"caches {together}", on_bad_shard=on_bad_shard))
    assert [len(cache.skipped) for cache in caches] == [on_bad_shard == "skip"] * 3
    for cache in caches[1:]:
        for file in sorted(caches[0].directory.iterdir()):
            assert (cache.directory / file.name).read_bytes() == file.read_bytes(), file.name


# Segments


RATINGS = ([5, 0, 5, 5], [3, 7, 9, 2], [1.0, 0.0, 0.0, 1.0])  # starts, classes, scores


def test_every_rated_start_is_an_example_with_its_own_frames_and_ratings(tmp_path):
    shard = decode(write(tmp_path / "a", video(12, ratings=RATINGS), video(7, ratings=RATINGS)), SEGMENTS)
    assert shard.ids.tolist() == [b"abcd:0", b"abcd:5", b"abcd:0", b"abcd:5"]
    assert shard.frame_offsets.tolist() == [0, 5, 10, 15, 17]  # the last one ends with its video
    np.testing.assert_array_equal(shard.features_ND[5:10], bytes_of(12)[5:10])
    assert shard.rated_offsets.tolist() == [0, 1, 4, 5, 8]
    assert shard.rated_indices[:4].tolist() == [7, 2, 3, 9]
    assert shard.label_offsets.tolist() == [0, 0, 2, 2, 4]  # labels of the video do not count
    assert shard.label_indices.tolist() == [2, 3, 2, 3]


def test_a_segment_after_the_last_frame_is_left_out(tmp_path):
    shard = decode(write(tmp_path / "a", video(5, ratings=RATINGS)), SEGMENTS)
    assert shard.ids.tolist() == [b"abcd:0"]


def test_for_prediction_the_examples_are_all_whole_segments(tmp_path):
    path = write(tmp_path / "a", video(12), video(3, name=b"short"))
    shard = decode(path, SEGMENTS, require_labels=False)
    assert shard.ids.tolist() == [b"abcd:0", b"abcd:5", b"short:0"]
    assert shard.frame_offsets.tolist() == [0, 5, 10, 13]


@pytest.mark.parametrize(
    ("ratings", "words"),
    [
        (([0, 5], [1], [1.0, 1.0]), "'segment_labels': has 1 values, but 'segment_start_times' has 2"),
        (([0], [12], [1.0]), "'segment_labels': holds the label 12"),
        (([0], [1], [1.5]), "'segment_scores': holds the score 1.5, outside"),
        (([-1], [1], [1.0]), "'segment_start_times': holds the start -1"),
        (None, "'segment_start_times': is missing, though segments are due"),
    ],
)
def test_wrong_ratings_are_named(tmp_path, ratings, words):
    with pytest.raises(ShardError) as raised:
        decode(write(tmp_path / "a", video(6, ratings=ratings)), SEGMENTS)
    assert words in str(raised.value)


# Dequantisation, cache, statistics


def test_bytes_have_the_dequantised_values_of_youtube_8m():
    q = np.array([0, 127, 128, 255])
    expected = [-1.9921875, -0.0000306, 0.0156556, 2.0078125]
    np.testing.assert_allclose(q * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, expected, atol=1e-7)


def test_the_quantiser_of_the_sample_writer_rounds_down_so_that_the_mean_stays():
    """Google's extractor rounds to nearest, so its dequantised values are 0.0078 too high on average."""
    x = np.random.default_rng(0).uniform(-1.9, 1.9, 200_000).astype(np.float32)
    back = quantise(x) * DEQUANTISE_SCALE + DEQUANTISE_SHIFT
    assert abs((back - x).mean()) < 1e-4
    rounded = np.round((x + 2) * 255 / 4) * DEQUANTISE_SCALE + DEQUANTISE_SHIFT
    assert (rounded - x).mean() == pytest.approx(0.0078127, abs=1e-4)


@pytest.mark.parametrize("level", ["frame", "segment"])
def test_a_cache_holds_what_its_shards_hold(tmp_path, level):
    schema = Schema(features=SMALL.features, num_classes=12, level=level)
    paths = write_shards(
        tmp_path, num_videos=9, num_shards=3, num_classes=12, seed=1, features=SMALL.features, level=level
    )
    cache = open_cache([str(path) for path in paths], schema, tmp_path / "caches")
    parts = [frames.decode(path, schema) for path in paths]
    np.testing.assert_array_equal(cache.features_ND, np.concatenate([part.features_ND for part in parts]))
    np.testing.assert_array_equal(
        np.diff(cache.frame_offsets), np.concatenate([np.diff(p.frame_offsets) for p in parts])
    )
    np.testing.assert_array_equal(cache.ids, np.concatenate([part.ids for part in parts]))
    assert cache.num_videos == len(cache.ids) and cache.schema == schema
    if level == "segment":
        np.testing.assert_array_equal(cache.rated_indices, np.concatenate([part.rated_indices for part in parts]))
        assert len(cache.rated_indices) == cache.rated_offsets[-1] > len(cache.label_indices)
        for _ in range(2):  # computed, then kept
            assert cache.statistics().rated_counts_C.tolist() == np.bincount(cache.rated_indices, minlength=12).tolist()
    else:
        assert cache.rated_offsets is None and cache.statistics().rated_counts_C is None
    assert cache.damaged() == []
    statistics = cache.statistics()
    values_FD = cache.features_ND * DEQUANTISE_SCALE + DEQUANTISE_SHIFT
    np.testing.assert_allclose(statistics.mean_D, values_FD.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(statistics.variance_D, values_FD.var(axis=0), rtol=1e-5)
    assert statistics.num_videos == cache.num_videos
    assert statistics.label_counts_C.tolist() == np.bincount(cache.label_indices, minlength=12).tolist()
    with (cache.directory / "features.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00" if cache.features_ND[-1, -1] else b"\x01")
    assert cache.damaged() == [str(paths[-1])]


def test_the_level_is_part_of_a_caches_name_and_content(tmp_path):
    path = str(write(tmp_path / "a", video(12, ratings=RATINGS)))
    caches = [open_cache([path], schema, tmp_path / "caches") for schema in (SMALL, SEGMENTS)]
    shorter = Schema(features=SMALL.features, num_classes=12, level="frame", max_frames=4)
    caches.append(open_cache([path], shorter, tmp_path / "caches"))
    assert len({cache.directory for cache in caches}) == len({cache.fingerprint for cache in caches}) == 3


def test_moments_of_frames_are_exact():
    bytes_FD = np.full((1000, 2), 200, np.uint8)
    bytes_FD[0, 1] = 201
    mean_D, variance_D = ByteMoments.of(bytes_FD).mean_and_variance()
    assert variance_D[0] == 0 and variance_D[1] == pytest.approx((1 / 1000 - 1 / 1000**2) * DEQUANTISE_SCALE**2, 1e-12)
    assert mean_D[0] == pytest.approx(200 * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, 1e-12)


def test_inspect_shows_a_record_of_frames(tmp_path, capsys):
    assert exit_code_of("data.inspect", write(tmp_path / "a", video(3))) == 0
    out = capsys.readouterr().out
    assert "SequenceExample, 4 keys" in out and "rgb[]" in out and "3 x 1" in out

"""Shards to arrays: compared with the `tfrecord` package (its loader and protobuf classes), and damaged shards."""

import gzip
import pickle
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tfrecord.example_pb2 import Example, SequenceExample
from tfrecord.reader import tfrecord_loader

from data.errors import ShardError, UnreachableError
from data.frames import decode
from data.schema import Schema
from data.tfrecord import read_examples, shards
from data.tfrecord.examples import Example as Parsed
from data.tfrecord.framing import count_records

REAL = Path(__file__).parents[2].parent / "shared" / "data"
SMALL = Schema(features={"rgb": 3, "audio": 2}, num_classes=300)
VIDEO = {"id": [b"abcd"], "labels": [1, 7, 299], "rgb": [1.0, -2.5, 0.0], "audio": [0.5, 0.25]}


# Records, encoded by hand


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values: list, *, packed: bool = True) -> bytes:
    if not values:
        return message(3, b"")
    if all(isinstance(value, bytes) for value in values):
        return message(1, b"".join(message(1, value) for value in values))
    if all(isinstance(value, float) for value in values):
        kind, tag, items = 2, varint(1 << 3 | 5), [struct.pack("<f", value) for value in values]
    else:
        kind, tag, items = 3, varint(1 << 3 | 0), [varint(value) for value in values]
    return message(kind, message(1, b"".join(items)) if packed else b"".join(tag + item for item in items))


def entry(key: str, value: bytes) -> bytes:
    return message(1, message(1, key.encode()) + message(2, value))


def record(video: dict, *, packed: bool = True) -> bytes:
    return message(1, b"".join(entry(key, feature(values, packed=packed)) for key, values in video.items()))


def mask(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + mask(crc32c(length)) + data + mask(crc32c(data))


def shard(path: Path, *records: bytes) -> Path:
    path.write_bytes(b"".join(map(frame, records)))
    return path


def without(key: str) -> dict:
    return {name: values for name, values in VIDEO.items() if name != key}


def decoded(path: Path | str, schema: Schema = SMALL, **options) -> list[tuple[bytes, list[float], list[int]]]:
    videos = decode(path, schema, **options)
    bounds = videos.label_offsets.tolist()
    assert videos.label_indices.dtype == np.int32 and bounds[0] == 0 and bounds[-1] == len(videos.label_indices)
    labels = [videos.label_indices[start:stop].tolist() for start, stop in pairwise(bounds)]
    return list(zip(videos.ids.tolist(), videos.features_ND.tolist(), labels, strict=True))


ONE = (b"abcd", [1.0, -2.5, 0.0, 0.5, 0.25], [1, 7, 299])


# Sound shards


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("keys", [list(VIDEO), list(reversed(VIDEO)), ["rgb", "id", "audio", "labels"]])
def test_keys_come_in_any_order_and_lists_packed_or_not(tmp_path, keys, packed):
    path = shard(tmp_path / "s", record({key: VIDEO[key] for key in keys}, packed=packed))
    assert decoded(path) == [ONE]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_gzip_is_recognised_by_its_bytes_and_not_by_the_name(tmp_path, compress):
    path = tmp_path / "s.tfrecord"
    path.write_bytes(compress(frame(record(VIDEO)) * 3))
    assert decoded(path) == [ONE] * 3 and count_records(path) == 3 and len(list(read_examples(path))) == 3


def test_a_plain_shard_whose_first_length_looks_like_gzip_is_read(tmp_path):
    data = record(VIDEO)
    data += message(15, bytes(0x088B1F - len(data) - 4))  # an unknown field, its tag and length 4 bytes
    assert struct.pack("<Q", len(data))[:3] == b"\x1f\x8b\x08"
    path = shard(tmp_path / "s", data)
    assert decoded(path) == [ONE] and count_records(path) == 1


def test_a_url_is_read_through_fsspec(tmp_path):
    path = shard(tmp_path / "s", record(VIDEO))
    for url in (f"file://{path}", f"local://{path}"):
        assert decoded(url) == [ONE] and count_records(url) == 1


def test_an_empty_file_is_a_shard_of_no_videos(tmp_path):
    path = shard(tmp_path / "s")
    assert decoded(path) == [] and count_records(path) == 0 and list(read_examples(path)) == []
    assert decode(path, SMALL).features_ND.shape == (0, 5)


def test_an_id_may_have_the_key_video_id_and_any_length(tmp_path):
    videos = [without("id") | {"video_id": [bytes(range(65, 65 + n))]} for n in (1, 11, 4)]
    path = shard(tmp_path / "s", *map(record, videos))
    assert [video[0] for video in decoded(path)] == [b"A", b"ABCDEFGHIJK", b"ABCD"]


def test_labels_are_sorted_without_repetition(tmp_path):
    path = shard(tmp_path / "s", *(record(VIDEO | {"labels": labels}) for labels in ([200, 3, 200, 3], [], [5])))
    assert [video[2] for video in decoded(path)] == [[3, 200], [], [5]]


def test_labels_may_be_absent_for_prediction(tmp_path):
    path = shard(tmp_path / "s", record(VIDEO), record(without("labels")))
    assert [video[2] for video in decoded(path, require_labels=False)] == [[1, 7, 299], []]
    with pytest.raises(ShardError, match="key 'labels': is missing"):
        decode(path, SMALL)


def test_repeated_keys_and_fragments_are_merged_as_protobuf_merges_them(tmp_path):
    twice = entry("rgb", feature([9.0])) + record(VIDEO)[2:]  # the last entry of a key wins
    in_parts = message(1, entry("labels", feature([1]))) + message(1, twice)
    merged = message(1, message(1, b"labels") + message(2, feature([1])) + message(2, feature([7, 299])))
    path = shard(tmp_path / "s", in_parts, message(1, record(VIDEO)[2:] + merged))
    assert decoded(path) == [ONE, ONE]


def test_columns_follow_the_schema_and_other_features_are_skipped(tmp_path):
    path = shard(tmp_path / "s", record(VIDEO | {"title": [b"t"], "views": [5], "score": [1.0, 2.0]}))
    assert decoded(path, Schema(features={"audio": 2}, num_classes=300))[0][1] == [0.5, 0.25]
    assert decoded(path, Schema(features={"audio": 2, "rgb": 3}, num_classes=300))[0][1] == [0.5, 0.25, 1, -2.5, 0]


def test_the_content_hash_is_that_of_the_records(tmp_path):
    other = record(VIDEO | {"id": [b"efgh"]})
    shards = {"a": [record(VIDEO), other], "b": [record(VIDEO), other], "c": [other, record(VIDEO)]}
    hashes = [decode(shard(tmp_path / name, *datas), SMALL).content_hash for name, datas in shards.items()]
    (tmp_path / "d").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert hashes[0] == hashes[1] == decode(tmp_path / "d", SMALL).content_hash != hashes[2]


def test_read_examples_gives_every_feature_as_stored(tmp_path):
    path = shard(tmp_path / "s", record(VIDEO), record(VIDEO | {"id": [b"efgh"], "labels": [5, 5, -1]}))
    first, second = read_examples(path)
    assert (first.id, first.labels.tolist(), first.offset) == (b"abcd", [1, 7, 299], 0)
    assert (second.id, second.labels.tolist(), second.offset) == (b"efgh", [5, 5, -1], len(frame(record(VIDEO))))
    assert first.features["rgb"].tolist() == VIDEO["rgb"] and first.features["rgb"].dtype == np.float32


def test_records_of_the_usual_layouts_are_all_decoded_in_lockstep(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "example_of", None)
    rotated = [{key: VIDEO[key] for key in [*list(VIDEO)[n:], *list(VIDEO)[:n]]} for n in range(4)]
    videos = [video | {"id": [b"x" * n]} for n in (4, 11) for video in rotated]
    videos += [video | {"labels": list(range(n))} for n in (1, 40) for video in rotated]
    trailer = message(2, b"")  # as in the 2018 release
    path = shard(tmp_path / "s", *map(record, videos), *(record(video) + trailer for video in videos))
    assert len(decoded(path)) == 32


# Compared with the oracle


@pytest.mark.parametrize("split", ["train", "validate"])
def test_real_shards_decode_as_the_tfrecord_package_reads_them(split):
    paths = sorted((REAL / "yt8m" / split).glob("*.tfrecord"))
    if not paths:
        pytest.skip(f"no real shards in {REAL / 'yt8m' / split}")
    for path in paths[::12]:
        videos = decode(path, Schema())
        bounds = videos.label_offsets.tolist()
        expected = list(tfrecord_loader(str(path), None))
        assert count_records(path) == len(expected) == len(videos.ids)
        for n, theirs in enumerate(expected):
            assert videos.ids[n] == theirs["id"]
            assert videos.label_indices[bounds[n] : bounds[n + 1]].tolist() == sorted(theirs["labels"])
            assert np.array_equal(videos.features_ND[n, :1024], theirs["mean_rgb"])
            assert np.array_equal(videos.features_ND[n, 1024:], theirs["mean_audio"])


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LABELS = st.lists(st.integers(0, 299), max_size=70)


@st.composite
def records(draw) -> bytes:
    """A sound record in any form that the wire format allows."""
    video = {
        draw(st.sampled_from(["id", "video_id"])): [draw(st.binary(min_size=1, max_size=12).filter(lambda i: i[-1]))],
        "labels": draw(LABELS),
        "rgb": draw(st.lists(FINITE, min_size=3, max_size=3)),
        "audio": draw(st.lists(FINITE, min_size=2, max_size=2)),
    }
    video |= draw(
        st.dictionaries(
            st.sampled_from(["x", "a longer name", "\N{GREEK SMALL LETTER MU}"]),
            st.one_of(st.lists(FINITE), st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.binary(max_size=200))),
        )
    )
    usual = draw(st.booleans())  # half of them in the usual layout, so that one shard needs lockstep and protobuf
    keys = sorted(video) if usual else draw(st.permutations(sorted(video)))
    entries = [entry(key, feature(video[key], packed=usual or draw(st.booleans()))) for key in keys]
    if usual:
        return message(1, b"".join(entries)) + draw(st.sampled_from([b"", b"\x12\x00"]))
    if draw(st.booleans()):  # a stale entry before, an unknown field between
        entries = [entry("rgb", feature([0.0])), *entries[:1], message(9, b"?"), *entries[1:]]
    cut = draw(st.integers(0, len(entries)))
    return message(1, b"".join(entries[:cut])) + varint(7 << 3) + varint(5) + message(1, b"".join(entries[cut:]))


def oracle(data: bytes) -> tuple[bytes, list[float], list[int]]:
    features = Example.FromString(data).features.feature
    identity = features["id" if "id" in features else "video_id"].bytes_list.value[0]
    row = [*features["rgb"].float_list.value, *features["audio"].float_list.value]
    return identity, row, sorted(set(features["labels"].int64_list.value))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records(), max_size=12))
def test_any_sound_shard_decodes_as_protobuf_reads_it(tmp_path, datas):
    path = shard(tmp_path / "s", *datas)
    assert decoded(path) == [oracle(data) for data in datas]
    assert count_records(path) == len(datas)


def parsed_by_protobuf(data: bytes) -> tuple[dict, dict] | None:
    try:
        context = SequenceExample.FromString(data)
    except DecodeError:
        return None

    def values(stored):
        kind = stored.WhichOneof("kind")
        return list(getattr(stored, kind).value) if kind else []

    return (
        {key: values(stored) for key, stored in context.context.feature.items() if stored.WhichOneof("kind")},
        {key: [values(v) for v in stored.feature] for key, stored in context.feature_lists.feature_list.items()},
    )


@settings(deadline=None, max_examples=400)
@given(records(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3), st.integers(0, 40))
def test_a_record_is_parsed_or_refused_as_by_the_packages_protobuf_classes(data, changes, cut):
    octets = bytearray(data + message(2, entry("steps", message(1, feature([b"xy"])) + message(1, feature([1.0])))))
    for at, value in changes:
        octets[at % len(octets)] = value
    octets = bytes(octets[: len(octets) - cut])
    expected = parsed_by_protobuf(octets)
    try:
        record = Parsed.parse("shard", 0, octets)
    except ShardError:
        assert expected is None
    else:
        assert expected is not None
        for ours, theirs in zip((record.features, record.feature_lists), expected, strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_equal(_plain(ours[key]), theirs[key])


def _plain(values):
    if isinstance(values, bytes):
        return values
    return values.tolist() if isinstance(values, np.ndarray) else [_plain(value) for value in values]


# Damage

TWO = frame(record(VIDEO)) * 2
SECOND = len(TWO) // 2


def flipped(at: int) -> bytes:
    return TWO[:at] + bytes([TWO[at] ^ 4]) + TWO[at + 1 :]


SEQUENCE = message(1, entry("id", feature([b"abcd"])) + entry("labels", feature([1]))) + message(
    2, entry("rgb", message(1, feature([b"x"])))
)
NO_FLOATS = message(1, entry("rgb", message(2, b"")))
DAMAGED_FILES = {  # bytes of the file, offset, words
    "length": (flipped(SECOND), SECOND, "its length does not match its CRC"),
    "length crc": (flipped(SECOND + 9), SECOND, "its length does not match its CRC"),
    "data": (flipped(SECOND + 40), SECOND, "its data does not match its CRC"),
    "data crc": (flipped(len(TWO) - 1), SECOND, "its data does not match its CRC"),
    "cut in a header": (TWO[: SECOND + 5], SECOND, "is cut short: its header has 12 bytes, 5 are there"),
    "cut in the data": (TWO[:-30], SECOND, f"is cut short: {SECOND} bytes are due, {SECOND - 30} are there"),
    "cut in a footer": (TWO[:-1], SECOND, "is cut short"),
    "text": (b"VideoId,LabelConfidencePairs\n", 0, "is this a TFRecord file"),
    "short text": (b"hello\n", 0, "is cut short"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), 0, "is this a TFRecord file"),
    "gzip cut short": (gzip.compress(TWO)[:-20], None, "cannot be read: Compressed file ended before"),
    "gzip of text": (gzip.compress(b"VideoId,LabelConfidencePairs\n"), 0, "is this a TFRecord file"),
    "gzip damaged": (gzip.compress(TWO)[:-6] + b"??????", None, "cannot be read: CRC check failed"),
}
DAMAGED_RECORDS = {  # the second record, key, words
    "no message": (b"\xff\xff\xff", None, "is no tf.train.Example: protobuf cannot parse it"),
    "not utf-8": (message(1, message(1, message(1, b"\xff"))), None, "is no tf.train.Example"),
    "nothing in it": (b"", "rgb", "is missing; the record holds no feature at all"),
    "no feature": (record(without("audio")), "audio", "is missing; the record holds 'id', 'labels', 'rgb'"),
    "width": (record(VIDEO | {"rgb": [1.0] * 4}), "rgb", "has 4 values, but the schema says 3"),
    "no values": (record(without("rgb")) + NO_FLOATS, "rgb", "has 0 values, but the schema says 3"),
    "type": (record(VIDEO | {"rgb": [1, 2, 3]}), "rgb", "holds int64, but the schema says float32"),
    "bytes": (record(VIDEO | {"rgb": [b"xyz"]}), "rgb", "holds bytes, but the schema says float32"),
    "nan": (record(VIDEO | {"rgb": [0.0, float("nan"), 0.0]}), "rgb", "value 1 is nan"),
    "infinity": (record(VIDEO | {"audio": [0.0, -float("inf")]}), "audio", "value 1 is -inf"),
    "no id": (record(without("id")), "id", "is missing (no 'id' or 'video_id')"),
    "empty id": (record(VIDEO | {"id": [b""]}), "id", "is empty"),
    "two ids": (record(VIDEO | {"id": [b"a", b"b"]}), "id", "holds 2 values, but one is due"),
    "id type": (record(without("id") | {"video_id": [7]}), "video_id", "holds int64, but an id is bytes"),
    "id ends in zero": (record(VIDEO | {"id": [b"ab\0"]}), "id", "ends with a zero byte"),
    "no labels": (record(without("labels")), "labels", "is missing"),
    "label type": (record(VIDEO | {"labels": [1.0]}), "labels", "holds float32, but labels are int64"),
    "label too large": (record(VIDEO | {"labels": [3, 300]}), "labels", "the label 300, outside the classes [0, 300)"),
    "label negative": (record(VIDEO | {"labels": [-1, 3]}), "labels", "the label -1, outside the classes [0, 300)"),
    "label huge": (record(VIDEO | {"labels": [3, 2**40]}), "labels", "the label 1099511627776, outside"),
    "frames": (SEQUENCE, "rgb", "this is a SequenceExample (feature lists 'rgb'), but video-level Examples are due"),
}
DAMAGE = {name: (octets, offset, None, words) for name, (octets, offset, words) in DAMAGED_FILES.items()}
DAMAGE |= {name: (TWO[:SECOND] + frame(data), SECOND, *rest) for name, (data, *rest) in DAMAGED_RECORDS.items()}


@pytest.mark.parametrize(("octets", "offset", "key", "words"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_with_file_offset_and_key(tmp_path, octets, offset, key, words):
    path = tmp_path / "bad.tfrecord"
    path.write_bytes(octets)
    with pytest.raises(ShardError) as caught:
        decode(path, SMALL)
    error = caught.value
    assert error.path == str(path) and error.key == key and (offset is None or error.offset == offset)
    place = f"record at byte {error.offset}" + (f", key {key!r}" if key else "")
    assert str(error).startswith(f"{path}: {place}: ") and words in str(error) and "\n" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.offset, again.key) == (str(error), error.offset, error.key)


@pytest.mark.parametrize("name", ["missing.tfrecord", ".", "nosuchprotocol://bucket/s.tfrecord"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path, name):
    path = name if "://" in name else str(tmp_path / name)
    for read in (lambda: decode(path, SMALL), lambda: count_records(path), lambda: list(read_examples(path))):
        with pytest.raises(UnreachableError, match="cannot be read") as caught:
            read()
        assert caught.value.path == path


def test_a_value_beyond_half_precision_is_refused_for_float16_only(tmp_path):
    path = shard(tmp_path / "s", record(VIDEO | {"rgb": [0.0, 0.0, 70000.0]}))
    assert decoded(path)[0][1][2] == 70000
    with pytest.raises(ShardError, match=r"key 'rgb': value 2 is 70000, beyond what float16 holds \(65504\)"):
        decode(path, SMALL, dtype="float16")


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "s"
    for bit in range(8 * len(TWO)):
        octets = bytearray(TWO)
        octets[bit // 8] ^= 1 << bit % 8
        path.write_bytes(octets)
        with pytest.raises(ShardError):
            decode(path, SMALL)


def test_every_truncation_inside_a_record_is_found(tmp_path):
    path = tmp_path / "s"
    for size in range(len(TWO)):
        path.write_bytes(TWO[:size])
        if size % SECOND == 0:
            assert len(decoded(path)) == count_records(path) == size // SECOND
            continue
        for read in (lambda: decode(path, SMALL), lambda: count_records(path), lambda: list(read_examples(path))):
            with pytest.raises(ShardError, match="cut short"):
                read()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=3))
def test_wrong_bytes_with_matching_crcs_give_an_error_or_the_values_of_protobuf(tmp_path, data, changes):
    octets = bytearray(data)
    for at, value in changes:
        octets[at % len(octets)] = value
    path = shard(tmp_path / "s", data, bytes(octets))
    try:
        videos = decoded(path)
    except ShardError as error:
        assert error.offset == len(frame(data))
    else:
        assert videos == [oracle(data), oracle(bytes(octets))]


@pytest.mark.parametrize("integers", [b"\x01\x80", b"\x80" * 10 + b"\x01"], ids=["no last byte", "eleven bytes"])
def test_integers_that_protobuf_refuses_are_a_bad_record_under_any_key(tmp_path, integers):
    sound = record(VIDEO | {"other": [1] * len(integers)})
    broken = sound.replace(b"\x01" * len(integers), integers)
    assert broken != sound
    with pytest.raises(ShardError, match=r"is no tf\.train\.Example: protobuf cannot parse it"):
        decoded(shard(tmp_path / "s", sound, broken))


def test_a_forged_length_allocates_no_memory(tmp_path):
    length = struct.pack("<Q", 1 << 60)
    (tmp_path / "s").write_bytes(length + mask(crc32c(length)) + b"xyz")
    for read in (lambda: decode(tmp_path / "s", SMALL), lambda: count_records(tmp_path / "s")):
        with pytest.raises(ShardError, match="is cut short"):
            read()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"features": {}}, "at least one feature"),
        ({"features": {"rgb": 0}}, "at least 1, but got rgb=0"),
        ({"features": {"labels": 3}}, "must not be called 'labels'"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_a_schema_checks_itself(settings, words):
    with pytest.raises(ValueError, match=words):
        Schema(**settings)

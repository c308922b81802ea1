"""Records with keys of their own, and frames of floats, as the extractor published with MediaPipe writes them."""

import struct

import numpy as np
import pytest
from crc32c import crc32c
from tfrecord.example_pb2 import Example, SequenceExample

from data.cache.store import Cache, open_cache
from data.errors import ShardError
from data.frames import decode
from data.sample import write_splits
from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT, Schema
from tests.support.cached import Decodings

MEDIAPIPE = Schema(
    features={"rgb": 6, "audio": 2},
    num_classes=12,
    level="frame",
    keys={
        "id": "clip/data_id",
        "labels": "clip/label/index",
        "rgb": "RGB/feature/floats",
        "audio": "AUDIO/feature/floats",
    },
)
USUAL = Schema(features=MEDIAPIPE.features, num_classes=12, level="frame")


def write(path, *records):
    """Writes records with their CRCs."""

    def masked(data):
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    with path.open("wb") as file:
        for data in (record.SerializeToString() for record in records):
            length = struct.pack("<Q", len(data))
            file.write(length + masked(length) + data + masked(data))
    return str(path)


def extracted(rgb_TW, audio_TW, name=b"video", labels=(3, 1), as_bytes=False):
    """A record of the extractor; with `as_bytes`, one of YouTube-8M with the same frames."""
    record = SequenceExample()
    id_key, label_key, *features = ("id", "labels", "rgb", "audio") if as_bytes else MEDIAPIPE.keys.values()
    record.context.feature[id_key].bytes_list.value.append(name)
    record.context.feature[label_key].int64_list.value.extend(labels)
    if not as_bytes:
        record.context.feature["clip/start/timestamp"].int64_list.value.append(0)
        record.feature_lists.feature_list["RGB/feature/timestamp"].feature.add().int64_list.value.append(1)
    for key, frames in zip(features, (rgb_TW, audio_TW), strict=True):
        for frame in frames:
            step = record.feature_lists.feature_list[key].feature.add()
            if as_bytes:
                step.bytes_list.value.append(np.floor((frame.clip(-2, 2) + 2) * 255 / 4).astype(np.uint8).tobytes())
            else:
                step.float_list.value.extend(frame.tolist())
    return record


def frames(seed, num=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 6)).astype("f4"), rng.normal(size=(num, 2)).astype("f4")


def test_frames_of_floats_are_those_of_bytes_when_they_are_quantised(tmp_path):
    videos = [(*frames(seed, seed + 1), b"v%d" % seed, (seed, 11)) for seed in range(5)]
    floats = decode(write(tmp_path / "floats", *(extracted(*video) for video in videos)), MEDIAPIPE)
    whole = decode(write(tmp_path / "bytes", *(extracted(*video, as_bytes=True) for video in videos)), USUAL)
    for name in ("ids", "features_ND", "frame_offsets", "label_offsets", "label_indices"):
        np.testing.assert_array_equal(getattr(floats, name), getattr(whole, name), name)
    dequantised = floats.features_ND[:, :6] * DEQUANTISE_SCALE + DEQUANTISE_SHIFT
    assert np.abs(dequantised - np.concatenate([rgb for rgb, *_ in videos]).clip(-2, 2)).max() <= DEQUANTISE_SCALE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "key 'RGB/feature/floats': frame 1: value 2 is nan, but features must be finite"),
        ("width", "key 'RGB/feature/floats': frame 1 has 5 values, but the schema says 6"),
        ("integers", "key 'RGB/feature/floats': frame 1 holds int64, but a frame is bytes or float32"),
        ("length", "key 'AUDIO/feature/floats': has 5 frames, but 'RGB/feature/floats' has 4"),
        ("id", r"key 'clip/data_id': is missing \(no 'clip/data_id'\)"),
        ("labels", "key 'clip/label/index': holds the label 12, outside"),
    ],
)
def test_a_bad_record_is_named_by_its_own_keys(tmp_path, change, message):
    rgb, audio = frames(1)
    if change == "nan":
        rgb[1, 2] = np.nan
    record = extracted(
        rgb, frames(1, 5)[1] if change == "length" else audio, labels=(12,) if change == "labels" else ()
    )
    step = record.feature_lists.feature_list["RGB/feature/floats"].feature[1]
    if change == "width":
        del step.float_list.value[-1]
    if change == "integers":
        step.int64_list.value.extend(range(6))
    if change == "id":
        del record.context.feature["clip/data_id"]
    path = write(tmp_path / "a", extracted(*frames(2)), record)
    with pytest.raises(ShardError, match=message):
        decode(path, MEDIAPIPE)
    assert len(decode(path, MEDIAPIPE, max_bad_records=1).ids) == 1


def test_one_video_may_have_floats_and_another_bytes(tmp_path):
    keys = {"id": "id", "labels": "labels", "rgb": "rgb", "audio": "audio"}
    mixed = extracted(*frames(1), as_bytes=True)
    other = SequenceExample()
    other.CopyFrom(extracted(*frames(1), as_bytes=True))
    for name, values in zip(("rgb", "audio"), frames(1), strict=True):
        del other.feature_lists.feature_list[name]
        for frame in values:
            other.feature_lists.feature_list[name].feature.add().float_list.value.extend(frame.tolist())
    schema = Schema(features=USUAL.features, num_classes=12, level="frame", keys=keys)
    shard = decode(write(tmp_path / "a", mixed, other), schema)
    np.testing.assert_array_equal(shard.features_ND[:4], shard.features_ND[4:])


@pytest.mark.parametrize("level", ["video", "frame", "segment"])
def test_sample_shards_with_other_keys_hold_the_same(tmp_path, monkeypatch, level):
    keys = {"id": "a", "labels": "b", "rgb": "c/d"}
    keys |= {"segment_start_times": "starts", "segment_labels": "rated"} if level == "segment" else {}
    settings = {"num_videos": {"train": 20}, "num_shards": 2, "num_classes": 7, "level": level}
    caches = []
    for folder, renamed in (("usual", {}), ("other", keys)):
        schema = Schema(features={"rgb": 3, "audio": 2}, num_classes=7, level=level, keys=renamed)
        paths = write_splits(tmp_path / folder, features=schema.features, keys=renamed, **settings)["train"]
        caches.append(open_cache(list(map(str, paths)), schema, tmp_path / "caches"))
    usual, other = caches
    for name in ("ids", "features_ND", "label_offsets", "label_indices"):
        np.testing.assert_array_equal(getattr(usual, name), getattr(other, name), name)
    assert other.fingerprint != usual.fingerprint and Cache.load(other.directory).schema == schema
    with pytest.raises(ShardError, match="is missing"):
        open_cache([str(path) for path in paths], usual.schema, tmp_path / "caches")
    decodings = Decodings(monkeypatch)
    open_cache([str(path) for path in paths], other.schema, tmp_path / "caches")
    assert decodings.paths == []


def test_renamed_features_of_videos_are_read_in_lockstep(tmp_path):
    """As fast as those under their usual names: no record is left to protobuf."""
    record = Example()
    record.features.feature["name"].bytes_list.value.append(b"v1")
    record.features.feature["classes"].int64_list.value.append(3)
    record.features.feature["mean"].float_list.value.extend([0.5, 0.25])
    path = write(tmp_path / "a", *[record] * 9)
    schema = Schema(features={"rgb": 2}, num_classes=4, keys={"id": "name", "labels": "classes", "rgb": "mean"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.tfrecord.shards.example_of", None)
        shard = decode(path, schema)
    assert shard.ids.tolist() == [b"v1"] * 9 and shard.features_ND[8].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"label": "x"}, "keys can name those of id, labels, rgb, but got 'label'"),
        ({"labels": ""}, "the key of labels must not be empty"),
        ({"labels": "rgb"}, "keys gives 'rgb' two meanings"),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Schema(features={"rgb": 2}, num_classes=4, keys=keys)

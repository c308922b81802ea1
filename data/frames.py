"""Frame-level and segment-level shards: tf.train.SequenceExamples -> frames, one after the other, as they are stored.

    SequenceExample { context: id, labels, ...;  feature_lists: rgb [T frames of 1024 bytes], audio [T of 128], ... }

A frame is one bytes value, so with its three tags and lengths every frame of a list takes equally many bytes: a list is
a matrix whose first columns are known, and numpy copies the others. The contexts are parsed in lockstep, as videos are.
What is laid out in another way, or wrong, goes the general way (data/wire.py), which finds the words.

At segment level the context has equally long lists `segment_start_times`, `segment_labels`, `segment_scores`: ratings.
Every start that is rated is an example of its own, `<id>:<start>`: its SEGMENT_FRAMES frames, fewer where the video
ends. A class with a score of at least a half is a label, and only the classes that are rated say anything. Where no
labels are required, to predict, the examples are all whole segments of the video instead.

Shapes   N examples   T frames of one of them   F frames of all   D bytes of a frame, all features side by side
"""

import os
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.lockstep import locate_entries, varint
from data.schema import SEGMENT_FRAMES, SEGMENT_LABELS, SEGMENT_SCORES, SEGMENT_START, Schema
from data.tfrecord import (
    CONTEXT,
    DecodedShard,
    Example,
    Records,
    content_hash,
    decode_shard,
    ids_of,
    labels_of,
    load_records,
    parse_example,
    ragged,
    read_contexts,
    type_of,
)
from data.wire import WireError, read_varint

Bytes = NDArray[np.uint8]
Lists = list[Bytes]  # [T, W] of each feature of one record, in the order of the schema


def decode(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """All examples of a shard, at the schema's level; as `decode_shard`, `decode_frames` or `decode_segments`."""
    decoders: dict[str, Callable[..., DecodedShard]] = {
        "video": decode_shard,
        "frame": decode_frames,
        "segment": decode_segments,
    }
    return decoders[schema.level](path, schema, require_labels=require_labels)


def decode_frames(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """All videos of a shard, each with its first `schema.max_frames` frames.

    Args:
        path: a local path or a fsspec URL; plain or gzip. An empty file is a shard of no videos.
        schema: the feature lists wanted, in the order of their columns, and their widths; others are skipped.
        require_labels: False: a video without the key `labels` has none (for prediction).

    Raises:
        ShardError: the file cannot be read or is damaged; a record lacks a feature list or its id, has a frame of
            another width, lists of different lengths or no frame at all, or a label outside [0, num_classes).
    """
    name = os.fspath(path)
    records = load_records(name)
    outlines = [_Outline.of(records, row, schema) for row in range(len(records.start_N))]
    sound = np.array([outline.lists is not None for outline in outlines], np.bool_)
    entries_N2 = np.array([outline.context for outline in outlines], np.int64).reshape(-1, 2)
    found_N, places = locate_entries(records.blob, np.flatnonzero(sound), entries_N2[:, 0], entries_N2[:, 1], CONTEXT)
    context = read_contexts(records.blob, found_N, places, schema.num_classes, require_labels)
    lists: list[Lists] = [outline.lists or [] for outline in outlines]
    ids: dict[int, bytes] = {}
    labels: dict[int, NDArray[np.int64]] = {}
    for row in np.flatnonzero(~context.found_N).tolist():
        video = parse_example(name, records, row)
        lists[row] = _frames_of(video, schema)
        labels[row] = video.checked_labels(schema.num_classes, require_labels)
        ids[row] = video.id
    frames_FD, frame_offsets = _joined([[frames[: schema.max_frames] for frames in video] for video in lists], schema)
    label_offsets, label_indices = labels_of(context, labels, schema.num_classes)
    return DecodedShard(
        ids=ids_of(records, context, ids),
        features_ND=frames_FD,
        frame_offsets=frame_offsets,
        label_offsets=label_offsets,
        label_indices=label_indices,
        content_hash=content_hash(records),
    )


def decode_segments(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """The rated segments of a shard's videos, in the order of videos and starts; arguments as `decode_frames` has them.

    A segment that starts behind its video's last frame is left out: there is nothing to see.

    Args:
        path: of the shard.
        schema: of its records.
        require_labels: False: all whole segments of every video, at least one, without ratings.

    Raises:
        ShardError: as `decode_frames`; also for ratings that are missing or fit each other in no way.
    """
    name = os.fspath(path)
    records = load_records(name)
    ids: list[bytes] = []
    lists: list[Lists] = []
    ratings: list[tuple[NDArray[np.int64], NDArray[np.bool_]]] = []  # classes of a segment, and whether it has them
    for row in range(len(records.start_N)):
        outline = _Outline.of(records, row, schema)
        video = parse_example(name, records, row, None if outline.lists is None else outline.context[1])
        features = outline.lists or _frames_of(video, schema)
        num_frames = len(features[0])
        if require_labels:
            found = _rated_segments(video, schema.num_classes)
        else:
            nothing = np.empty(0, np.int64), np.empty(0, np.bool_)
            found = dict.fromkeys(range(0, max(num_frames - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES), nothing)
        for start, rating in found.items():
            if start < num_frames:
                stop = start + min(SEGMENT_FRAMES, schema.max_frames)
                ids.append(b"%s:%d" % (video.id, start))
                lists.append([frames[start:stop] for frames in features])
                ratings.append(rating)
    frames_FD, frame_offsets = _joined(lists, schema)
    row_V = np.repeat(np.arange(len(ids)), [len(classes) for classes, _ in ratings])
    class_V = np.concatenate([np.empty(0, np.int64), *(classes for classes, _ in ratings)])
    positive_V = np.concatenate([np.empty(0, np.bool_), *(positive for _, positive in ratings)])
    label_offsets, label_indices = ragged(row_V[positive_V], class_V[positive_V], len(ids), schema.num_classes)
    rated_offsets, rated_indices = ragged(row_V, class_V, len(ids), schema.num_classes)
    return DecodedShard(
        ids=np.array(ids or [b""], np.bytes_)[: len(ids)],
        features_ND=frames_FD,
        frame_offsets=frame_offsets,
        label_offsets=label_offsets,
        label_indices=label_indices,
        rated_offsets=rated_offsets,
        rated_indices=rated_indices,
        content_hash=content_hash(records),
    )


class _Outline:
    """Where the parts of one record lie."""

    __slots__ = ("context", "lists")

    def __init__(self, context: tuple[int, int], lists: Lists | None) -> None:
        self.context = context  # its entries
        self.lists = lists  # None: the record is not laid out as usual

    @classmethod
    def of(cls, records: Records, row: int, schema: Schema) -> "_Outline":
        """A record of a context and feature lists, in this order."""
        blob, stop = records.blob, int(records.stop_N[row])
        view = blob.data
        try:
            begin, end = _message(view, int(records.start_N[row]), 0x0A)
            at, lists_stop = _message(view, end, 0x12)
            found: dict[bytes, Bytes | None] = {}
            while at < lists_stop:
                key_at, entry_stop = _message(view, at, 0x0A)
                key_at, key_stop = _message(view, key_at, 0x0A)
                list_at, at = _message(view, key_stop, 0x12)
                key = bytes(view[key_at:key_stop])
                if at != entry_stop or key in found or at > stop:
                    return cls((0, 0), None)
                width = schema.features.get(key.decode())
                found[key] = None if width is None else _matrix(blob[list_at:at], width)
        except (WireError, UnicodeDecodeError):
            return cls((0, 0), None)
        lists = [found.get(name.encode()) for name in schema.features]
        if lists_stop != stop or at != stop or any(frames is None for frames in lists):
            return cls((0, 0), None)
        whole = cast(Lists, lists)
        same = len(whole[0]) > 0 and all(len(frames) == len(whole[0]) for frames in whole)
        return cls((begin, end), whole if same else None)


def _message(view: memoryview, at: int, tag: int) -> tuple[int, int]:
    """First byte of the message that has this tag here, and the byte after it.

    Raises:
        WireError: there is another tag.
    """
    if at >= len(view) or view[at] != tag:
        raise WireError("another tag")
    size, at = read_varint(view, at + 1)
    return at, at + size


def _matrix(values: Bytes, width: int) -> Bytes | None:
    """The frames [T, width] of a list, as a view; None if they do not have this width, or are not laid out as usual."""
    head = _frame_head(width)
    stride = len(head) + width
    if len(values) % stride:
        return None
    rows = values.reshape(-1, stride)
    return rows[:, len(head) :] if (rows[:, : len(head)] == head).all() else None


@lru_cache(maxsize=64)
def _frame_head(width: int) -> Bytes:
    """What precedes the bytes of a frame in a FeatureList: the tags and lengths of Feature, BytesList and value."""
    head = b"\n" + varint(width)
    head = b"\n" + varint(len(head) + width) + head
    head = b"\n" + varint(len(head) + width) + head
    return np.frombuffer(head, np.uint8)


def _joined(lists: list[Lists], schema: Schema) -> tuple[Bytes, NDArray[np.int64]]:
    """The frames of all examples side by side and one after the other, and their offsets."""
    offsets = [0, *accumulate(len(features[0]) for features in lists)]
    frames_FD = np.empty((offsets[-1], schema.width), np.uint8)
    for begin, features in zip(offsets, lists, strict=False):
        for columns, frames in zip(schema.columns.values(), features, strict=True):
            frames_FD[begin : begin + len(frames), columns] = frames
    return frames_FD, np.array(offsets, np.int64)


# ------------------------------------------------------------------------------------------------- the general way


def _frames_of(video: Example, schema: Schema) -> Lists:
    """[T, W] of each feature, T of all of them. Raises ShardError."""
    lists = {key: _feature_list(video, key, width) for key, width in schema.features.items()}
    first, num_frames = next((key, len(frames)) for key, frames in lists.items())
    for key, frames in lists.items():
        if len(frames) != num_frames:
            raise video.error(f"has {len(frames)} frames, but {first!r} has {num_frames}", key)
    return list(lists.values())


def _feature_list(video: Example, key: str, width: int) -> Bytes:
    if key not in video.feature_lists:
        others = ", ".join(map(repr, sorted(video.feature_lists)))
        if others:
            raise video.error(f"is missing; the record has the feature lists {others}", key)
        raise video.error("is missing: this is no SequenceExample with feature lists, but frames are due", key)
    frames = video.feature_lists[key]
    if not frames:
        raise video.error("has no frame", key)
    for number, values in enumerate(frames):
        if not isinstance(values, list):
            raise video.error(f"frame {number} holds {type_of(values)}, but a frame is bytes", key)
        if len(values) != 1:
            raise video.error(f"frame {number} holds {len(values)} values, but one is due", key)
        if len(values[0]) != width:
            raise video.error(f"frame {number} has {len(values[0])} bytes, but the schema says {width}", key)
    return np.frombuffer(b"".join(cast(Any, values)[0] for values in frames), np.uint8).reshape(-1, width)


def _rated_segments(video: Example, num_classes: int) -> dict[int, tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """By start, in order: the classes that were rated, and whether the segment has them. Raises ShardError."""
    starts = _ratings(video, SEGMENT_START, np.int64)
    classes = _ratings(video, SEGMENT_LABELS, np.int64)
    scores = _ratings(video, SEGMENT_SCORES, np.float32)
    for key, values in ((SEGMENT_LABELS, classes), (SEGMENT_SCORES, scores)):
        if len(values) != len(starts):
            raise video.error(f"has {len(values)} values, but {SEGMENT_START!r} has {len(starts)}", key)
    if len(starts) and starts.min() < 0:
        raise video.error(f"holds the start {starts.min()}, before the video's first second", SEGMENT_START)
    if not ((scores >= 0) & (scores <= 1)).all():
        wrong = scores[~((scores >= 0) & (scores <= 1))][0]
        raise video.error(f"holds the score {wrong:g}, outside [0, 1]", SEGMENT_SCORES)
    video.check_classes(classes, num_classes, SEGMENT_LABELS)
    return {int(start): (classes[starts == start], scores[starts == start] >= 0.5) for start in np.unique(starts)}


def _ratings(video: Example, key: str, dtype: type) -> NDArray[Any]:
    if key not in video.features:
        raise video.error("is missing, though segments are due (data.level: segment)", key)
    values = video.features[key]
    if isinstance(values, list) or values.dtype != dtype:
        raise video.error(f"holds {type_of(values)}, but {np.dtype(dtype)} is due", key)
    return values

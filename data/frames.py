"""Frame-level and segment-level shards: tf.train.SequenceExamples -> frames, one after the other, as they are stored.

    SequenceExample { context: id, labels, ...;  feature_lists: rgb [T frames of 1024 bytes], audio [T of 128], ... }

A frame is one bytes value, so with its three tags and lengths every frame of a list takes equally many bytes: where the
list starts, all of its frames are known. Outlines and contexts are parsed in lockstep, as videos are.
What is laid out in another way, or wrong, goes the general way (data/tfrecord/wire.py), which finds the words.

At segment level the context has equally long lists `segment_start_times`, `segment_labels`, `segment_scores`: ratings.
Every start that is rated is an example of its own, `<id>:<start>`: its SEGMENT_FRAMES frames, fewer where the video
ends. A class with a score of at least a half is a label, and only the classes that are rated say anything. Where no
labels are required, to predict, the examples are all whole segments of the video instead.

Shapes   N examples   T frames of one of them   F frames of all   D bytes of a frame, all features side by side
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import SEGMENT_FRAMES, SEGMENT_LABELS, SEGMENT_SCORES, SEGMENT_START, Schema
from data.tfrecord.lockstep import Bytes, Integers, copy_bytes, gather, locate_entries, messages, varint
from data.tfrecord.shards import (
    CONTEXT,
    Context,
    DecodedShard,
    Example,
    Records,
    content_hash,
    decode_shard,
    ids_of,
    labels_of,
    load_records,
    load_together,
    parse_example,
    ragged,
    read_contexts,
    type_of,
)

_MAX_LISTS = 16  # of a record; one with more goes the general way

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
    outlines, context = _in_lockstep(records, schema, require_labels)
    lists: dict[int, Lists] = {}
    ids: dict[int, bytes] = {}
    labels: dict[int, NDArray[np.int64]] = {}
    for row in np.flatnonzero(~context.found_N).tolist():
        video = parse_example(name, records, row)
        lists[row] = _frames_of(video, schema)
        labels[row] = video.checked_labels(schema.num_classes, require_labels)
        ids[row] = video.id
        outlines.num_frames_N[row] = len(lists[row][0])
    frames_FD, frame_offsets = outlines.copied(records.blob, schema)
    for row, features in lists.items():
        begin, end = frame_offsets[row : row + 2]
        for columns, frames in zip(schema.columns.values(), features, strict=True):
            frames_FD[begin:end, columns] = frames[: schema.max_frames]
    label_offsets, label_indices = labels_of(context, labels, schema.num_classes)
    return DecodedShard(
        ids=ids_of(records, context, ids),
        features_ND=frames_FD,
        frame_offsets=frame_offsets,
        label_offsets=label_offsets,
        label_indices=label_indices,
        content_hash=content_hash(records.crc_N),
    )


def decode_together(
    paths: Sequence[str], schema: Schema, *, require_labels: bool = True
) -> list[DecodedShard | ShardError]:
    """What `decode` makes of each shard, or raises. Shards of frames are parsed as if they were one: numpy begins once.

    A shard with anything unusual in it is decoded again, alone.
    """

    def alone(path: str) -> DecodedShard | ShardError:
        try:
            return decode(path, schema, require_labels=require_labels)
        except ShardError as error:
            return error

    if schema.level != "frame" or len(paths) == 1:
        return [alone(path) for path in paths]
    records, rows_S = load_together(paths)
    outlines, context = _in_lockstep(records, schema, require_labels)
    frames_FD, frame_offsets = outlines.copied(records.blob, schema)
    label_offsets, label_indices = labels_of(context, {}, schema.num_classes)
    ids = ids_of(records, context, {})

    def part(rows: slice) -> DecodedShard:
        frames, labels = (offsets[rows.start : rows.stop + 1] for offsets in (frame_offsets, label_offsets))
        return DecodedShard(
            ids=ids[rows].astype(f"S{context.id.size_N[rows].max(initial=1)}"),
            features_ND=frames_FD[frames[0] : frames[-1]],
            frame_offsets=frames - frames[0],
            label_offsets=labels - labels[0],
            label_indices=label_indices[labels[0] : labels[-1]],
            content_hash=content_hash(records.crc_N[rows]),
        )

    return [
        part(rows) if rows is not None and context.found_N[rows].all() else alone(path)
        for path, rows in zip(paths, rows_S, strict=True)
    ]


def _in_lockstep(records: Records, schema: Schema, require_labels: bool) -> tuple["_Outlines", Context]:
    """Where the parts of the records lie, and their ids and labels; the context says which were understood."""
    outlines = _Outlines.of(records, schema)
    rest_L = np.flatnonzero(outlines.found_N)
    found_N, places = locate_entries(records.blob, rest_L, outlines.begin_N, outlines.end_N, CONTEXT)
    return outlines, read_contexts(records.blob, found_N, places, schema.num_classes, require_labels)


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
    outlines = _Outlines.of(records, schema)
    for row, found in enumerate(outlines.found_N.tolist()):
        video = parse_example(name, records, row, int(outlines.end_N[row]) if found else None)
        features = outlines.frames(records.blob, row, schema) if found else _frames_of(video, schema)
        num_frames = len(features[0])
        if require_labels:
            rated = _rated_segments(video, schema.num_classes)
        else:
            nothing = np.empty(0, np.int64), np.empty(0, np.bool_)
            rated = dict.fromkeys(range(0, max(num_frames - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES), nothing)
        for start, rating in rated.items():
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
        content_hash=content_hash(records.crc_N),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlines:
    """Where the parts of the records lie."""

    found_N: NDArray[np.bool_]  # the others are not laid out as usual
    begin_N: Integers  # of the context's entries
    end_N: Integers
    list_starts: dict[str, Integers]  # first byte of each feature's list, [N]
    num_frames_N: Integers  # 0 where not found

    @classmethod
    def of(cls, records: Records, schema: Schema) -> Self:
        """Records of a context and feature lists, in this order."""
        blob, stop_N = records.blob, records.stop_N
        begin_N, end_N, found_N = messages(blob, records.start_N, 0x0A)
        at_N, lists_stop_N, sound_N = messages(blob, end_N, 0x12)
        found_N &= sound_N & (lists_stop_N == stop_N)
        places = _feature_lists(blob, at_N, stop_N, found_N, schema)
        num_frames_N = np.zeros(len(stop_N), np.int64)
        for number, (name, width) in enumerate(schema.features.items()):
            head = _frame_head(width)
            list_N, list_stop_N = places[name]
            num_N, rest_N = np.divmod(list_stop_N - list_N, len(head) + width)
            found_N &= (rest_N == 0) & (num_N > 0) & ((num_N == num_frames_N) | (number == 0))
            num_frames_N = num_N * found_N
            head_F = gather(blob, f"S{len(head)}", _starts(list_N, num_frames_N, len(head) + width))
            found_N[np.repeat(np.arange(len(found_N)), num_frames_N)[head_F != head]] = False
        return cls(
            found_N=found_N,
            begin_N=begin_N,
            end_N=end_N,
            list_starts={name: start_N for name, (start_N, _) in places.items()},
            num_frames_N=num_frames_N * found_N,
        )

    def frames(self, blob: Bytes, row: int, schema: Schema) -> Lists:
        """Those of one record, as views."""
        heads = [(name, width, len(_frame_head(width))) for name, width in schema.features.items()]
        return [
            np.ndarray(
                (int(self.num_frames_N[row]), width),
                np.uint8,
                blob,
                offset=int(self.list_starts[name][row]) + head,
                strides=(head + width, 1),
            )
            for name, width, head in heads
        ]

    def copied(self, blob: Bytes, schema: Schema) -> tuple[Bytes, Integers]:
        """The first frames of all records, and their offsets; of records that were not found there is just the room."""
        num_N = np.minimum(self.num_frames_N, schema.max_frames)
        offsets = np.append(0, np.cumsum(num_N))
        frames_FD = np.empty((offsets[-1], schema.width), np.uint8)
        num_N *= self.found_N
        for (name, columns), width in zip(schema.columns.items(), schema.features.values(), strict=True):
            head = len(_frame_head(width))
            start_F = _starts(self.list_starts[name] + head, num_N, head + width)
            copy_bytes(blob, start_F, _starts(offsets[:-1], num_N, 1), frames_FD[:, columns])
        return frames_FD, offsets


def _feature_lists(
    blob: Bytes, at_N: Integers, stop_N: Integers, found_N: NDArray[np.bool_], schema: Schema
) -> dict[str, Integers]:
    """First byte and end [2, N] of each feature's list, -1 where there is none.

    Takes records whose entries do not end at `stop_N`, or have a list twice, out of `found_N`.
    """
    places = {name: np.full((2, len(stop_N)), -1) for name in schema.features}
    for _ in range(_MAX_LISTS):
        row_L = np.flatnonzero(found_N & (at_N < stop_N))
        if not len(row_L):
            break
        key_L, entry_stop_L, is_entry_L = messages(blob, at_N[row_L], 0x0A)
        key_L, key_stop_L, has_key_L = messages(blob, key_L, 0x0A)
        list_L, list_stop_L, has_list_L = messages(blob, key_stop_L, 0x12)
        sound_L = is_entry_L & has_key_L & has_list_L & (list_stop_L == entry_stop_L)
        for name, places_2N in places.items():
            key = name.encode()
            named_L = (key_stop_L - key_L == len(key)) & (gather(blob, f"S{len(key)}", key_L) == key)
            sound_L &= ~named_L | (places_2N[0, row_L] < 0)
            places_2N[:, row_L[named_L]] = list_L[named_L], list_stop_L[named_L]
        found_N[row_L] = sound_L
        at_N[row_L] = list_stop_L
    found_N &= at_N == stop_N  # no step goes back: who ends there was never beyond
    return places


def _starts(first_N: Integers, num_N: Integers, stride: int) -> Integers:
    """Where every frame starts: so many from each record's first on, a stride apart."""
    before_N = np.cumsum(num_N) - num_N
    return np.repeat(first_N - before_N * stride, num_N) + np.arange(num_N.sum()) * stride


@lru_cache(maxsize=64)
def _frame_head(width: int) -> bytes:
    """What precedes the bytes of a frame in a FeatureList: the tags and lengths of Feature, BytesList and value."""
    head = b"\n" + varint(width)
    head = b"\n" + varint(len(head) + width) + head
    return b"\n" + varint(len(head) + width) + head


def _joined(lists: list[Lists], schema: Schema) -> tuple[Bytes, Integers]:
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

"""Frame-level and segment-level shards: tf.train.SequenceExamples -> frames, one after the other, as they are stored.

    SequenceExample { context: id, labels, ...;  feature_lists: rgb [T frames of 1024 bytes], audio [T of 128], ... }

At segment level the context has three lists of equal length: `segment_start_times`, `segment_labels` and
`segment_scores`, the ratings. Every rated start is an example of its own, `<id>:<start>`, of SEGMENT_FRAMES frames, or
fewer at the end of the video. A class with a score of at least a half is a label of the segment, and only the rated
classes count. Where no labels are required (for prediction), the examples are all whole segments of the video instead.

Shapes   N examples   T frames of one of them   F frames of all   D bytes of a frame, all features side by side
         W bytes of a frame, one feature
"""

import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import SEGMENT_FRAMES, SEGMENT_LABELS, SEGMENT_SCORES, SEGMENT_START, Schema
from data.tfrecord.examples import Example, example_of, type_of
from data.tfrecord.framing import Bytes, Integers, Records, content_hash, load_records, load_together
from data.tfrecord.lockstep import CONTEXT, Context, locate_entries, read_context
from data.tfrecord.outlines import Outlines
from data.tfrecord.shards import DecodedShard, decode_shard, ids_of, labels_of, ragged

_Ratings = tuple[Integers, NDArray[np.bool_]]  # the rated classes of a segment, and whether the segment has them


def decode(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """Decodes all examples of a shard at the schema's level: `decode_shard`, `decode_frames` or `decode_segments`.

    Raises:
        ShardError: the shard or one of its records is bad.
    """
    decoders: dict[str, Callable[..., DecodedShard]] = {
        "video": decode_shard,
        "frame": decode_frames,
        "segment": decode_segments,
    }
    return decoders[schema.level](path, schema, require_labels=require_labels)


def decode_frames(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """Decodes all videos of a shard, each with its first `schema.max_frames` frames.

    Args:
        path: a local path or an fsspec URL; plain or gzip. An empty file is a shard of no videos.
        schema: the feature lists to read, in the order of their columns, and their widths; other lists are skipped.
        require_labels: False: a video without the key `labels` has no labels (for prediction).

    Raises:
        ShardError: the file cannot be read or is damaged; a record lacks a feature list or its id, has a frame of
            another width, lists of different lengths or no frame at all, or a label outside [0, num_classes).
    """
    name = os.fspath(path)
    records = load_records(name)
    outlines, context = _in_lockstep(records, schema, require_labels)
    lists: dict[int, list[Bytes]] = {}
    ids: dict[int, bytes] = {}
    labels: dict[int, Integers] = {}
    for row in np.flatnonzero(~context.found_N).tolist():
        video = example_of(name, records, row)
        lists[row] = _features_of(video, schema)
        labels[row] = video.checked_labels(schema.num_classes, require_labels)
        ids[row] = video.id
        outlines.num_frames_N[row] = len(lists[row][0])
    frames_FD, frame_offsets = outlines.copied(records.buffer, schema)
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
    """Decodes several shards; returns for each what `decode` returns or raises.

    Shards of frames are parsed as if they were one, since numpy takes as long to start as to parse a small shard. A
    shard that is damaged or has an unusual record is then decoded again, alone.
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
    frames_FD, frame_offsets = outlines.copied(records.buffer, schema)
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


def _in_lockstep(records: Records, schema: Schema, require_labels: bool) -> tuple[Outlines, Context]:
    """Returns where the frames of the records lie, and their ids and labels; the context says which were understood."""
    outlines = Outlines.of(records, schema)
    rest_L = np.flatnonzero(outlines.found_N)
    found_N, spans = locate_entries(records.buffer, rest_L, outlines.begin_N, outlines.end_N, CONTEXT)
    return outlines, read_context(records.buffer, found_N, spans, schema.num_classes, require_labels)


def decode_segments(path: str | os.PathLike[str], schema: Schema, *, require_labels: bool = True) -> DecodedShard:
    """Decodes the rated segments of a shard's videos, in the order of the videos and of the segments' starts.

    A segment that starts after its video's last frame is left out, since it has no frames.

    Args:
        path: a local path or an fsspec URL; plain or gzip. An empty file is a shard of no segments.
        schema: the feature lists to read, in the order of their columns, and their widths; other lists are skipped.
        require_labels: False: all whole segments of every video, at least one per video, without ratings.

    Raises:
        ShardError: as `decode_frames`; also for ratings that are missing, of different lengths or out of range.
    """
    name = os.fspath(path)
    records = load_records(name)
    lists: list[list[Bytes]] = []
    ids: list[bytes] = []
    ratings: list[_Ratings] = []
    for row in range(len(records)):
        video = example_of(name, records, row)
        features = _features_of(video, schema)
        num_frames = len(features[0])
        if require_labels:
            segments = _rated_segments(video, schema.num_classes)
        else:
            unrated = np.empty(0, np.int64), np.empty(0, np.bool_)
            segments = dict.fromkeys(range(0, max(num_frames - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES), unrated)
        for start, rating in segments.items():
            if start < num_frames:
                stop = start + min(SEGMENT_FRAMES, schema.max_frames)
                lists.append([feature[start:stop] for feature in features])
                ids.append(b"%s:%d" % (video.id, start))
                ratings.append(rating)
    frames_FD, frame_offsets = _joined(lists, schema)
    label_offsets, label_indices = _ragged([classes[has_it] for classes, has_it in ratings], schema.num_classes)
    rated_offsets, rated_indices = _ragged([classes for classes, _ in ratings], schema.num_classes)
    return DecodedShard(
        ids=_as_ids(ids),
        features_ND=frames_FD,
        frame_offsets=frame_offsets,
        label_offsets=label_offsets,
        label_indices=label_indices,
        rated_offsets=rated_offsets,
        rated_indices=rated_indices,
        content_hash=content_hash(records.crc_N),
    )


def _joined(lists: list[list[Bytes]], schema: Schema) -> tuple[Bytes, Integers]:
    """Returns the frames [F, D] of all examples, and their offsets [N + 1]."""
    offsets = [0, *accumulate(len(features[0]) for features in lists)]
    frames_FD = np.empty((offsets[-1], schema.width), np.uint8)
    for begin, features in zip(offsets, lists, strict=False):
        for columns, frames in zip(schema.columns.values(), features, strict=True):
            frames_FD[begin : begin + len(frames), columns] = frames
    return frames_FD, np.array(offsets, np.int64)


def _ragged(classes_N: list[Integers], num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Returns the classes of all examples as offsets [N + 1] and indices, sorted within each example."""
    row_V = np.repeat(np.arange(len(classes_N)), [len(classes) for classes in classes_N])
    return ragged(row_V, np.concatenate([np.empty(0, np.int64), *classes_N]), len(classes_N), num_classes)


def _as_ids(ids: list[bytes]) -> NDArray[np.bytes_]:
    return np.array(ids or [b""], np.bytes_)[: len(ids)]


def _features_of(video: Example, schema: Schema) -> list[Bytes]:
    """Returns the [T, W] frames of each feature, in the order of the schema.

    Raises:
        ShardError: a feature list is missing or bad, or they have different lengths.
    """
    lists = {key: video.frames(key, width) for key, width in schema.features.items()}
    first, num_frames = next((key, len(frames)) for key, frames in lists.items())
    for key, frames in lists.items():
        if len(frames) != num_frames:
            raise video.error(f"has {len(frames)} frames, but {first!r} has {num_frames}", key)
    return list(lists.values())


def _rated_segments(video: Example, num_classes: int) -> dict[int, _Ratings]:
    """Returns the ratings of each segment by its start, in ascending order.

    Raises:
        ShardError: the ratings are missing, of different lengths or out of range.
    """
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
    values = video.values(key)
    if values is None:
        raise video.error("is missing, though segments are due (data.level: segment)", key)
    if isinstance(values, list) or values.dtype != dtype:
        raise video.error(f"holds {type_of(values)}, but {np.dtype(dtype)} is due", key)
    return values

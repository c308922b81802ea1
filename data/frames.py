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
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ShardError
from data.schema import RATINGS, SEGMENT_FRAMES, Schema
from data.tfrecord.examples import Example, example_of, type_of
from data.tfrecord.framing import Bytes, Integers, Records, load_blocks, load_together
from data.tfrecord.lockstep import Context, context_kinds, locate_entries, read_context
from data.tfrecord.outlines import Outlines
from data.tfrecord.shards import (
    BadRecords,
    DecodedShard,
    Reading,
    decode_videos,
    ids_of,
    joined,
    labels_of,
    ragged,
    without,
)

_Ratings = tuple[Integers, NDArray[np.bool_]]  # the rated classes of a segment, and whether the segment has them


def decode(path: str | os.PathLike[str], schema: Schema, **options: Any) -> DecodedShard:
    """Decodes a whole shard, as `decode_blocks` does; its features take as much memory as they are."""
    return joined(list(decode_blocks(path, Reading(schema=schema, **options))))


def decode_blocks(path: str | os.PathLike[str], reading: Reading) -> Iterator[DecodedShard]:
    """Decodes a shard, a block of its records at a time (data/tfrecord/framing.py), at the schema's level.

    Args:
        path: a local path or an fsspec URL; plain, gzip or zlib. An empty file is a shard of no videos.
        reading: what is read, and how.

    Raises:
        UnreachableError: the file cannot be read.
        ShardError: the file is damaged, or one of its records is bad and may not be left out.
    """
    name = os.fspath(path)
    decoders = {"video": decode_videos, "frame": decode_frames, "segment": decode_segments}
    bad = BadRecords(reading.max_bad_records)
    for records in load_blocks(name):
        yield decoders[reading.schema.level](name, records, reading, bad)


def decode_frames(path: str, records: Records, reading: Reading, bad: BadRecords) -> DecodedShard:
    """Decodes the videos of a block, each with its first `schema.max_frames` frames.

    Raises:
        ShardError: a record lacks a feature list or its id, has a frame of another width, lists of different lengths or
            no frame at all, or a label outside [0, num_classes); and it may not be left out.
    """
    schema, known = reading.schema, len(bad.errors)
    outlines, context = _in_lockstep(records, schema, reading.require_labels)
    lists: dict[int, list[Bytes]] = {}
    ids: dict[int, bytes] = {}
    labels: dict[int, Integers] = {}
    bad_rows: list[int] = []
    for row in np.flatnonzero(~context.found_N).tolist():
        outlines.num_frames_N[row] = 0
        with bad.left_out(row, bad_rows):
            video = example_of(path, records, row)
            features = _features_of(video, schema)
            checked = video.checked_labels(schema, reading.require_labels)
            ids[row] = video.id_under(schema.id_keys)
            lists[row], labels[row] = features, checked
            outlines.num_frames_N[row] = len(features[0])
    frames_FD, frame_offsets = outlines.copied(records.buffer, schema)
    for row, features in lists.items():
        begin, end = frame_offsets[row : row + 2]
        for columns, frames in zip(schema.columns.values(), features, strict=True):
            frames_FD[begin:end, columns] = frames[: schema.max_frames]
    label_offsets, label_indices = labels_of(context, labels, schema.num_classes)
    shard = DecodedShard(
        ids=ids_of(records, context, ids),
        features_ND=frames_FD,
        frame_offsets=frame_offsets,
        label_offsets=label_offsets,
        label_indices=label_indices,
        crc_N=records.crc_N,
        bad_records=tuple(bad.errors[known:]),
    )
    return without(shard, bad_rows)


def decode_together(paths: Sequence[str], reading: Reading) -> list[DecodedShard | ShardError]:
    """Decodes several shards; returns for each what `decode` returns or raises.

    Shards of frames are parsed as if they were one, since numpy takes as long to start as to parse a small shard. A
    shard that is damaged or has an unusual record is then decoded again, alone.
    """
    schema = reading.schema

    def alone(path: str) -> DecodedShard | ShardError:
        try:
            return joined(list(decode_blocks(path, reading)))
        except ShardError as error:
            return error

    if schema.level != "frame" or len(paths) == 1:
        return [alone(path) for path in paths]
    records, rows_S = load_together(paths)
    outlines, context = _in_lockstep(records, schema, reading.require_labels)
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
            crc_N=records.crc_N[rows],
        )

    return [
        part(rows) if rows is not None and context.found_N[rows].all() else alone(path)
        for path, rows in zip(paths, rows_S, strict=True)
    ]


def _in_lockstep(records: Records, schema: Schema, require_labels: bool) -> tuple[Outlines, Context]:
    """Returns where the frames of the records lie, and their ids and labels; the context says which were understood."""
    outlines = Outlines.of(records, schema)
    rest_L = np.flatnonzero(outlines.found_N)
    found_N, spans = locate_entries(records.buffer, rest_L, outlines.begin_N, outlines.end_N, context_kinds(schema))
    return outlines, read_context(records.buffer, found_N, spans, schema, require_labels)


def decode_segments(path: str, records: Records, reading: Reading, bad: BadRecords) -> DecodedShard:
    """Decodes the rated segments of a block's videos, in the order of the videos and of the segments' starts.

    A segment that starts after its video's last frame is left out, since it has no frames. Where no labels are
    required, the examples are all whole segments of every video, at least one per video, without ratings.

    Raises:
        ShardError: as `decode_frames`; also for ratings that are missing, of different lengths or out of range.
    """
    schema, known = reading.schema, len(bad.errors)
    lists: list[list[Bytes]] = []
    ids: list[bytes] = []
    ratings: list[_Ratings] = []
    bad_rows: list[int] = []
    for row in range(len(records)):
        with bad.left_out(row, bad_rows):
            video = example_of(path, records, row)
            features, name = _features_of(video, schema), video.id_under(schema.id_keys)
            num_frames = len(features[0])
            for start, rating in _segments(video, num_frames, reading).items():
                if start < num_frames:
                    stop = start + min(SEGMENT_FRAMES, schema.max_frames)
                    lists.append([feature[start:stop] for feature in features])
                    ids.append(b"%s:%d" % (name, start))
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
        crc_N=np.delete(records.crc_N, bad_rows),
        bad_records=tuple(bad.errors[known:]),
    )


def _segments(video: Example, num_frames: int, reading: Reading) -> dict[int, _Ratings]:
    """Returns the rated segments of a video by their starts; where no labels are required, all whole segments."""
    if reading.require_labels:
        return _rated_segments(video, reading.schema)
    unrated = np.empty(0, np.int64), np.empty(0, np.bool_)
    return dict.fromkeys(range(0, max(num_frames - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES), unrated)


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
    lists = {(key := schema.key(name)): video.frames(key, width) for name, width in schema.features.items()}
    first, num_frames = next((key, len(frames)) for key, frames in lists.items())
    for key, frames in lists.items():
        if len(frames) != num_frames:
            raise video.error(f"has {len(frames)} frames, but {first!r} has {num_frames}", key)
    return list(lists.values())


def _rated_segments(video: Example, schema: Schema) -> dict[int, _Ratings]:
    """Returns the ratings of each segment by its start, in ascending order.

    Raises:
        ShardError: the ratings are missing, of different lengths or out of range.
    """
    start_key, label_key, score_key = map(schema.key, RATINGS)
    starts = _ratings(video, start_key, np.int64)
    classes = _ratings(video, label_key, np.int64)
    scores = _ratings(video, score_key, np.float32)
    for key, values in ((label_key, classes), (score_key, scores)):
        if len(values) != len(starts):
            raise video.error(f"has {len(values)} values, but {start_key!r} has {len(starts)}", key)
    if len(starts) and starts.min() < 0:
        raise video.error(f"holds the start {starts.min()}, before the video's first second", start_key)
    if not ((scores >= 0) & (scores <= 1)).all():
        wrong = scores[~((scores >= 0) & (scores <= 1))][0]
        raise video.error(f"holds the score {wrong:g}, outside [0, 1]", score_key)
    video.check_classes(classes, schema.num_classes, label_key)
    return {int(start): (classes[starts == start], scores[starts == start] >= 0.5) for start in np.unique(starts)}


def _ratings(video: Example, key: str, dtype: type) -> NDArray[Any]:
    values = video.values(key)
    if values is None:
        raise video.error("is missing, though segments are due (data.level: segment)", key)
    if isinstance(values, list) or values.dtype != dtype:
        raise video.error(f"holds {type_of(values)}, but {np.dtype(dtype)} is due", key)
    return values

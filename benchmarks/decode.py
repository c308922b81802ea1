r"""Decoding shards: ours with every CRC checked, beside the `tfrecord` package's loader, which checks none.

    python benchmarks/decode.py [--data '../shared/data/yt8m/train/*.tfrecord'] [--rounds 7] [--level frame]
    python benchmarks/decode.py --level frame --data '../shared/data/audioset/train/*.tfrecord' --id-key video_id \
        --features audio_embedding=128 --classes 527

Both read the same files (in the page cache), one shard after the other, on one core; ours takes small ones of frames
together, as the build of a cache does. Ours ends in ids, float32 features [N, D] and labels of each shard, of frames in
uint8 [frames, D] and their offsets; theirs in the arrays of each record or frame, which a user has yet to stack. Rounds
alternate between the two; the least CPU time of each counts, all threads included. First the values are compared.
"""

import argparse
import glob
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy starts its threads

import numpy as np
from card import show
from numpy.typing import NDArray
from tfrecord.reader import tfrecord_loader

from data.cache.build import _together as together
from data.cache.build import find_shard
from data.cache.store import _feature as feature
from data.frames import decode_together
from data.sample import write_splits
from data.schema import FEATURES, Schema
from data.tfrecord.shards import DecodedShard

AIM = 5
Shard = tuple[list[bytes], NDArray[np.float32], list[list[int]]]  # ids, features_ND, labels of each video


def records(path: str, schema: Schema, id_key: str) -> Iterator[Any]:
    """Their loader."""
    description = {id_key: "byte", "labels": "int"}
    if schema.level == "frame":
        return tfrecord_loader(path, None, description, sequence_description=dict.fromkeys(schema.features, "byte"))
    return tfrecord_loader(path, None, description | dict.fromkeys(schema.features, "float"))


def theirs(path: str, schema: Schema, id_key: str) -> Shard:
    ids, rows, labels = [], [], []
    for record in records(path, schema, id_key):
        context, lists = record if schema.level == "frame" else (record, record)
        ids.append(bytes(context[id_key]))
        labels.append(context["labels"])
        if schema.level == "frame":
            columns = [
                np.stack([np.frombuffer(bytes(frame), np.uint8) for frame in lists[name]]) for name in schema.features
            ]
            rows.append(np.concatenate(columns, axis=1))
        else:
            rows.append(np.concatenate([lists[name] for name in schema.features])[None])
    return ids, np.concatenate(rows), labels


def theirs_bare(paths: list[str], schema: Schema, id_key: str) -> int:
    """Their loader alone: every record's arrays made, and dropped. What the ratio is against."""
    return sum(1 for path in paths for _ in records(path, schema, id_key))


def ours(paths: list[str], schema: Schema, id_key: str) -> int:
    groups = together([find_shard(path) for path in paths], schema)
    return sum(len(shard.ids) for group in groups for shard in decode_together(group, schema))


def check_same_values(path: str, shard: DecodedShard, schema: Schema, id_key: str) -> None:
    ids, features_ND, labels = theirs(path, schema, id_key)
    bounds = shard.label_offsets.tolist()
    assert shard.ids.tolist() == ids, f"{path}: other ids"
    assert np.array_equal(shard.features_ND, features_ND), f"{path}: other features"
    for n, expected in enumerate(labels):
        assert shard.label_indices[bounds[n] : bounds[n + 1]].tolist() == sorted(set(expected)), f"{path}: other labels"


def cpu_seconds(read: Callable[[list[str]], int], paths: list[str]) -> float:
    start = time.process_time()
    read(paths)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="GLOB", help="shards; default: sample shards")
    parser.add_argument("--videos", type=int, default=4000, help="of the sample shards (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turns (default: %(default)s)")
    parser.add_argument("--level", choices=("video", "frame"), default="video", help="default: %(default)s")
    parser.add_argument("--frames", type=int, default=200, help="of the longest sample video (default: %(default)s)")
    parser.add_argument("--features", nargs="+", type=feature, metavar="NAME=WIDTH", help="default: YouTube-8M's")
    parser.add_argument("--id-key", default="id", help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=3862, help="default: %(default)s")
    arguments = parser.parse_args()
    schema = Schema(
        features=dict(arguments.features or FEATURES[arguments.level]),
        num_classes=arguments.classes,
        level=arguments.level,
    )
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.data is None:
            write_splits(
                scratch,
                num_videos={"train": arguments.videos},
                num_shards=4,
                num_classes=64,
                features=schema.features,
                level=arguments.level,
                num_frames=arguments.frames,
            )
        pattern = arguments.data or str(Path(scratch, "*.tfrecord"))
        paths = sorted(glob.glob(pattern))
        if not paths:
            parser.error(f"{pattern} matches no file")
        for group in together([find_shard(path) for path in paths], schema):
            for path, shard in zip(group, decode_together(group, schema), strict=True):
                check_same_values(path, shard, schema, arguments.id_key)
        num_videos = ours(paths, schema, arguments.id_key)
        size = sum(Path(path).stat().st_size for path in paths)
        settings = {"schema": schema, "id_key": arguments.id_key}
        readers = {"ours": partial(ours, **settings), "theirs": partial(theirs_bare, **settings)}
        seconds = {name: float("inf") for name in readers}
        for turn in range(arguments.rounds):
            for name in sorted(readers, reverse=turn % 2 == 1):
                seconds[name] = min(seconds[name], cpu_seconds(readers[name], paths))

    ratio = seconds["theirs"] / seconds["ours"]
    speeds = {name: num_videos / least for name, least in seconds.items()}
    table = [["one core", "videos/s", "MB/s", "CRCs"]]
    for name, label, crcs in (
        ("theirs", "tfrecord.tfrecord_loader", "none"),
        ("ours", "data.frames.decode_together", "both"),
    ):
        table.append([label, f"{speeds[name]:,.0f}", f"{size / seconds[name] / 1e6:,.0f}", crcs])
    report = {
        "ratio": round(ratio, 2),
        "aim": AIM,
        "videos_per_second": round(speeds["ours"]),
        "tfrecord_videos_per_second": round(speeds["theirs"]),
        "videos": num_videos,
        "level": arguments.level,
        "shards": len(paths),
        "data": arguments.data or "sample",
        "rounds": arguments.rounds,
    }
    title = f"decoding {num_videos:,} videos in {len(paths)} shards, {size / 1e6:.1f} MB, to the same values"
    show("decode", title, table, [f"ratio {ratio:.2f} (aim {AIM})"], report)


if __name__ == "__main__":
    main()

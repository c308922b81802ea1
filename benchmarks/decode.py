r"""Decoding shards: ours beside protobuf's parser (upb) alone, and beside the `tfrecord` package's loader.

    python benchmarks/decode.py [--data '../shared/data/yt8m/train/*.tfrecord'] [--rounds 7] [--level frame]
    python benchmarks/decode.py --level frame --data '../shared/data/audioset/train/*.tfrecord' --id-key video_id \
        --features audio_embedding=128 --classes 527

All three read the same files (in the page cache) on one core; ours takes small shards of frames together, as the build
of a cache does. Ours ends in ids, features (float32 [N, D], of frames uint8 [frames, D]) and labels of each shard, all
checked. upb parses one record at a time and ends in the arrays of each record; CRCs are checked, values are not. The
package's loader checks neither and ends in the arrays of each record or frame. The readers take turns; the least CPU
time of each counts, all threads included. Before that, the values are compared.

`ratio` is against the package, `ratio_upb` against upb: what is decoded in lockstep must be more than twice as fast.
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

from data.ranges import COUNT

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy starts its threads

import numpy as np
from card import show
from numpy.typing import NDArray
from tfrecord.reader import tfrecord_loader

from data.cache.build import group
from data.cache.recipe import find_shard
from data.frames import decode_together
from data.sample import write_splits
from data.schema import FEATURES, Schema, parse_feature
from data.tfrecord.examples import example_of
from data.tfrecord.framing import load_blocks
from data.tfrecord.shards import DecodedShard, Reading

AIM = 5
Shard = tuple[list[bytes], NDArray[np.float32], list[list[int]]]  # ids, features_ND, labels of each video


def records(path: str, schema: Schema, id_key: str) -> Iterator[Any]:
    """The package's loader."""
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
    """The package's loader alone: it makes every record's arrays, which are dropped."""
    return sum(1 for path in paths for _ in records(path, schema, id_key))


def upb(paths: list[str], schema: Schema, id_key: str) -> int:
    """The parser of protobuf alone: it makes every record's arrays, which are dropped."""
    count = 0
    for path in paths:
        for loaded in load_blocks(path):
            for row in range(len(loaded)):
                example = example_of(path, loaded, row)
                arrays: list[Any] = [example.values(id_key), example.values("labels")]
                for key, width in schema.features.items():
                    arrays.append(example.frames(key, width) if schema.level == "frame" else example.values(key))
            count += len(loaded)
    return count


def ours(paths: list[str], schema: Schema, id_key: str) -> int:
    groups = group([find_shard(path) for path in paths], schema)
    return sum(len(shard.ids) for together in groups for shard in decode_together(together, Reading(schema=schema)))


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
    parser.add_argument("--videos", type=COUNT.whole, default=4000, help="of the sample shards (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=COUNT.whole, default=7, help="measurements of each, in turns (default: %(default)s)"
    )
    parser.add_argument("--level", choices=("video", "frame"), default="video", help="default: %(default)s")
    parser.add_argument(
        "--frames", type=COUNT.whole, default=200, help="of the longest sample video (default: %(default)s)"
    )
    parser.add_argument("--features", nargs="+", type=parse_feature, metavar="NAME=WIDTH", help="default: YouTube-8M's")
    parser.add_argument("--id-key", default="id", help="default: %(default)s")
    parser.add_argument("--classes", type=COUNT.whole, default=3862, help="default: %(default)s")
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
        for together in group([find_shard(path) for path in paths], schema):
            for path, shard in zip(together, decode_together(together, Reading(schema=schema)), strict=True):
                check_same_values(path, shard, schema, arguments.id_key)
        num_videos = ours(paths, schema, arguments.id_key)
        size = sum(Path(path).stat().st_size for path in paths)
        settings = {"schema": schema, "id_key": arguments.id_key}
        readers = {"ours": ours, "upb": upb, "theirs": theirs_bare}
        seconds = {name: float("inf") for name in readers}
        for turn in range(arguments.rounds):
            for name in sorted(readers, reverse=turn % 2 == 1):
                seconds[name] = min(seconds[name], cpu_seconds(partial(readers[name], **settings), paths))

    ratio, ratio_upb = (seconds[peer] / seconds["ours"] for peer in ("theirs", "upb"))
    speeds = {name: num_videos / least for name, least in seconds.items()}
    table = [["one core", "videos/s", "MB/s", "CRCs"]]
    for name, label, crcs in (
        ("theirs", "tfrecord.tfrecord_loader", "none"),
        ("upb", "protobuf (upb), a record at a time", "both"),
        ("ours", "data.frames.decode_together", "both"),
    ):
        table.append([label, f"{speeds[name]:,.0f}", f"{size / seconds[name] / 1e6:,.0f}", crcs])
    report = {
        "ratio": round(ratio, 2),
        "aim": AIM,
        "ratio_upb": round(ratio_upb, 2),
        "videos_per_second": round(speeds["ours"]),
        "upb_videos_per_second": round(speeds["upb"]),
        "tfrecord_videos_per_second": round(speeds["theirs"]),
        "videos": num_videos,
        "level": arguments.level,
        "shards": len(paths),
        "data": arguments.data or "sample",
        "rounds": arguments.rounds,
    }
    title = f"decoding {num_videos:,} videos in {len(paths)} shards, {size / 1e6:.1f} MB, to the same values"
    show("decode", title, table, [f"ratio {ratio:.2f} (aim {AIM}), against upb {ratio_upb:.2f}"], report)


if __name__ == "__main__":
    main()

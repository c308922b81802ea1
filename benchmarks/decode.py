"""Decoding shards: ours with every CRC checked, beside the `tfrecord` package's loader, which checks none.

    python benchmarks/decode.py [--data '../shared/data/yt8m/train/*.tfrecord'] [--rounds 7]

Both read the same files (in the page cache), one shard after the other, on one core. Ours ends in ids, float32
features [N, D] and labels of the shard; theirs in the arrays of each record, which a user has yet to stack. Rounds
alternate between the two; the least CPU time of each counts, all threads included. First the values are compared.
"""

import argparse
import glob
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy starts its threads

import numpy as np
from card import show
from numpy.typing import NDArray
from tfrecord.reader import tfrecord_loader

from data.sample import write_splits
from data.schema import Schema
from data.tfrecord import decode_shard

AIM = 5
Shard = tuple[list[bytes], NDArray[np.float32], list[list[int]]]  # ids, features_ND, labels of each video


def theirs(path: str, schema: Schema) -> Shard:
    description = {"id": "byte", "labels": "int"} | dict.fromkeys(schema.features, "float")
    ids, rows, labels = [], [], []
    for record in tfrecord_loader(path, None, description):
        ids.append(record["id"])
        rows.append(np.concatenate([record[name] for name in schema.features]))
        labels.append(record["labels"])
    return ids, np.stack(rows), labels


def theirs_bare(path: str, schema: Schema) -> int:
    """Their loader alone: every record's arrays made, and dropped. What the ratio is against."""
    description = {"id": "byte", "labels": "int"} | dict.fromkeys(schema.features, "float")
    return sum(1 for _ in tfrecord_loader(path, None, description))


def ours(path: str, schema: Schema) -> int:
    return len(decode_shard(path, schema).ids)


def check_same_values(path: str, schema: Schema) -> None:
    shard = decode_shard(path, schema)
    ids, features_ND, labels = theirs(path, schema)
    bounds = shard.label_offsets.tolist()
    assert shard.ids.tolist() == ids, f"{path}: other ids"
    assert np.array_equal(shard.features_ND, features_ND), f"{path}: other features"
    for n, expected in enumerate(labels):
        assert shard.label_indices[bounds[n] : bounds[n + 1]].tolist() == sorted(set(expected)), f"{path}: other labels"


def cpu_seconds(read: Callable[[str, Schema], int], paths: list[str], schema: Schema) -> float:
    start = time.process_time()
    for path in paths:
        read(path, schema)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="GLOB", help="shards; default: sample shards")
    parser.add_argument("--videos", type=int, default=4000, help="of the sample shards (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turns (default: %(default)s)")
    arguments = parser.parse_args()
    schema = Schema()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.data is None:
            write_splits(scratch, num_videos={"train": arguments.videos}, num_shards=4, num_classes=64)
        pattern = arguments.data or str(Path(scratch, "*.tfrecord"))
        paths = sorted(glob.glob(pattern))
        if not paths:
            parser.error(f"{pattern} matches no file")
        for path in paths:
            check_same_values(path, schema)
        records = sum(ours(path, schema) for path in paths)
        size = sum(Path(path).stat().st_size for path in paths)
        readers = {"ours": ours, "theirs": theirs_bare}
        seconds = {name: float("inf") for name in readers}
        for turn in range(arguments.rounds):
            for name in sorted(readers, reverse=turn % 2 == 1):
                seconds[name] = min(seconds[name], cpu_seconds(readers[name], paths, schema))

    ratio = seconds["theirs"] / seconds["ours"]
    speeds = {name: records / least for name, least in seconds.items()}
    table = [["one core", "videos/s", "MB/s", "CRCs"]]
    for name, label, crcs in (
        ("theirs", "tfrecord.tfrecord_loader", "none"),
        ("ours", "data.tfrecord.decode_shard", "both"),
    ):
        table.append([label, f"{speeds[name]:,.0f}", f"{size / seconds[name] / 1e6:,.0f}", crcs])
    report = {
        "ratio": round(ratio, 2),
        "aim": AIM,
        "videos_per_second": round(speeds["ours"]),
        "tfrecord_videos_per_second": round(speeds["theirs"]),
        "videos": records,
        "shards": len(paths),
        "data": arguments.data or "sample",
        "rounds": arguments.rounds,
    }
    title = f"decoding {records:,} videos in {len(paths)} shards, {size / 1e6:.1f} MB, to the same values"
    show("decode", title, table, [f"ratio {ratio:.2f} (aim {AIM})"], report)


if __name__ == "__main__":
    main()

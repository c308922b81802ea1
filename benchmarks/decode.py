"""Decoding shards: ours with every CRC checked, beside the `tfrecord` package's loader, which checks none.

    python benchmarks/decode.py [--data '../shared/data/yt8m/train/*.tfrecord'] [--repeats 7]

Both read the same files (in the page cache), one shard after the other, on one core. Ours ends in ids, float32
features [N, D] and labels of the shard; theirs in the arrays of each record, which a user has yet to stack. Rounds
alternate between the two; the least CPU time of each counts, all threads included. First the values are compared.
"""

import argparse
import glob
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core each; before numpy

import numpy as np
from numpy.typing import NDArray
from tfrecord.reader import tfrecord_loader

from data.sample import write_splits
from data.schema import Schema
from data.tfrecord import decode_shard

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/decode.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="GLOB", help="shards (default: four sample shards in a temporary folder)")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    schema = Schema()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.data is None:
            write_splits(scratch, num_videos={"train": 4000}, num_shards=4, num_classes=64)
        pattern = arguments.data or str(Path(scratch, "*.tfrecord"))
        paths = sorted(glob.glob(pattern))
        if not paths:
            print(f"error: {pattern} matches no file", file=sys.stderr)
            return 2
        for path in paths:
            check_same_values(path, schema)
        records = sum(ours(path, schema) for path in paths)
        size = sum(Path(path).stat().st_size for path in paths)
        readers = {"ours": ours, "theirs": theirs_bare}
        seconds = {name: float("inf") for name in readers}
        for repeat in range(arguments.repeats):
            for name in sorted(readers, reverse=repeat % 2 == 1):
                seconds[name] = min(seconds[name], cpu_seconds(readers[name], paths, schema))

    ratio = seconds["theirs"] / seconds["ours"]
    print(f"{records} videos in {len(paths)} shards, {size / 1e6:.1f} MB; the same ids, features and labels from both")
    print(f"{'one core':<34}{'videos/s':>12}{'MB/s':>8}   CRCs")
    for name, label in {"theirs": "tfrecord.tfrecord_loader", "ours": "data.tfrecord.decode_shard"}.items():
        crcs = "both" if name == "ours" else "none"
        print(f"{label:<34}{records / seconds[name]:>12,.0f}{size / seconds[name] / 1e6:>8,.0f}   {crcs}")
    print(f"{ratio:.1f} times as fast")
    print(
        json.dumps(
            {
                "benchmark": "decode",
                "ratio": round(ratio, 2),
                "videos_per_second": round(records / seconds["ours"]),
                "videos_per_second_tfrecord": round(records / seconds["theirs"]),
                "videos": records,
                "shards": len(paths),
                "data": arguments.data or "sample",
                "repeats": arguments.repeats,
                "cpu": platform.processor() or platform.machine(),
                "python": platform.python_version(),
                "numpy": np.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

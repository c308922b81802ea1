"""TFRecord shards: their framing, their records, and whole shards as arrays."""

from data.tfrecord.examples import read_examples

__all__ = ["read_examples"]

"""TFRecord shards: framing, examples, and the fast way through them."""

from data.tfrecord.shards import read_examples

__all__ = ["read_examples"]

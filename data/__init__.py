"""Shards in, batches out: everything between the bytes of a TFRecord file and the tensors of a batch."""

"""The decoded cache: shards become memory-mapped columns, once per machine."""

"""The machines of a cluster: what they hold, whether they share the storage, whether the head is alive."""

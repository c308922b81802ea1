"""A trial -> a model folder."""

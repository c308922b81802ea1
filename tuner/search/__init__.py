"""The driver of a search."""

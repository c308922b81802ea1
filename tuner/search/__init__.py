"""The driver of a search: what is tried next, which trial stops, what is recorded, when the search ends."""

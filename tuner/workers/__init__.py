"""The processes that Ray starts for a search: Ray itself, the actor of each trial, and its workers."""

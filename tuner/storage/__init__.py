"""Where things are kept: folders and object stores, the journal of a search."""

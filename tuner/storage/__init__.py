"""Where searches, checkpoints and exports are kept: folders and object stores, and the journal of a search."""

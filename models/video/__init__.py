"""Models that read one row of features for each video."""

"""Models of one feature vector for each video."""

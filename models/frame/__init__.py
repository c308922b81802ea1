"""Models that read the frames of each video, one file a model."""

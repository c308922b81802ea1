"""Models of the frames of a video."""

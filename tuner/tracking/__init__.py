"""What MLflow records of a search."""

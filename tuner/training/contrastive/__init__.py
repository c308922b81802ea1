"""The contrastive pipeline: pretraining without labels, then a probe."""

"""A contrastive trial: pretraining without labels, then a probe."""

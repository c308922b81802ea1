"""A model folder -> predictions, scores, embeddings."""

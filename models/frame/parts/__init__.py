"""What frame-level models are made of: input, pooling by clusters, recurrent layers, heads."""

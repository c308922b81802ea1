"""Contrastive pretraining: losses, momentum encoder, views."""

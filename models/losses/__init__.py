"""Losses, their weights and their penalties."""

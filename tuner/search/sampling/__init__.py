"""What to try next: the samplers, and what they draw for a trial."""

"""What `python -m tuner.steer` asks of a running search, carried out by its driver."""

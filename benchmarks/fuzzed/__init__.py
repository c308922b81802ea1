"""What benchmarks/fuzz.py changes, and what must hold for the changed files: a target for each kind of file."""

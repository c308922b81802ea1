"""experiments.yaml -> Experiment."""

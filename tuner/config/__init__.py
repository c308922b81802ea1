"""Reads experiments.yaml and checks it: experiments.yaml -> Experiment."""

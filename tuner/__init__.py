"""Decides what to train, runs it on Ray, records it in MLflow: the only package that knows yaml, Ray, Optuna and MLflow."""

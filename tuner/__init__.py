"""Decides, runs, records: the only package that knows yaml, Ray, Optuna and MLflow."""

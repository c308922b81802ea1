"""The tags of every run: what it was made with."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")  # whose versions are tags


def environment_tags(folder: Path) -> dict[str, str]:
    """Program, user, versions of packages, and the git commit of `folder`, with whether it has uncommitted changes."""
    tags = {
        "mlflow.source.name": "tune.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": os.environ.get("USER") or str(os.getuid()),
    }
    tags |= {f"version.{name}": version(name) for name in PACKAGES}
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["git_commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git_dirty"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def _git(folder: Path, *arguments: str) -> str:
    """The output of a git command; "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

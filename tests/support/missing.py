"""What happens where a program or a package that a test needs is not installed."""

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest


def not_installed(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI is set: everything that a test needs must be installed there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI needs it")
    pytest.skip(reason)


def needed(module: str, install: str) -> ModuleType:
    """Import a module that only some tests need; without it call `not_installed` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        not_installed(f"{module} is not installed: {install}")

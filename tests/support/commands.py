"""Run a command as its user does, such as `python -m tuner.best`, but in this process: no interpreter is started."""

import runpy
import sys

import pytest


def exit_code_of(module: str, *arguments: object) -> int:
    """Run `python -m module arguments` and return the exit code. What it prints goes to today's stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        patch.delitem(sys.modules, module, raising=False)  # runpy warns of one that another test has imported
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            assert isinstance(end.code, int), end.code
            return end.code
    return 0


def run_command(module: str, *arguments: object) -> None:
    """Run a command that must succeed."""
    assert exit_code_of(module, *arguments) == 0


def refusal_of(capsys: pytest.CaptureFixture[str], module: str, *arguments: object, prints_before: bool = False) -> str:
    """Run a command that must end with one sentence on stderr and exit code 2; return the sentence.

    Unless `prints_before` is set, the command must print nothing to stdout.
    """
    capsys.readouterr()
    assert exit_code_of(module, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and bool(printed.out) <= prints_before
    return printed.err

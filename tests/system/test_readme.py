"""The README promises nothing that is not there. Its two lines themselves are run by .ci/run, in a new environment."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from tests.support.workplace import PROJECT

README = (PROJECT / "README.md").read_text()
# (language, text) of every fenced block.
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)
# Everything that stands as code: blocks and `spans`.
CODE = [text for _, text in BLOCKS] + re.findall(
    r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
)
# `python tune.py ...` or `.venv/bin/python -m tuner.best ...`: the program, and what follows it on its line.
COMMANDS = sorted(
    {
        (program.removeprefix("-m "), rest.strip())
        for text in CODE
        for program, rest in re.findall(
            r"python3? (tune\.py|-m (?:tuner|data|benchmarks)\.\w+|benchmarks/\w+\.py)([^\n&|#]*)", text
        )
    }
)

# What searches and exports write.
WRITTEN = {"experiment.yaml"}


@cache
def help_of(program: str) -> str:
    arguments = [program] if program.endswith(".py") else ["-m", program]
    ran = subprocess.run(
        [sys.executable, *arguments, "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, f"python {' '.join(arguments)} --help: {ran.stderr}"
    return ran.stdout


def test_the_first_two_blocks_are_the_two_lines_that_do_everything() -> None:
    (first, main_job), (second, tests) = BLOCKS[:2]
    assert first == second == "sh"
    for line in (main_job, tests):
        assert line.count("\n") == 1 and not line.rstrip().endswith("\\")  # one physical line
        create, install, run = line.strip().split(" && ")
        assert "-m venv .venv" in create and ".venv/bin/pip install" in install and run.startswith(".venv/bin/")
    assert main_job.strip().endswith(".venv/bin/python tune.py")
    assert '-e ".[test]"' in tests and tests.strip().endswith(".venv/bin/pytest")


def test_the_main_job_is_the_only_argumentless_first_command() -> None:
    assert ("tune.py", "") in COMMANDS


@pytest.mark.parametrize("program", sorted({program for program, _ in COMMANDS}))
def test_every_program_that_it_shows_tells_its_help(program: str) -> None:
    assert "usage:" in help_of(program)


@pytest.mark.parametrize("program, rest", COMMANDS)
def test_every_option_that_it_shows_is_one(program: str, rest: str) -> None:
    for word in shlex.split(rest.replace("[", " ").replace("]", " ").replace("'", "")):
        if word.startswith("--"):
            assert word.split("=")[0] in help_of(program)


def test_every_file_that_it_names_is_there() -> None:
    known = {
        path.name
        for folder in ("data", "models", "tuner", "tests", "benchmarks")
        for path in (PROJECT / folder).iterdir()
    }
    known |= {path.name for path in PROJECT.iterdir()}
    for text in CODE:
        for name in re.findall(r"(?<![\w/.*<{-])[\w./-]*\w\.(?:py|ya?ml|md|toml)\b", text):
            assert (PROJECT / name).exists() or name in known | WRITTEN, name


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", README):
        assert (PROJECT / target).exists(), target

"""What libraries print goes to a file."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.console import (
    quiet,
)


def test_quiet_sends_all_output_of_this_process_and_its_children_to_the_file(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "new" / "ray.log"
    shown = sys.__stdout__ and os.dup(1)
    with quiet(log):
        os.write(1, b"from a library\n")
        os.write(2, b"to stderr\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        os.write(shown, b"to the person\n")
    os.close(shown)
    os.write(1, b"afterwards\n")
    assert log.read_text() == "from a library\nto stderr\nfrom a child\n"
    assert capfd.readouterr().out == "to the person\nafterwards\n"


def test_quiet_ends_with_an_error_too_and_adds_to_its_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number in range(2):
        with pytest.raises(RuntimeError), quiet(tmp_path / "ray.log"):
            os.write(1, b"%d\n" % number)
            raise RuntimeError
    os.write(1, b"shown\n")
    assert (tmp_path / "ray.log").read_text() == "0\n1\n"
    assert capfd.readouterr().out == "shown\n"


def test_output_is_dropped_without_an_error_where_the_disk_of_the_log_is_full(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with quiet(log):
            print("12345678")
            print("more than there is room for")
            print("and more", file=sys.stderr)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        signal.signal(signal.SIGXFSZ, ignored)
    assert log.read_text() == "12345678\nm"

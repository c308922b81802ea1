"""Worker processes: results in order, errors passed on, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.cache.workers import map_in_order

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def children(parent):
    """Process ids of the workers that `parent` started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_child = int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and b"data.cache.workers" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_results_come_in_the_order_of_the_jobs():
    assert list(map_in_order(abs, range(-20, 0), 3)) == list(range(20, 0, -1))
    assert list(map_in_order(abs, [], 2)) == []


def test_an_exception_is_passed_on_and_the_processes_end():
    results = map_in_order(int, ["1", "2", "x", "4"], 2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        list(results)
    assert children(os.getpid()) == []


def test_a_process_that_dies_is_reported():
    with pytest.raises(ChildProcessError, match="exit code 3"):
        list(map_in_order(os._exit, [3], 1))


def test_closing_early_leaves_no_process():
    results = map_in_order(time.sleep, [0, 30, 30, 30], 2)
    next(results)
    assert len(children(os.getpid())) == 2
    results.close()
    assert children(os.getpid()) == []


def test_what_a_job_prints_does_not_mix_with_the_results():
    assert list(map_in_order(print, ["said by a job", "and another"], 1)) == [None, None]


@pytest.mark.fault
def test_processes_end_when_their_parent_is_killed(fault_row):
    """Nothing is lost: the processes that decode end with their parent."""
    code = "from data.cache.workers import map_in_order as map\n"
    code += "i = map(abs, [1, 2], 2); print(next(i), flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    parent.stdout.readline()
    orphans = children(parent.pid)
    assert len(orphans) == 2
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    fault_row("kill -9 of a process whose workers decode shards", lost_epochs=0, recovery_seconds=None)

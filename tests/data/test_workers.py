"""Worker processes: results in order, errors passed on, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from data.cache.workers import map_in_order
from tests.support.jobs import numbers_of, printed, slept, squares

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


def flat(function, jobs, num_workers, **options):
    """The items of all jobs."""
    with closing(map_in_order(function, jobs, num_workers, **options)) as jobs:
        for items in jobs:
            yield from items


def test_items_come_in_the_order_of_the_jobs():
    assert [list(items) for items in map_in_order(range, range(20), 3)] == [list(range(n)) for n in range(20)]
    assert list(map_in_order(range, [], 2)) == []


def test_items_that_are_not_taken_make_their_process_wait(tmp_path):
    """The rows of a shard of many gigabytes must not all wait in memory for those of the shard before."""
    files = [tmp_path / "first", tmp_path / "second"]
    with closing(map_in_order(squares, map(str, files), 2, ahead=3)) as jobs:
        first = next(jobs)
        assert next(first) == 0
        time.sleep(1)
        assert 3 <= files[1].stat().st_size < 4000  # the pipe between the processes holds some, too
        assert list(first) == [n * n for n in range(1, 20_000)]
        assert list(next(jobs)) == [n * n for n in range(20_000)]


def test_an_exception_is_passed_on_after_the_items_before_it_and_the_processes_end(tmp_path):
    items = flat(numbers_of, ["1", "2", "x", "4"], 2)
    assert next(items) == 1
    assert next(items) == 2
    with pytest.raises(ValueError, match="invalid literal"):
        next(items)
    assert children(os.getpid()) == []


def test_a_process_that_dies_is_reported():
    with pytest.raises(ChildProcessError, match="exit code 3"):
        list(flat(os._exit, [3], 1))


def test_closing_early_leaves_no_process():
    results = map_in_order(slept, [0, 30, 30, 30], 2)
    assert list(next(results)) == [0]
    assert len(children(os.getpid())) == 2
    results.close()
    assert children(os.getpid()) == []


def test_what_a_job_prints_does_not_mix_with_the_results():
    assert list(flat(printed, ["said by a job", "and another"], 1)) == ["said by a job", "and another"]


@pytest.mark.fault
def test_processes_end_when_their_parent_is_killed(fault_row):
    """Nothing is lost: the processes that decode end with their parent."""
    code = "from data.cache.workers import map_in_order as map\n"
    code += "i = map(range, [1, 2], 2); print(list(next(i)), flush=True); input()"
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

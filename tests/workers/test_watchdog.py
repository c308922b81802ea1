"""An epoch that takes too long is ended, whatever hangs in it."""

import subprocess
import sys
import textwrap
import time

from tests.support.workplace import PROJECT
from tuner.workers.watchdog import epoch_limit


def run(hang: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A process whose epochs may take 0.3 s, and which hangs for a minute in its third epoch."""
    program = f"""\
        import ctypes, time
        from tuner.workers import watchdog
        watchdog.GRACE_SECONDS = 0.5
        with watchdog.epoch_limit(0.3, lambda: print("hangs", flush=True)) as epoch_ended:
            for _ in range(2):
                time.sleep(0.2)
                epoch_ended()
            print("two epochs", flush=True)
            {hang}
        """
    began = time.monotonic()
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=50, check=False)
    return done, time.monotonic() - began


def test_a_hanging_epoch_is_reported_and_its_process_ended() -> None:
    done, seconds = run("time.sleep(60)")
    assert done.stdout == "two epochs\nhangs\n" and done.returncode == 1 and seconds < 40
    assert 'File "<string>", line 9' in done.stderr  # where it hung


def test_a_native_call_that_holds_the_interpreter_is_ended_too() -> None:
    done, seconds = run("ctypes.PyDLL(None).sleep(60)")
    assert done.stdout == "two epochs\n" and done.returncode == 1 and seconds < 40
    assert 'File "<string>", line 9' in done.stderr


def test_epochs_in_time_and_no_limit_are_left_alone() -> None:
    told: list[str] = []
    with epoch_limit(0.5, lambda: told.append("hangs")) as epoch_ended:
        for _ in range(8):
            time.sleep(0.1)
            epoch_ended()
    with epoch_limit(None, lambda: told.append("hangs")) as epoch_ended:
        epoch_ended()
    time.sleep(0.7)
    assert told == []

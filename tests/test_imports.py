"""Large imports are not searched for garbage, and everything else still is."""

import gc
import subprocess
import sys

import pytest

from tests.support.workplace import PROJECT
from tuner.imports import without_garbage_collection


def test_garbage_is_collected_again_after_the_imports_even_where_one_fails() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled()  # as it was before
    finally:
        gc.enable()


def test_nothing_is_searched_when_the_process_ends_and_what_was_registered_before_still_runs() -> None:
    program = (
        "import atexit, gc, sys\n"
        "from tuner.imports import without_garbage_collection\n"
        "atexit.register(lambda: print('frozen:', gc.get_freeze_count() > 1000))\n"
        "with without_garbage_collection():\n"
        "    import argparse\n"
        "print('frozen:', gc.get_freeze_count() > 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["frozen: False", "frozen: True"]

"""Faults in the middle of a trial: code of a test that the workers of a search call before each epoch."""

import textwrap

from tests.support.workplace import PROJECT, Workplace

# Every Python process of a search imports it: it calls `fault(number of the trial, epoch)` before each epoch, and
# `take(number of the trial)` when a slot takes a trial that is not its first.
HOOK = """\
import importlib.abc, importlib.util, os, signal, sys, time

FOLDER = os.path.dirname(__file__)

def once():
    try:
        os.close(os.open(os.path.join(FOLDER, "happened"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True

def fault(trial, epoch):
    pass

def take(trial):
    pass

{fault}

def patch(worker):
    from tuner.training import supervised
    run, run_epoch = worker.run, supervised.TrainingStep.run_epoch

    def faulty(job, **rest):
        def epoch_of(step, batches, epoch):
            fault(int(job.trial_id[-4:]), epoch + 1)
            return run_epoch(step, batches, epoch)

        supervised.TrainingStep.run_epoch = epoch_of
        run(job, **rest)

    worker.run = faulty

def patch_slot(slot):
    reset = slot.Slot.reset_config

    def taking(actor, config):
        take(config["number"])
        return reset(actor, config)

    slot.Slot.reset_config = taking

PATCHES = {"tuner.workers.worker": patch, "tuner.workers.slot": patch_slot}

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in PATCHES:
            change = PATCHES.pop(name)
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), change(module))
            return spec

sys.meta_path.insert(0, Finder())
"""


def inject(place: Workplace, fault: str) -> None:
    """Make the search call what `fault` defines: `fault(trial, epoch)` before every epoch, or `take(trial)`."""
    folder = place.folder / "hook"
    folder.mkdir(exist_ok=True)  # the last one counts
    (folder / "sitecustomize.py").write_text(HOOK.replace("{fault}", textwrap.dedent(fault)))
    place.variables["PYTHONPATH"] = f"{folder}:{PROJECT}"


def happened(place: Workplace) -> float:
    """Return the time at which `once()` was true."""
    return (place.folder / "hook" / "happened").stat().st_mtime


def pace(place: Workplace) -> None:
    """Let every epoch take a tenth of a second at least: a test has time for a fault in the middle of a trial."""
    inject(place, "def fault(trial, epoch): time.sleep(0.1)")

"""A worker's reports, and the trial's folder in the storage: trials/<trial_id>/epoch-0004, a checkpoint each.

The driver receives the report of an epoch when its checkpoint is in the folder, while the next epoch trains. The
checkpoints of the best epoch and of the last two are kept: the last but one is used where the last one is damaged.
Train's own bookkeeping of checkpoints is not used, because a file of it that a full disk cuts short fails the trial for
good.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train

from tuner.errors import disk_full_message
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training import checkpoint
from tuner.training.ranks import Ranks

Save = Callable[[Path], None]  # writes the trial's state into the directory
# Checkpoints that are kept beside that of the best epoch.
LAST = 2


class Reporter:
    """Passes a trial's reports to Train in their order, each after its checkpoint is stored; from its own thread."""

    def __init__(self, folder: Place, *, stores: bool) -> None:
        """Report from this worker process.

        Args:
            folder: the trial's; it exists.
            stores: whether this worker saves the trial's state; one of a trial's workers does.
        """
        self._folder, self._stores = folder, stores
        self._thread = ThreadPoolExecutor(1, "reporter")
        self._last: Future[None] | None = None

    def __call__(self, metrics: dict[str, Any], save: Save | None, kept: Sequence[str] = ()) -> None:
        """Save the state now, and report when it is in the trial's folder.

        Args:
            metrics: the report.
            save: writes the state; None: this report has no checkpoint.
            kept: names of the checkpoints to keep; older ones are removed.

        Raises:
            OSError: this checkpoint, or the one before it, cannot be written.
        """
        directory = None
        if save is not None and self._stores:
            directory = Path(tempfile.mkdtemp(prefix="checkpoint-")) / checkpoint.folder_name(metrics["epoch"])
            save(directory)
        self.wait()  # one at a time: where the storage is slower than the training, the training waits
        self._last = self._thread.submit(self._deliver, metrics, directory, kept)

    def wait(self) -> None:
        """Return when Train has the last report; raise the error that prevented it."""
        if self._last is not None:
            self._last.result()

    def checkpoints(self, ranks: Ranks) -> Iterator[Path]:
        """The trial's checkpoints as rank 0 finds them, newest first; each exists until the next one is requested."""
        for name in ranks.gather(sorted(self._names(), reverse=True))[0]:
            with _on_this_machine(self._folder / name) as directory:
                yield directory

    def _deliver(self, metrics: dict[str, Any], directory: Path | None, kept: Sequence[str]) -> None:
        if directory is not None:
            target = self._folder / directory.name
            try:
                _store(directory, target)
            except OSError as error:
                error.filename = str(target)  # that of a copy names the file on this machine
                if (message := disk_full_message(error)) is None:
                    raise
                ray.train.report({"fatal": message})
                return
            finally:
                shutil.rmtree(directory.parent, ignore_errors=True)
            for name in self._names():
                if name not in kept and name < directory.name:
                    at(self._folder / name).remove()
        ray.train.report(metrics)

    def _names(self) -> list[str]:
        return [found.name for found in self._folder.glob("epoch-*")]


def kept(history: Sequence[dict[str, float]]) -> list[str]:
    """The checkpoints to keep when the last epoch of `history` is stored: the best epoch's, and the last two."""
    best = max(history, key=lambda metrics: metrics["gap"])  # of equal ones the first
    return [checkpoint.folder_name(int(metrics["epoch"])) for metrics in (best, *history[-LAST:])]


# A store's own errors, and not ConfigErrors as tuner/storage/objects.py raises them: Ray repeats the attempt after an
# exception, and the store may answer then.


def _store(directory: Path, target: Place) -> None:
    """Copy the files of a checkpoint to `target`, its manifest last.

    Files of the same names are replaced. The folder around `target` must exist: where it does not, this machine does
    not share the storage of the search.
    """
    files = sorted(directory.iterdir(), key=lambda file: file.name == checkpoint.MANIFEST)
    if isinstance(target, Path):
        target.mkdir(exist_ok=True)
        for file in files:
            shutil.copyfile(file, target / file.name)
    else:
        for file in files:
            target.fs.put_file(str(file), (target / file.name).path)


@contextmanager
def _on_this_machine(folder: Place) -> Iterator[Path]:
    """The folder, or a copy of it where it is in an object store; the copy exists until the block ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as copy:
        for file in folder.iterdir():
            folder.fs.get_file(file.path, f"{copy}/{file.name}")
        yield Path(copy)

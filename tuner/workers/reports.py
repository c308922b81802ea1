"""A worker's reports, and the trial's folder in the storage: trials/<trial_id>/epoch-0004, a checkpoint each.

Tune receives the report of an epoch when its checkpoint is in the folder, while the next epoch trains. The checkpoints
of the best epoch and of the last two are kept: the last but one is used where the last one is damaged. Older ones are
removed when Tune has the report, and a checkpoint whose report Tune does not want is removed itself: so the folder of a
trial that is stopped has the checkpoints of the epochs in the journal.
"""

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import UnreachableError
from data.retry import retried
from tuner.errors import disk_full_message
from tuner.storage.place import Place
from tuner.storage.stores import at
from tuner.training import checkpoint
from tuner.training.ranks import Ranks

Save = Callable[[Path], None]  # writes the trial's state into the directory
# Checkpoints that are kept beside that of the best epoch.
LAST = 2


class Reporter:
    """Passes a trial's reports on in their order, each after its checkpoint is stored; from a thread of its own."""

    def __init__(self, folder: Place, scratch: Path, send: Callable[[dict[str, Any]], bool]) -> None:
        """Report from this worker process, that of rank 0.

        Args:
            folder: the trial's; it is made with the first checkpoint, in a folder that exists.
            scratch: a folder of this process, for checkpoints on their way.
            send: gives Tune a report, and returns when Tune has it; False: Tune has stopped the trial instead.
        """
        self._folder, self._scratch, self._send = folder, scratch, send
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
        if save is not None:
            directory = Path(tempfile.mkdtemp(dir=self._scratch)) / checkpoint.folder_name(metrics["epoch"])
            save(directory)
        self.wait()  # one at a time: where the storage is slower than the training, the training waits
        self._last = self._thread.submit(self._deliver, metrics, directory, kept)

    def wait(self) -> None:
        """Return when Tune has the last report; raise the error that prevented it."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """End the thread; a report that it is about to give is given first."""
        self._thread.shutdown()

    def _deliver(self, metrics: dict[str, Any], directory: Path | None, kept: Sequence[str]) -> None:
        if directory is None:
            self._send(metrics)
            return
        target = self._folder / directory.name
        try:
            _store(directory, target)
        except UnreachableError as error:
            self._send({"fatal": f"{socket.gethostname()}: {error}"})
            return
        except OSError as error:
            error.filename = str(target)  # that of a copy names the file on this machine
            if (message := disk_full_message(error)) is None:
                raise
            self._send({"fatal": message})
            return
        finally:
            shutil.rmtree(directory.parent, ignore_errors=True)
        if not self._send(metrics):
            at(target).remove()
            return
        for name in names_in(self._folder):
            if name not in kept and name < directory.name:
                at(self._folder / name).remove()


def checkpoints(folder: Place, scratch: Path, ranks: Ranks) -> Iterator[Path]:
    """The checkpoints in a trial's folder as rank 0 finds them, newest first; each exists until the next is requested.

    Args:
        folder: the trial's.
        scratch: a folder of this process, for copies of those in an object store.
        ranks: the workers of the trial (collective).
    """
    for name in ranks.gather(sorted(names_in(folder), reverse=True))[0]:
        with _on_this_machine(folder / name, scratch) as directory:
            yield directory


def names_in(folder: Place) -> list[str]:
    """The names of the checkpoints in a trial's folder."""
    return [found.name for found in folder.glob("epoch-*")]


def kept(history: Sequence[dict[str, float]]) -> list[str]:
    """The checkpoints to keep when the last epoch of `history` is stored: the best epoch's, and the last two."""
    best = max(history, key=lambda metrics: metrics["gap"])  # of equal ones the first
    return [checkpoint.folder_name(int(metrics["epoch"])) for metrics in (best, *history[-LAST:])]


def _store(directory: Path, target: Place) -> None:
    """Copy the files of a checkpoint to `target`, its manifest last.

    Files of the same names are replaced. The folder of the trials must exist: where it does not, this machine does not
    share the storage of the search.
    """
    files = sorted(directory.iterdir(), key=lambda file: file.name == checkpoint.MANIFEST)
    if isinstance(target, Path):
        target.parent.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        for file in files:
            retried(partial(shutil.copyfile, file, target / file.name), target / file.name)
    else:
        for file in files:
            target.fs.put_file(str(file), (target / file.name).path)


@contextmanager
def _on_this_machine(folder: Place, scratch: Path) -> Iterator[Path]:
    """The folder, or a copy of it where it is in an object store; the copy exists until the block ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=scratch) as copy:
        for file in folder.iterdir():
            folder.fs.get_file(file.path, f"{copy}/{file.name}")
        yield Path(copy)

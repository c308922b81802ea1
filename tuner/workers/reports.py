"""A worker's reports, and the trial's folder in the storage: trials/<trial_id>/epoch-0004, a checkpoint each.

The driver hears of an epoch when its checkpoint is in the folder, while the next epoch trains. Of the checkpoints, the
best epoch's and the last two are kept: the one before the last is for a last one that is damaged. Ray's own
bookkeeping of checkpoints is left out: a file of it that is cut short by a full disk fails the trial for good.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
from pyarrow.fs import FileSelector
from ray.train import Checkpoint

from tuner.errors import disk_full_message
from tuner.training.ranks import Ranks

Save = Callable[[Path], None]  # writes the trial's state into the directory
# Checkpoints that are kept beside the best epoch's.
LAST = 2


def checkpoint_name(epoch: int) -> str:
    """The directory of an epoch's checkpoint, in the trial's folder."""
    return f"epoch-{epoch:04d}"


class Reporter:
    """Hands a trial's reports to Train in their order, each with its checkpoint stored before; on a thread."""

    def __init__(self, *, stores: bool) -> None:
        """Report from the worker that this process is; `stores`: it is the one whose state is saved."""
        self._stores = stores
        self._storage = ray.train.get_context().get_storage()
        self._thread = ThreadPoolExecutor(1, "reporter")
        self._last: Future[None] | None = None

    def __call__(self, metrics: dict[str, Any], save: Save | None, kept: Sequence[str] = ()) -> None:
        """Save the state now, and report when it is in the trial's folder; `kept` names the checkpoints to keep.

        Raises:
            OSError: this checkpoint, or the one before, cannot be written.
        """
        directory = None
        if save is not None and self._stores:
            directory = Path(tempfile.mkdtemp(prefix="checkpoint-")) / checkpoint_name(metrics["epoch"])
            save(directory)
        self.wait()  # one at a time: where the storage is slower than the training, the training waits
        self._last = self._thread.submit(self._deliver, metrics, directory, kept)

    def wait(self) -> None:
        """Return when the last report is with Train; raise what kept it from there."""
        if self._last is not None:
            self._last.result()

    def checkpoints(self, ranks: Ranks) -> Iterator[Path]:
        """The trial's checkpoints as rank 0 finds them, newest first; each is there until the next one is asked for."""
        for name in ranks.gather(sorted(self._names(), reverse=True))[0]:
            with self._at(name).as_directory() as directory:
                yield Path(directory)

    def _deliver(self, metrics: dict[str, Any], directory: Path | None, kept: Sequence[str]) -> None:
        if directory is not None:
            try:
                self._storage.persist_current_checkpoint(Checkpoint.from_directory(str(directory)), directory.name)
            except OSError as error:
                if (told := disk_full_message(error)) is None:
                    raise
                ray.train.report({"obstacle": f"{self._at(directory.name).path}: {told}"})
                return
            finally:
                shutil.rmtree(directory.parent, ignore_errors=True)
            for name in self._names():
                if name not in kept and name < directory.name:
                    with suppress(FileNotFoundError):
                        self._storage.storage_filesystem.delete_dir(self._at(name).path)
        ray.train.report(metrics)

    def _names(self) -> list[str]:
        folder = FileSelector(self._storage.experiment_fs_path, allow_not_found=True)
        found = self._storage.storage_filesystem.get_file_info(folder)
        return [entry.base_name for entry in found if entry.base_name.startswith("epoch-")]

    def _at(self, name: str) -> Checkpoint:
        path = self._storage.build_checkpoint_path_from_name(name)
        return Checkpoint(path=path, filesystem=self._storage.storage_filesystem)


def kept(history: Sequence[dict[str, float]]) -> list[str]:
    """Which checkpoints stay when the last epoch of `history` is stored: the best epoch's, and the last two."""
    best = max(history, key=lambda metrics: metrics["gap"])  # of equal ones the first
    return [checkpoint_name(int(metrics["epoch"])) for metrics in (best, *history[-LAST:])]

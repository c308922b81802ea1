"""Moving whole folders between this machine and a place that may be a URL.

An object store has no folders and renames nothing: what a folder is, its readers are told by one file that is written
after all others, and what they read is copied here first.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from tuner.errors import TunerError
from tuner.storage.place import Place, translated


@contextmanager
def fetched(folder: Place, names: Sequence[str]) -> Iterator[Path]:
    """A folder of this machine with those of the files that there are: of a URL, copies that go with the block.

    Errors that are raised in the block tell of `folder`, not of the copy.

    Raises:
        TunerError: the store cannot be read.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="fetched-") as temporary:
        copy = Path(temporary)
        for name in names:
            with translated(str(folder)):
                _fetch(folder / name, copy / name)
        try:
            yield copy
        except TunerError as error:
            raise type(error)(str(error).replace(str(copy), str(folder))) from error


@contextmanager
def published(folder: Place, *, last: str, first: str = "") -> Iterator[Path]:
    """A new folder of this machine that becomes `folder`, whole or not at all, unless the block fails.

    Args:
        folder: what is there already is replaced.
        last: the file without which readers take the folder for nothing.
        first: the file that says what is being written.

    Raises:
        TunerError: the store cannot be written.
    """
    if isinstance(folder, Path):
        with _renamed(folder.absolute()) as staging:
            yield staging
        return
    with tempfile.TemporaryDirectory(prefix="published-") as temporary:
        yield Path(temporary)
        files = sorted(Path(temporary).iterdir(), key=lambda path: (path.name == last, path.name != first))
        with translated(str(folder)):
            (folder / last).unlink(missing_ok=True)
            for path in files:
                folder.fs.put_file(str(path), (folder / path.name).path)


@contextmanager
def kept(file: Place) -> Iterator[Path]:
    """A file of this machine whose content is added to `file` after the block, whatever happened in it."""
    if isinstance(file, Path):
        yield file
        return
    handle, name = tempfile.mkstemp(prefix=f"{file.stem}-", suffix=file.suffix)
    os.close(handle)
    local = Path(name)
    try:
        yield local
    finally:
        with translated(str(file)):
            before = file.read_bytes() if file.exists() else b""
            file.write_bytes(before + local.read_bytes())
        local.unlink()


def remove(folder: Place) -> None:
    """Remove it with all that is in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmdir(recursive=True)


def _fetch(source: UPath, target: Path) -> None:
    try:
        source.fs.get_file(source.path, str(target))
    except FileNotFoundError:
        target.unlink(missing_ok=True)  # who needs it will miss it


@contextmanager
def _renamed(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place in one rename."""
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists() and any(folder.iterdir()):  # an empty folder is renamed over
            old = staging.with_name(staging.name + ".old")
            folder.rename(old)
            staging.rename(folder)
            shutil.rmtree(old)
        else:
            staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise

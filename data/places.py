"""The places that a command reads or writes: checked before the work, and what is wrong with one in a sentence."""

import errno
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from data.errors import DataError


def disk_full_message(error: OSError) -> str | None:
    """The sentence about a write that failed because the disk is full; None where `error` has another cause."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return f"{error.filename or 'a file'}: cannot be written, the disk is full ({error.strerror}); free some space"


# What the file system answers about a place that the user or the machine can correct; any other answer is a bug.
_OF_PLACES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
}  # fmt: skip


def place_message(error: OSError) -> str | None:
    """The sentence about a file or folder that cannot be read or written; None where `error` is about something else.

    A failed connection, for example, has no file name.
    """
    if (message := disk_full_message(error)) is not None:
        return message
    if error.filename is None or error.errno not in _OF_PLACES:
        return None
    return f"{error.filename}: cannot be read or written ({error.strerror}); correct the path or its permissions"


def check_output(output: Path) -> None:
    """Check that a file can be written: a first byte is written beside it.

    Raises:
        DataError: it is a folder, its folder is missing, read-only or full, or the user may not write there.
    """
    if output.is_dir() or not output.parent.is_dir():
        reason = "it is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise DataError(f"{output}: cannot be written: {reason}")
    _probe(output, output.parent)


def check_folder(folder: Path) -> None:
    """Check that files can be written in a folder, which may be made then, with its parents.

    Raises:
        DataError: something else has its name, or that of a parent; or it is read-only or full, or the user may not
            write there.
    """
    existing = folder.absolute()
    while not (existing.exists() or existing.is_symlink()):
        existing = existing.parent
    if not existing.is_dir():
        reason = "is a link to nothing" if existing.is_symlink() and not existing.exists() else "is no folder"
        raise DataError(f"{folder}: cannot be written: {existing} {reason}")
    _probe(folder, existing)


def _probe(place: Path, folder: Path) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", buffering=0) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error


def run_command(
    command: Callable[[], int | None],
    errors: tuple[type[Exception], ...] = (DataError, ValueError),
    shown: Callable[[str], str] = str,
) -> int:
    """Run a command and return the exit code of its process: `sys.exit(run_command(main))`.

    Args:
        command: does the work; returns an exit code, or None for 0.
        errors: those that the user can correct.
        shown: makes of their messages what is printed.

    Returns:
        The code of the command; 2 after an error that the user can correct, or about a place that cannot be read or
        written, with its message on stderr; 130 after Ctrl-C. Any other exception is a bug of this program and keeps
        its traceback.
    """
    _with_any_letter()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a screen that cannot show a letter shows another
    try:
        return command() or 0
    except errors as error:
        print(shown(str(error)), file=sys.stderr)
        return 2
    except OSError as error:
        if (message := place_message(error)) is None:
            raise
        print(shown(message), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _with_any_letter() -> None:
    """Start this program again in Python's UTF-8 mode where the locale knows ASCII alone.

    Python could open no file there whose name has other letters. What is printed keeps the encoding of the screen.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    screen = {"PYTHONIOENCODING": f"{sys.stdout.encoding}:replace"}
    os.execve(sys.executable, sys.orig_argv, {**screen, **os.environ, "PYTHONUTF8": "1"})

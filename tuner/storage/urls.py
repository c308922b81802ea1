"""URLs of object stores as paths whose requests are tried again while the store is away (data/retry.py).

Importing this module makes these the classes of all `UPath`s of their protocols, in workers too: a path that is pickled
imports it.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from glob import escape
from typing import Any, Self

import fsspec
from upath import UPath
from upath.implementations.cloud import GCSPath, S3Path
from upath.implementations.memory import MemoryPath
from upath.registry import register_implementation

from data.retry import retried


class Patient:
    """A file system of fsspec; every request of its is tried again. A file that is open is not."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem) -> None:
        """Stand before `filesystem`."""
        self._filesystem = filesystem

    def __reduce__(self) -> tuple[type["Patient"], tuple[Any]]:
        """Pickle the file system; `__getattr__` would be asked for its methods."""
        return Patient, (self._filesystem,)

    def __getattr__(self, name: str) -> Any:
        """An attribute of the file system."""
        attribute = getattr(self._filesystem, name)
        return self._patient(attribute, name) if callable(attribute) and not name.startswith("_") else attribute

    def _patient(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            path = next(iter(arguments[name.startswith("put") :]), "")  # put_file(local, remote)
            what = self._filesystem.unstrip_protocol(path) if isinstance(path, str) else path
            return retried(lambda: method(*arguments, **options), what)

        return call


class _PatientPath(UPath):
    """A path of an object store. What it reads or writes, it reads or writes by one request."""

    __slots__ = ()

    @property
    def fs(self) -> Any:
        return Patient(super().fs)

    def glob(self, pattern: str, **_: Any) -> Iterator[Self]:
        """The entries below that match. As in pathlib, the path itself is no pattern, whatever letters it has."""
        base = self.path.rstrip("/")
        for name in self.fs.glob(f"{escape(base)}/{pattern}"):
            yield self / name.removeprefix(base).lstrip("/")

    def read_bytes(self) -> bytes:
        return bytes(self.fs.cat_file(self.path))

    def write_bytes(self, data: Any) -> int:
        self.fs.pipe_file(self.path, bytes(data))
        return len(data)

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


class PatientS3Path(_PatientPath, S3Path):
    """s3://bucket/..."""

    __slots__ = ()


class PatientGCSPath(_PatientPath, GCSPath):
    """gs://bucket/..."""

    __slots__ = ()


class PatientMemoryPath(_PatientPath, MemoryPath):
    """memory://..., of one process."""

    __slots__ = ()


PATHS: dict[str, type[UPath]] = {
    "s3": PatientS3Path,
    "s3a": PatientS3Path,
    "gs": PatientGCSPath,
    "gcs": PatientGCSPath,
    "memory": PatientMemoryPath,  # for tests
}
for _protocol, _class in PATHS.items():
    register_implementation(_protocol, _class, clobber=True)

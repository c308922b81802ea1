"""The journal of a build: a line for each shard that is written as a whole, which waiting processes follow."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from data.errors import ShardError

JOURNAL = "journal.jsonl"

_Error = tuple[str, int | None, str | None]  # reason, offset and key of a ShardError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """What the cache holds of a shard: a line of the journal, an entry of the manifest."""

    path: str
    num_videos: int = 0
    num_labels: int = 0
    num_frames: int = 0
    num_rated: int = 0
    id_width: int = 1  # bytes of the longest id
    content_hash: str = ""
    checksum: int = 0  # CRC32C of the shard's bytes in the columns
    bad_records: tuple[_Error, ...] = ()  # those that were left out
    error: _Error | None = None  # the shard was skipped

    @property
    def num_moments(self) -> int:
        """How many rows of moments the shard has: one, unless it was skipped."""
        return int(self.error is None)

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        """Reads a line of the journal or an entry of the manifest."""
        error = line["error"]
        bad_records = tuple(map(tuple, line.get("bad_records", ())))
        return cls(**line | {"error": None if error is None else tuple(error), "bad_records": bad_records})

    def shard_error(self) -> ShardError | None:
        """Returns the error for which the shard was skipped; None: it was not."""
        return None if self.error is None else ShardError(self.path, *self.error)


def read_journal(working: Path) -> list[ShardSummary]:
    """Returns the shards that a build, running or killed, has written so far, without an unfinished last line."""
    return JournalReader(working).read()


class JournalReader:
    """Follows the journal of a build that may be running: each call reads on where the last one stopped.

    Attributes:
        restarted: whether the last call began with the first line, as it does when another build has begun.
    """

    def __init__(self, working: Path) -> None:
        self._path = working / JOURNAL
        self._read, self._number = 0, -1  # bytes of whole lines that were read, and the number of the file
        self.restarted = True

    def read(self) -> list[ShardSummary]:
        """Returns the shards that were written since the last call."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                self.restarted = status.st_ino != self._number or status.st_size < self._read
                if self.restarted:
                    self._read, self._number = 0, status.st_ino
                file.seek(self._read)
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        summaries = []
        for line in lines:
            try:
                if not line.endswith(b"\n"):
                    break
                summaries.append(ShardSummary.from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError):
                break
            self._read += len(line)
        return summaries


def line_of(summary: ShardSummary) -> bytes:
    """Returns the journal's line of a shard."""
    return json.dumps(asdict(summary)).encode() + b"\n"

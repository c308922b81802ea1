"""What can go wrong, as one tree; and how a command tells it: one sentence on stderr, exit code 2, no traceback.

    TunerError              root; str(e) is what the user reads
      ConfigError           experiments.yaml or a --set is wrong; a line per mistake, `file:line: path: message`.
      SearchError           a search cannot start, resume or be extended; says why and what to do.
      TrialDiverged         the loss of this trial is not finite: it failed, it is not bad; the search goes on.
      TrialCollapsed        pretraining made one embedding of all videos: this trial failed; the search goes on.
      TrialOutOfMemory      this trial needs more memory than there is: it failed; the search goes on.
      EpochTimeout          an epoch took longer than search.epoch_timeout; the trial goes on from its last checkpoint.
      CheckpointError       a checkpoint belongs to other settings, or:
        CheckpointDamaged   it is not what was written; the one before it may be.
      NothingToExport       no finished trial; says how many failed and why.
      ModelFolderError      an exported model's folder is incomplete, damaged or too new.
    data.errors.DataError   its sibling: shards and caches.

All of them pickle (they cross processes): one string is their only argument.
"""

import errno
import sys
from collections.abc import Callable

from data.errors import DataError


class TunerError(Exception):
    """Root of what a user of the tuner can put right."""


class ConfigError(TunerError):
    """The experiment is wrong; the message holds every mistake found, one to a line."""


class SearchError(TunerError):
    """A search cannot start, resume or be extended."""


class TrialDiverged(TunerError):
    """A trial's loss is not finite; its weights were left as they were."""


class TrialCollapsed(TunerError):
    """A pretrained encoder gives all videos the same embedding."""


class TrialOutOfMemory(TunerError):
    """A trial's settings ask for more memory than its machine or its GPU has."""


class EpochTimeout(TunerError):
    """An epoch took longer than it may: the training is taken for hung."""


class CheckpointError(TunerError):
    """A checkpoint is damaged, or was made by other settings."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint's files are missing, cut short or changed."""


class NothingToExport(TunerError):
    """No trial has finished."""


class ModelFolderError(TunerError):
    """An exported model's folder cannot be used."""


def no_room(error: OSError) -> str | None:
    """What to say of a write for which there was no room; None: it failed for another reason."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    where = error.filename or "a file"
    return f"{where}: cannot be written, there is no room left on its disk ({error.strerror}); free some"


def main(command: Callable[[], int | None]) -> int:
    """Run what a command line does and return its exit code: `sys.exit(main(command))`.

    Returns:
        The command's own (None: 0); 2 after what the user can put right, told on stderr: a mistake, a full disk; 130
        after Ctrl-C. Whatever else is raised is a mistake of ours and keeps its traceback.
    """
    try:
        return command() or 0
    except (TunerError, DataError) as error:
        from tuner.redact import redacted  # which knows these errors

        print(redacted(str(error)), file=sys.stderr)
        return 2
    except OSError as error:
        if (told := no_room(error)) is None:
            raise
        print(told, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

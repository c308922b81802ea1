"""What can go wrong, as one tree; and how a command tells it: one sentence on stderr, exit code 2, no traceback.

    TunerError              root; str(e) is what the user reads
      ConfigError           experiments.yaml or a --set is wrong; a line per mistake, `file:line: path: message`.
      SearchError           a search cannot start, resume or be extended; says why and what to do.
      TrialDiverged         the loss of this trial is not finite: it failed, it is not bad; the search goes on.
      TrialCollapsed        pretraining made one embedding of all videos: this trial failed; the search goes on.
      CheckpointError       a checkpoint is damaged, or belongs to other settings.
      NothingToExport       no finished trial; says how many failed and why.
      ModelFolderError      an exported model's folder is incomplete, damaged or too new.
    data.errors.DataError   its sibling: shards and caches.

All of them pickle (they cross processes): one string is their only argument.
"""

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


class CheckpointError(TunerError):
    """A checkpoint is damaged, or was made by other settings."""


class NothingToExport(TunerError):
    """No trial has finished."""


class ModelFolderError(TunerError):
    """An exported model's folder cannot be used."""


def main(command: Callable[[], int | None]) -> int:
    """Run what a command line does and return its exit code: `sys.exit(main(command))`.

    Returns:
        The command's own (None: 0); 2 after a mistake of the user's, told on stderr; 130 after Ctrl-C. Whatever else
        is raised is a mistake of ours and keeps its traceback.
    """
    try:
        return command() or 0
    except (TunerError, DataError) as error:
        from tuner.redact import redacted  # which knows these errors

        print(redacted(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130

"""The errors that a user can correct, as one tree, and sentences that several of them share.

    TunerError              root; str(e) is the text that the user reads
      ConfigError           experiments.yaml or a --set is wrong; one line per mistake, `file:line: path: message`
      SearchError           a search cannot start, resume or be extended; the message says why and what to do
      TrialFailed           the settings of a trial make it fail; the search continues, and its sampler avoids them
        TrialDiverged       the loss of a trial is not finite
        TrialCollapsed      pretraining gave every video the same embedding
        TrialOutOfMemory    a trial needs more memory than the machine has
      EpochTimeout          an epoch took longer than search.epoch_timeout; the trial resumes from its last checkpoint
      CheckpointError       a checkpoint belongs to other settings
        CheckpointDamaged   the files of a checkpoint are not those that were written; an older one may be intact
      WrittenTwice          another process has written the same folder of an object store at the same time
      NothingToExport       no trial has finished; the message says how many failed and why
      ModelFolderError      the folder of an exported model is incomplete, damaged or too new
    data.errors.DataError   root of the errors about shards and caches; data/ does not know TunerError

`tuner.cli.main` prints these as one sentence, without a traceback. All of them can be pickled, because they cross
processes: a string is their only argument.
"""

import difflib
import re
from collections.abc import Iterable

from data.errors import first_line as first_line
from data.places import disk_full_message as disk_full_message
from data.places import place_message as place_message


class TunerError(Exception):
    """Root of the errors of the tuner that a user can correct."""


class ConfigError(TunerError):
    """The experiment is wrong; the message holds every mistake that was found, one per line."""


class SearchError(TunerError):
    """A search cannot start, resume or be extended."""


class TrialFailed(TunerError):
    """The settings of a trial make it fail: it would fail again."""


class TrialDiverged(TrialFailed):
    """The loss of a trial is not finite, and its weights were not updated with it; or its model scores a video NaN."""


class TrialCollapsed(TrialFailed):
    """A pretrained encoder gives every video the same embedding."""


class TrialOutOfMemory(TrialFailed):
    """The settings of a trial need more memory than its machine or its GPU has."""


class EpochTimeout(TunerError):
    """An epoch took longer than search.epoch_timeout, so the training is assumed to hang."""


class CheckpointError(TunerError):
    """A checkpoint cannot be used: it is damaged, or other settings made it."""


class CheckpointDamaged(CheckpointError):
    """Files of a checkpoint are missing, truncated or changed."""


class WrittenTwice(TunerError):
    """Another process has written the same folder of an object store at the same time."""


class NothingToExport(TunerError):
    """No trial has finished, so there is no model to export."""


class ModelFolderError(TunerError):
    """The folder of an exported model cannot be used."""


def in_one_line(error: BaseException) -> str:
    """The type and the whole message of an error that the program did not expect, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to `name`.

    Args:
        name: as a user wrote it.
        known: the names that exist.
        cutoff: how similar two names must be, from 0 to 1 (`difflib.get_close_matches`).

    Returns:
        None where no known name is similar.
    """
    plain = {_plain(one): one for one in reversed(list(known))}  # adamW is adamw, FusedMLP is fused_mlp
    found = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: `; did you mean 'momentum'?`, or "" without a similar known name."""
    meant = nearest(name, known)
    return f"; did you mean {meant!r}?" if meant else ""

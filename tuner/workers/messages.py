"""What passes between the driver, a slot and its workers: plain dictionaries, which every side can read without torch.

    driver -> slot     a suggestion   {trial_id, number, values, failures}: train a trial
                                      {trial_id, score: True}: score the best trial of the search on whole splits
    slot -> worker     an assignment  the suggestion, and its number among those of the slot
    worker -> slot     {epoch, epochs, tags, ... metrics}   an epoch has ended
      -> driver        {..., history}                       the same after a resume, with the metrics of all epochs
                       {said}                               what it waits for, such as shards that it decodes
                       {error, cause}                       the trial failed, and would fail again; the cause is that
                                                            of the journal (tuner/storage/journal.py)
                       {fatal}                              every trial would fail so, and the search ends
                       {dropped}                            the user has dropped the trial, as the driver told the slot
                       {winner, scores, classes, notes}     the best trial, and its scores by split and by class
    slot -> driver     {failure, failures}                  its workers were lost so often; the trial is trained on

Several reports may come from one trial; the last one is an error, the last epoch, or the scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Assignment:
    """A trial that a slot gives to its workers."""

    number: int  # among the assignments of the slot, from 1
    suggestion: Mapping[str, Any]


def epochs_of(report: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The epochs in a report, with their metrics: one epoch, or after a resume all epochs so far."""
    if "history" in report:
        return [(metrics["epoch"], metrics) for metrics in report["history"]]
    return [(report["epoch"], report)]


def too_often(reason: str, failures: int) -> str:
    """Why a trial has failed whose workers or slots were lost more often than its search allows."""
    return f"{reason}; {failures} attempts (search.failures.per_trial)"


def is_last(report: Mapping[str, Any]) -> bool:
    """Whether a trial has nothing more to report."""
    if any(key in report for key in ("error", "fatal", "scores", "dropped")):
        return True
    return "epoch" in report and bool(report["epoch"] == report["epochs"])

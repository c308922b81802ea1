"""What passes between the driver, a slot and its workers: plain dictionaries, which every side can read without torch.

driver -> slot     a suggestion   {trial_id, number, values, failures}
slot -> worker     an assignment  the suggestion and its number among those of the slot; None: no further trial
worker -> slot -> driver, one report after each epoch:
{epoch, epochs, metrics…, tags}        an epoch has ended
{…, history}                           after a resume: all epochs so far, as a killed driver may have missed some
{error}                                the trial failed and would fail again
{fatal}                                every trial would fail so: the search ends, and a resume continues it
slot -> driver     {failure, failures}     a worker was lost; its trial is trained on after `failures` of them
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


def is_last(report: Mapping[str, Any]) -> bool:
    """Whether a trial has nothing more to report."""
    return "error" in report or "fatal" in report or ("epoch" in report and report["epoch"] == report["epochs"])

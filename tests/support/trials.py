"""Trials and searches as the journal gives them, for tests of what is shown."""

from typing import Any

from tuner.storage.journal import SearchHistory, TrialHistory

SETTINGS = {"model.dropout": 0.45, "optimizer.learning_rate": 0.00123456, "loss.l2": "0"}


def trial(number: int, *gaps: float, status: Any = "running", **facts: Any) -> TrialHistory:
    made = TrialHistory(
        number=number, id=f"s-{number}", values=SETTINGS, settings=SETTINGS, sampler_state={}, status=status, **facts
    )
    made.reports = {epoch: metrics(gap) for epoch, gap in enumerate(gaps, start=1)}
    return made


def metrics(gap: float) -> dict[str, float]:
    return {"gap": gap, "loss_train": 4.5678, "videos_per_second": 12345.6}


def search(*trials: TrialHistory, planned: int = 6) -> SearchHistory:
    made = SearchHistory(
        id="20260102-030405-0001", experiment="tiny", fingerprint="f", planned=planned, tracking_uri="-"
    )
    made.trials = {one.id: one for one in trials}
    return made

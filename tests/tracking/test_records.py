"""What MLflow records of reports, trials and searches."""

from tuner.storage.journal import TrialHistory
from tuner.tracking.names import LONGEST_TAG, tags
from tuner.tracking.records import METRICS, outcome_tags, recorded_metrics, winner_metrics


def test_only_the_metrics_of_a_report_are_recorded() -> None:
    metrics = {key: 0.5 for key in METRICS}
    assert recorded_metrics({**metrics, "epoch": 3, "tags": {"host": "h"}, "training_iteration": 7}) == metrics


def test_the_reason_why_a_trial_ended_is_a_tag_without_credentials() -> None:
    def ended(**facts: str) -> dict[str, str]:
        return outcome_tags(TrialHistory(number=0, id="t0", values={}, sampler_state={}, **facts))

    assert ended() == {}
    assert ended(stopped_by="asha") == {"stopped_by": "asha"}
    assert ended(error="http://user:hunter2@host: away") == {"error": "http://***@host: away"}
    assert len(tags(ended(error="x" * 9999))["error"]) == LONGEST_TAG


def test_scores_of_the_winner_are_named_after_their_split() -> None:
    assert winner_metrics({"validate": {"gap": 0.5}, "test": {"gap": 0.4}}) == {
        "best/validate/gap": 0.5,
        "best/test/gap": 0.4,
    }

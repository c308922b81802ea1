"""What a driver says and records at its end."""

from pathlib import Path
from typing import Any

import pytest

from tuner.search.summary import conclude_tracking
from tuner.storage import journal
from tuner.storage.journal import Journal


class Said:
    """Stands for the console."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("refused, undelivered, tracked", [([], 0, True), (["no"], 0, False), ([], 3, False)])
def test_mlflow_has_everything_only_where_it_took_every_write(
    tmp_path: Path, refused: list[str], undelivered: int, tracked: bool
) -> None:
    open_journal = Journal(tmp_path)
    facts: dict[str, Any] = {"fingerprint": "f", "planned": 1, "tracking_uri": "http://m", "overrides": []}
    open_journal.append("search", version=journal.VERSION, id="s", experiment="tiny", baseline=0.1, **facts)
    open_journal.append("ended", reason="planned")
    said = Said()
    conclude_tracking(open_journal, refused, undelivered, tmp_path / "ray.log", said)  # type: ignore[arg-type]
    open_journal.close()
    assert journal.read(tmp_path).tracked is tracked
    assert any("--resume" in line for line in said.lines) is not tracked
    assert ("refused 1 writes, the first with: no" in "\n".join(said.lines)) is bool(refused)

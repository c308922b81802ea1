"""Which search a command continues, and with which experiment."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuner.config.experiment import load
from tuner.errors import SearchError
from tuner.search.begin import Options, folder_and_experiment, mention, recent, unfinished
from tuner.storage import journal
from tuner.storage.journal import Journal

EXPERIMENT = """\
default: tiny
experiments:
  tiny: &tiny
    data: {train: train*, validate: validate*, features: {rgb: 4}, num_classes: 3}
    model: {kind: fused_mlp, towers: {rgb: 4}, hidden: 4, dropout: {uniform: [0.1, 0.6]}}
    optimizer: {kind: adam, learning_rate: 0.01}
  other: *tiny
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "experiments.yaml").write_text(EXPERIMENT)
    return tmp_path / "experiments.yaml"


@pytest.fixture
def add(file: Path) -> Any:
    """Adds a search: open, ended, or ended and in MLflow."""

    def add(experiment: str, id: str, *entries: str) -> None:
        opened = Journal(file.parent / "storage" / experiment / id)
        (opened.directory / "experiment.yaml").write_text(load(file, experiment).to_yaml())
        facts: dict[str, Any] = {"fingerprint": "f", "planned": 3, "tracking_uri": "http://m", "overrides": []}
        opened.append("search", version=journal.VERSION, id=id, experiment=experiment, baseline=0.1, **facts)
        for entry in entries:
            opened.append(entry, **({"reason": "planned"} if entry == "ended" else {}))
        opened.close()

    return add


DAYS = [f"2026010{day}-000000-0001" for day in range(1, 6)]


def chosen(file: Path, name: str | None = None, **options: Any) -> tuple[str, str]:
    directory, experiment = folder_and_experiment(file, name, Options(storage=file.parent / "storage", **options))
    return experiment.name, directory.name


def test_resume_prefers_the_newest_search_that_has_not_ended(file: Path, add: Any) -> None:
    add("tiny", DAYS[0])
    add("tiny", DAYS[1])
    add("tiny", DAYS[2], "ended", "tracked")
    assert chosen(file, resume=True) == ("tiny", DAYS[1])


def test_resume_takes_what_mlflow_lacks_where_all_have_ended(file: Path, add: Any) -> None:
    add("tiny", DAYS[0], "ended")
    add("tiny", DAYS[1], "ended", "tracked")
    assert chosen(file, resume=True) == ("tiny", DAYS[0])


def test_a_search_that_is_named_is_continued_whatever_its_experiment(file: Path, add: Any) -> None:
    add("tiny", DAYS[0])
    add("tiny", DAYS[1])
    add("other", DAYS[2], "ended", "tracked")
    assert chosen(file, resume=True, search=DAYS[0]) == ("tiny", DAYS[0])
    assert chosen(file, extend=2, search=DAYS[2]) == ("other", DAYS[2])
    assert chosen(file, extend=2) == ("tiny", DAYS[1])
    with pytest.raises(SearchError, match=f"no search '{DAYS[2]}' of tiny"):
        chosen(file, "tiny", resume=True, search=DAYS[2])


def test_a_search_that_has_ended_is_not_resumed_but_written_to_another_mlflow(file: Path, add: Any) -> None:
    add("tiny", DAYS[0], "ended", "tracked")
    with pytest.raises(SearchError, match=r"has ended \(planned\).*--extend N.*--tracking-uri URI"):
        chosen(file, resume=True)
    assert chosen(file, resume=True, tracking_uri="http://another") == ("tiny", DAYS[0])


def test_a_new_search_mentions_all_that_have_not_ended(file: Path, add: Any) -> None:
    add("tiny", DAYS[0])
    add("tiny", DAYS[1], "ended")
    add("tiny", DAYS[2])
    add("other", DAYS[3])
    (file.parent / "storage" / "tiny" / DAYS[4]).mkdir()
    (file.parent / "storage" / "tiny" / DAYS[4] / "journal.jsonl").write_text("damaged\n")
    said: list[str] = []
    mention(unfinished(recent(file.parent / "storage", "tiny")), SimpleNamespace(print=said.append))  # type: ignore[arg-type]
    assert [line.split()[1] for line in said] == [DAYS[2], DAYS[0]]
    assert all(f"--resume {id} continues it" in line for id, line in zip([DAYS[2], DAYS[0]], said, strict=True))

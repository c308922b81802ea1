"""The journal: a crash can cut off its last line, and a replay gives the state of the writer."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import retry
from data.errors import UnreachableError
from tuner.errors import SearchError
from tuner.storage import append_log, journal
from tuner.storage.journal import Journal, TrialHistory

ROOT = Path(__file__).parents[2]
LOCALTIME = time.localtime
FIRST: dict[str, Any] = {
    "type": "search",
    "version": journal.VERSION,
    "id": "s",
    "experiment": "tiny",
    "fingerprint": "f",
    "planned": 4,
    "tracking_uri": "sqlite:///mlflow.db",
    "overrides": [],
    "baseline": 0.2,
}


def begin(directory: Path) -> Journal:
    opened = Journal(directory)
    opened.append(**FIRST)
    return opened


def suggest(opened: Journal, number: int) -> None:
    opened.append(
        "suggested", number=number, id=f"t{number}", values={"x": 0.5}, settings={}, sampler_state={}, study_state={}
    )


names = st.text(max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)
states = st.dictionaries(names, numbers | names, max_size=2)
# Entries about a search and four trials, in any order.
events = st.lists(
    st.one_of(
        st.tuples(st.just("suggested"), st.integers(0, 3), states),
        st.tuples(st.just("report"), st.integers(0, 3), st.integers(1, 5), st.floats(0, 1)),
        st.tuples(st.just("finished"), st.integers(0, 3), st.sampled_from([None, "asha", "time_budget"])),
        st.tuples(st.just("failed"), st.integers(0, 3), names),
        st.tuples(st.just("attempt"), names),
        st.tuples(st.just("extended"), st.integers(1, 9)),
        st.tuples(st.just("retried"), st.integers(0, 3)),
        st.tuples(st.just("winner"), st.integers(0, 3), st.floats(0, 1)),
        st.tuples(st.just("ended"), st.sampled_from(["planned", "plateau"])),
    ),
    max_size=25,
)


def write(opened: Journal, event: tuple[Any, ...]) -> None:
    assert opened.search is not None
    match event:
        case "suggested", number, state:
            opened.append(
                "suggested",
                number=number,
                id=f"t{number}",
                values=state,
                settings=state,
                sampler_state=state,
                study_state=state,
            )
        case "attempt", job:
            opened.append("attempt", cluster="local", job=job, scratch=None)
        case "extended", trials:
            opened.append("extended", trials=trials)
        case "ended", reason:
            opened.append("ended", reason=reason)
        case _ if f"t{event[1]}" not in opened.search.trials:
            return
        case "report", number, epoch, gap:
            opened.append("report", id=f"t{number}", epoch=epoch, metrics={"gap": gap})
        case "finished", number, stopped_by:
            opened.append("finished", id=f"t{number}", stopped_by=stopped_by)
        case "retried", number:
            opened.append("retried", ids=[f"t{number}"])
        case "failed", number, error:
            opened.append("failed", id=f"t{number}", error=error)
        case "winner", number, gap:
            opened.append("winner", id=f"t{number}", metrics={"validate": {"gap": gap}})


@settings(max_examples=30, deadline=None)
@given(events)
def test_a_replay_gives_the_state_that_the_writer_had(
    tmp_path_factory: pytest.TempPathFactory, history: list[Any]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    opened = begin(directory)
    for event in history:
        write(opened, event)
    assert journal.read(directory) == opened.search
    opened.close()
    again = Journal(directory)
    assert again.search == opened.search
    again.close()


def test_a_last_line_that_is_cut_anywhere_is_the_only_loss(tmp_path: Path) -> None:
    opened = begin(tmp_path)
    suggest(opened, 0)
    before = journal.read(tmp_path)
    kept = (tmp_path / "journal.jsonl").read_bytes()
    suggest(opened, 1)
    opened.close()
    whole = (tmp_path / "journal.jsonl").read_bytes()
    for cut in range(len(kept), len(whole)):
        (tmp_path / "journal.jsonl").write_bytes(whole[:cut])
        assert journal.read(tmp_path) == before
        resumed = Journal(tmp_path)
        assert resumed.search == before
        suggest(resumed, 2)
        resumed.close()
        assert list(journal.read(tmp_path).trials) == ["t0", "t2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type": "suggested", "numb\n', "Unterminated"),
        (b"\0\0\0\0\n", "damaged"),
        (b"\xff\xfe\n", "damaged"),
        (b'{"type": "report", "id": "t7", "epoch": 1, "metrics": {}}\n', "t7"),
        (b"[]\n", "damaged"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    opened = begin(tmp_path)
    suggest(opened, 0)
    opened.close()
    first, second = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(first + line + second)
    for use in (journal.read, Journal):
        with pytest.raises(SearchError, match=rf"journal\.jsonl:2: the journal is damaged.*{reason}|:2:.*damaged"):
            use(tmp_path)


def test_a_changed_digit_and_a_line_that_is_gone_are_damage(tmp_path: Path) -> None:
    opened = begin(tmp_path)
    for number in range(3):
        suggest(opened, number)
    opened.close()
    whole = (tmp_path / "journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = [
        (whole.replace(b'"planned": 4', b'"planned": 5'), 1),
        (whole.replace(b'"x": 0.5', b'"x": 0.6', 1), 2),
        (b"".join(lines[:2] + lines[3:]), 3),
        (b"".join([*lines[:2], lines[1], *lines[2:]]), 3),
        (b"".join([*lines[:3], lines[3].replace(b', "crc32c"', b', "crc32C"')]), 4),
    ]
    for content, line in changed:
        (tmp_path / "journal.jsonl").write_bytes(content)
        for use in (journal.read, Journal):
            with pytest.raises(
                SearchError, match=rf"journal\.jsonl:{line}: the journal is damaged \(its checksum is not"
            ):
                use(tmp_path)


def test_a_journal_of_an_earlier_version_has_no_checksums_and_is_continued(tmp_path: Path) -> None:
    begin(tmp_path).close()
    (tmp_path / "journal.jsonl").write_text(json.dumps(FIRST) + "\n")
    opened = Journal(tmp_path)
    suggest(opened, 0)
    opened.close()
    again = Journal(tmp_path)
    suggest(again, 1)
    again.close()
    assert list(journal.read(tmp_path).trials) == ["t0", "t1"]


def test_a_journal_whose_first_entry_is_not_the_search_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"type": "attempt", "job": "1"}\n')
    with pytest.raises(SearchError, match=r"journal\.jsonl:1: .*not of type search"):
        journal.read(tmp_path)


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps(FIRST | {"version": 99}) + "\n")
    with pytest.raises(SearchError, match=r"version 99, but this program reads version 1"):
        journal.read(tmp_path)


def test_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="there is no journal of a search"):
        journal.read(tmp_path)


def test_an_entry_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    opened = begin(tmp_path)
    suggest(opened, 0)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["search", "suggested"]
    opened.close()


def trial(number: int, *gaps: float, **changes: Any) -> TrialHistory:
    reports = {epoch: {"gap": gap} for epoch, gap in enumerate(gaps, start=1)}
    return TrialHistory(number=number, id=f"t{number}", values={}, sampler_state={}, reports=reports, **changes)


def test_the_last_epoch_of_a_trial_is_not_the_number_of_its_reports() -> None:
    taken = trial(0)
    taken.reports = {6: {"gap": 0.3}, 7: {"gap": 0.4}}
    assert (taken.last_epoch, taken.best_epoch, trial(0).last_epoch) == (7, 7, 0)


def test_the_score_is_that_of_the_best_epoch_the_first_of_equal_ones() -> None:
    assert (trial(0, 0.1, 0.5, 0.5, 0.3).score, trial(0, 0.1, 0.5, 0.5, 0.3).best_epoch) == (0.5, 2)
    assert (trial(0).score, trial(0).best_epoch) == (None, None)
    assert trial(0, 0.5, status="failed").score is None


def test_finished_trials_are_sorted_by_score_and_then_by_number(tmp_path: Path) -> None:
    opened = begin(tmp_path)
    for number, gap in enumerate((0.2, 0.7, 0.7)):
        suggest(opened, number)
        opened.append("report", id=f"t{number}", epoch=1, metrics={"gap": gap})
        opened.append("finished", id=f"t{number}", stopped_by=None)
    suggest(opened, 3)
    opened.close()
    found = journal.read(tmp_path)
    assert [trial.number for trial in found.finished] == [1, 2, 0]
    assert [trial.number for trial in found.unfinished] == [3]


def test_an_entry_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A separate process with a real limit on the size of files, so that a part of the line is written."""
    begin(tmp_path).close()
    before = (tmp_path / "journal.jsonl").read_bytes()
    program = """
import resource, signal, sys
from pathlib import Path
from tuner.errors import SearchError
from tuner.storage.journal import Journal
journal = Journal(Path(sys.argv[1]))
room = (Path(sys.argv[1]) / "journal.jsonl").stat().st_size + 20
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        journal.append("extended", trials=3)
    except SearchError as error:
        print(error)
print((Path(sys.argv[1]) / "journal.jsonl").stat().st_size, journal.search.planned)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append("extended", trials=4)
journal.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = f"{tmp_path / 'journal.jsonl'}: cannot be written (File too large)"
    assert done.stdout.splitlines() == [told, told, f"{len(before)} 4"]
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)
    assert journal.read(tmp_path).planned == 8


def test_a_network_folder_that_fails_for_a_moment_gets_each_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second sync fails, after the line is written; the handle is stale then."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    synced, fsync = [], os.fsync

    def failing(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) % 2:
            raise OSError(errno.ESTALE, "Stale file handle")
        fsync(descriptor)

    opened = begin(tmp_path)
    monkeypatch.setattr(append_log.os, "fsync", failing)
    for _ in range(5):
        opened.append("extended", trials=1)
    opened.close()
    assert len(synced) == 10
    assert (tmp_path / "journal.jsonl").read_text().count('"extended"') == 5
    assert journal.read(tmp_path) == opened.search


def test_a_network_folder_that_stays_away_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 0.05)
    opened = begin(tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(append_log.os, "fsync", failing)
        with pytest.raises(UnreachableError, match=r"^.*journal.jsonl: cannot be reached: Input/output error \(tried"):
            opened.append("extended", trials=1)
    assert opened.search.planned == journal.read(tmp_path).planned - 1, "it may be stored, but nobody acts on it"
    opened.append("extended", trials=2)
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(before)
    assert journal.read(tmp_path) == opened.search
    opened.close()


def test_the_time_of_a_search_is_that_of_its_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time between two drivers counts, nor a clock that is set back."""
    facts = {"fingerprint": "f", "planned": 4, "tracking_uri": "-", "overrides": [], "baseline": 0.1}
    driver = {"cluster": "c", "job": "j", "scratch": None}
    written: list[tuple[float, str, dict[str, Any]]] = [
        (0, "search", {"version": journal.VERSION, "id": "s", "experiment": "tiny", **facts}),
        (10, "attempt", driver),
        (15, "extended", {"trials": 1}),
        (12, "extended", {"trials": 1}),
        (20, "extended", {"trials": 1}),
        (500, "attempt", driver),
        (503, "extended", {"trials": 1}),
    ]
    opened = Journal(tmp_path)
    for now, kind, fields in written:
        monkeypatch.setattr("tuner.storage.journal.time.time", lambda now=now: now)
        opened.append(kind, **fields)
    opened.close()
    assert journal.read(tmp_path).seconds == 5 + 8 + 3

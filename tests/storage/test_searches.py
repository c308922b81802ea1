"""Searches are listed, named and found by their folders."""

import time
from pathlib import Path

import pytest

from tuner.errors import SearchError
from tuner.storage import searches
from tuner.storage.stores import place

LOCALTIME = time.localtime


def begin(storage: Path, experiment: str, name: str) -> None:
    """Create the folder of a search whose journal has a line."""
    (storage / experiment / name).mkdir(parents=True)
    (storage / experiment / name / "journal.jsonl").write_text("{}\n")


def test_searches_are_listed_oldest_first(tmp_path: Path) -> None:
    for name in ("20260102-000000-1", "20250102-000000-1", "20260101-000000-1"):
        begin(tmp_path, "tiny", name)
    assert [path.name[:8] for path in searches.folders(tmp_path, "tiny")] == ["20250102", "20260101", "20260102"]


@pytest.mark.parametrize("storage", ["folder [1]", "memory://bucket/folder [1]"])
def test_names_that_look_like_patterns_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    monkeypatch.chdir(tmp_path)
    where = place(storage, "--storage")
    for experiment in ("mine[2]", "mine2", "mi*"):
        for name in ("20260102-000000-1", "20260103-000000-1"):
            (where / experiment / name).mkdir(parents=True, exist_ok=True)
            (where / experiment / name / "journal.jsonl").write_text("{}\n")
    for experiment in ("mine[2]", "mi*"):
        found = searches.folders(where, experiment)
        assert [path.name for path in found] == ["20260102-000000-1", "20260103-000000-1"]
        assert {path.parent for path in found} == {where / experiment}
    assert len(searches.folders(where)) == 6


def test_a_new_search_sorts_last_even_if_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> str:
        name = searches.new_id(tmp_path)
        (tmp_path / "tiny" / name).mkdir(parents=True)
        (tmp_path / "tiny" / name / "journal.jsonl").touch()
        return name

    now = time.mktime((2026, 3, 4, 5, 6, 7, 0, 0, -1))
    names = []
    for clock in (now, now - 86400, now - 7e7, now + 60):
        monkeypatch.setattr(time, "localtime", lambda seconds=None, clock=clock: LOCALTIME(seconds or clock))
        names.append(begin())
    assert [name[:15] for name in names] == ["20260304-050607", "20260304-050608", "20260304-050609", "20260304-050707"]
    assert [path.name for path in searches.folders(tmp_path, "tiny")] == names
    (tmp_path / "tiny" / "zzz").mkdir()
    (tmp_path / "tiny" / "zzz" / "journal.jsonl").touch()
    assert searches.new_id(tmp_path).startswith("20260304-050707")


def test_a_search_is_found_by_its_names_and_the_newest_one_without_them(tmp_path: Path) -> None:
    begin(tmp_path, "tiny", "20260102-030405-0001")
    tiny = tmp_path / "tiny" / "20260102-030405-0001"
    begin(tmp_path, "alpha", "20260101-000000-0001")
    begin(tmp_path, "zeta", "20250101-000000-0001")
    assert searches.find(tmp_path, None, None) == tiny
    begin(tmp_path, "alpha", "20270101-000000-0001")
    assert searches.find(tmp_path, None, None).name == "20270101-000000-0001"
    assert searches.find(tmp_path, "tiny", None) == tiny
    assert searches.find(tmp_path, "alpha", "20260101-000000-0001").name == "20260101-000000-0001"
    assert searches.find(tmp_path, None, "20250101-000000-0001").parent.name == "zeta"


def test_a_folder_with_an_empty_journal_is_not_a_search(tmp_path: Path) -> None:
    assert not searches.exists(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    assert not searches.exists(tmp_path)
    (tmp_path / "journal.jsonl").write_text("{}\n")
    assert searches.exists(tmp_path)


def test_of_many_searches_an_error_lists_the_newest(tmp_path: Path) -> None:
    for number in range(12):
        begin(tmp_path, "tiny", f"20260101-0000{number:02d}-0001")
    with pytest.raises(SearchError, match="no search 'x' of tiny") as error:
        searches.find(tmp_path, "tiny", "x")
    assert "000001" not in str(error.value) and str(error.value).endswith("20260101-000011-0001, and older ones)")

"""A log in an object store: numbered segments, of which a second writer can undo none."""

import uuid

import pytest
from upath import UPath

from tuner.errors import SearchError
from tuner.storage import append_log
from tuner.storage.append_log import SegmentedLog, create, read_segments
from tuner.storage.stores import at


@pytest.fixture
def file() -> UPath:
    return UPath(f"memory://{uuid.uuid4().hex}/journal.jsonl")


def segments(file: UPath) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in file.parent.glob("*")}


def test_a_line_is_stored_when_append_returns(file: UPath) -> None:
    opened = at(file).open_log(at(file).log_parts())
    for number in range(3):
        opened.append(b"%d\n" % number)
        assert segments(file) == {"journal.jsonl": b"".join(b"%d\n" % n for n in range(number + 1))}


def test_a_full_segment_is_not_rewritten(file: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_log, "SEGMENT_BYTES", 6)
    opened = at(file).open_log(at(file).log_parts())
    for number in range(5):
        opened.append(b"%d..\n" % number)
    assert segments(file) == {
        "journal.jsonl": b"0..\n1..\n",
        "journal.0001.jsonl": b'{"type": "segment", "after": 8}\n2..\n3..\n',
        "journal.0002.jsonl": b'{"type": "segment", "after": 40}\n4..\n',
    }
    assert [line for _, line in append_log.lines(at(file).log_parts())] == [b"0..", b"1..", b"2..", b"3..", b"4.."]
    assert [place for place, _ in append_log.lines(at(file).log_parts())][2:4] == [
        f"{file.parent}/journal.0001.jsonl:2",
        f"{file.parent}/journal.0001.jsonl:3",
    ]


def test_what_is_written_behind_the_back_of_a_second_writer_does_not_count_and_the_first_one_notices(
    file: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_log, "SEGMENT_BYTES", 6)
    asleep = SegmentedLog(file, read_segments(file))
    asleep.append(b"a1.\n")
    awake = SegmentedLog(file, read_segments(file))
    awake.append(b"b1.\n")
    asleep.append(b"a2.\n")  # this fills its segment
    with pytest.raises(SearchError, match=r"journal\.0001\.jsonl: another driver wrote it"):
        asleep.append(b"a3.\n")
    assert segments(file)["journal.jsonl"] == b"a1.\na2.\n"
    assert [line for _, line in append_log.lines(at(file).log_parts())] == [b"a1.", b"b1."]


def test_segments_of_older_versions_count_as_a_whole(file: UPath) -> None:
    file.write_bytes(b"a\nb\n")
    (file.parent / "journal.0001.jsonl").write_bytes(b"c\n")
    opened = at(file).open_log(at(file).log_parts())
    opened.append(b"d\n")
    assert [line for _, line in append_log.lines(at(file).log_parts())] == [b"a", b"b", b"c", b"d"]


def test_a_repeated_request_does_not_look_like_another_writer(file: UPath) -> None:
    assert create(file, b"mine")
    assert create(file, b"mine")  # the library of the store repeats a request whose answer was lost
    assert not create(file, b"another's")


def test_a_missing_segment_is_an_error(file: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_log, "SEGMENT_BYTES", 1)
    opened = at(file).open_log(at(file).log_parts())
    for _ in range(3):
        opened.append(b"line\n")
    (file.parent / "journal.0001.jsonl").unlink()
    with pytest.raises(SearchError, match=r"journal\.0001\.jsonl: this part of the journal is missing"):
        list(append_log.lines(at(file).log_parts()))


def test_a_log_that_does_not_exist_has_no_lines(file: UPath) -> None:
    assert list(append_log.lines(at(file).log_parts())) == []

"""The contract of `Location`, for a folder and for an object store."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from data import retry
from tuner.errors import SearchError, TunerError
from tuner.storage.append_log import lines
from tuner.storage.local import replacing
from tuner.storage.lock import only_driver
from tuner.storage.place import Place
from tuner.storage.stores import at


@pytest.fixture(params=["folder", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return tmp_path / "root" if request.param == "folder" else UPath(f"memory://{uuid.uuid4().hex}")


def contents(folder: Place) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}


def publish(folder: Place, **files: str) -> None:
    with at(folder).publish(first="first", last="last") as staging:
        for name, text in files.items():
            (staging / name).write_text(text)


def test_a_published_folder_replaces_the_earlier_one(root: Place) -> None:
    folder = root / "model"
    publish(folder, first="1", last="1")
    assert contents(folder) == {"first": "1", "last": "1"}
    publish(folder, first="2", last="2")
    assert contents(folder) == {"first": "2", "last": "2"}
    assert [path.name for path in root.iterdir()] == ["model"]


def test_nothing_is_published_if_the_block_raises(root: Place) -> None:
    folder = root / "model"
    publish(folder, first="1", last="1")
    with pytest.raises(RuntimeError), at(folder).publish(last="last") as staging:
        (staging / "last").write_text("2")
        raise RuntimeError
    assert contents(folder) == {"first": "1", "last": "1"}
    assert [path.name for path in root.iterdir()] == ["model"]


def test_downloaded_files_are_on_this_machine_and_errors_name_the_place(root: Place) -> None:
    publish(root / "model", first="1", last="1")
    with (
        pytest.raises(TunerError) as error,
        at(root / "model").download(["first", "missing"]) as folder,
    ):
        assert isinstance(folder, Path)
        assert (folder / "first").read_text() == "1" and not (folder / "missing").exists()
        raise TunerError(f"{folder}/missing: not found")
    assert str(error.value) == f"{root / 'model'}/missing: not found"


def test_buffered_output_is_appended_also_after_an_error(root: Place) -> None:
    at(root).make()
    for text in ("first\n", "second\n"):
        with pytest.raises(RuntimeError), at(root / "ray.log").buffered() as file:
            with file.open("a") as log:
                log.write(text)
            raise RuntimeError
    assert (root / "ray.log").read_text() == "first\nsecond\n"


def test_a_log_has_the_lines_of_all_its_writers(root: Place) -> None:
    at(root).make()
    file = root / "journal.jsonl"
    assert at(file).log_parts() == []
    for line in (b"first\n", b"second\n"):
        log = at(file).open_log(at(file).log_parts())
        log.append(line)
        log.close()
    assert [line for _, line in lines(at(file).log_parts())] == [b"first", b"second"]


def test_a_removed_folder_is_gone_and_can_be_removed_again(root: Place) -> None:
    publish(root / "model", last="1")
    for _ in range(2):
        at(root / "model").remove()
        assert not (root / "model").exists()


def test_a_lock_is_free_after_its_block_and_names_its_owner_in_it(root: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.storage.lease.RENEW_SECONDS", 0.05)
    monkeypatch.setattr("tuner.storage.lease.POLL_SECONDS", 0.05)
    with only_driver(root, "first") as still_ours:
        still_ours()
        with pytest.raises(SearchError, match="search first is being run by process"), only_driver(root, "second"):
            pytest.fail("two drivers")
    with only_driver(root, "second"):
        pass
    assert [path.name for path in root.glob("*")] in (["driver.lock"], ["lease.0002"])


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "predictions.csv.gz"
    with replacing(output) as unfinished:
        assert unfinished.name.endswith(".csv.gz") and unfinished.parent == tmp_path
        unfinished.write_text("1")
        assert not output.exists()
    with pytest.raises(RuntimeError), replacing(output) as unfinished:
        unfinished.write_text("2")
        raise RuntimeError
    assert output.read_text() == "1" and list(tmp_path.iterdir()) == [output]


def test_a_folder_is_removed_also_where_another_has_removed_it_or_an_answer_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, remove = UPath(f"memory://{uuid.uuid4().hex}/model"), MemoryFileSystem.rm
    publish(folder, first="1", last="1")
    answers = iter([False, True])

    def lost(*arguments: Any, **options: Any) -> None:
        remove(*arguments, **options)
        if not next(answers):
            raise ConnectionResetError("by the peer")

    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(MemoryFileSystem, "rm", lost)
    at(folder).remove()
    at(folder).remove()
    assert not folder.exists()

"""Lists of classes: vocabularies, and the classes that segments are ranked for."""

from pathlib import Path

import pytest

from tests.support.finished import NAMES, VOCABULARY
from tuner.errors import ConfigError
from tuner.training import vocabulary


def test_names_are_sorted_by_index_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "names.csv").write_text(VOCABULARY)
    (tmp_path / "names.csv.gz").write_bytes(gzip.compress(VOCABULARY.encode("utf-8-sig")))
    assert vocabulary.read(tmp_path / "names.csv", 12) == NAMES
    assert vocabulary.read(tmp_path / "names.csv.gz", 12) == NAMES
    vocabulary.write(tmp_path / "again.csv", NAMES)
    assert vocabulary.read(tmp_path / "again.csv", 12) == NAMES


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Index,Label\n0,a\n", "lacks the column Name; its columns are: Index, Label"),
        ("", "lacks the column Index and Name; its columns are: none"),
        ("Index,Name\n0,a\n2,c\n", "1 of 3 classes are missing; the first is 1"),
        ("Index,Name\n0,a\n1,b\n3,c\n", r"names.csv:4: Index must be in \[0, 3\), but got '3'"),
        ("Index,Name\n0,a\nx,b\n", r"names.csv:3: Index must be in \[0, 3\), but got 'x'"),
        ("Index,Name\n0,a\n0,b\n", "names.csv:3: names class 0 twice"),
        (b"Index,Name\n0,\xff\n", "cannot be read as a list of classes"),
    ],
)
def test_an_invalid_vocabulary_is_refused(tmp_path: Path, content: str | bytes, told: str) -> None:
    (tmp_path / "names.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=told):
        vocabulary.read(tmp_path / "names.csv", 3)


def test_a_missing_or_incomplete_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.csv.gz").write_bytes(b"\x1f\x8b\x08 and no more")
    for name in ("nowhere.csv", "torn.csv.gz"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as a list of classes"):
            vocabulary.read(tmp_path / name, 3)


def test_the_real_vocabulary_is_read(yt8m: Path) -> None:
    names = vocabulary.read(yt8m / "vocabulary.csv.gz", 3862)
    assert len(names) == 3862 and names[:4] == ["Game", "Video game", "Vehicle", "Concert"]


def test_the_classes_of_2019_are_read(yt8m: Path) -> None:
    classes = vocabulary.read_indices(str(yt8m / "segment_label_ids.csv"), 3862)
    assert len(classes) == 1000 == len(set(classes)) and max(classes) < 3862


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Id\n3\n", "lacks the column Index; its columns are: Id"),
        ("Index\n3\n99\n", r"c.csv:3: Index must be in \[0, 12\), but got '99'"),
        ("Index\n3\n3\n", "c.csv:3: names class 3 twice"),
        ("Index\nx\n", r"c.csv:2: Index must be in \[0, 12\), but got 'x'"),
        (f"Index\n{'9' * 5000}\n", r"c.csv:2: Index must be in \[0, 12\), but got '999"),
        ("Index\n\u0663\n", r"c.csv:2: Index must be in \[0, 12\), but got '\u0663'"),
        ("Index\n", "names no class"),
        ("", "lacks the column Index; its columns are: none"),
    ],
)
def test_an_invalid_list_of_classes_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(ConfigError, match=told):
        vocabulary.read_indices(str(tmp_path / "c.csv"), 12)


def test_a_url_of_a_list_of_classes_is_not_fetched(tmp_path: Path) -> None:
    """The default of google/youtube-8m was a URL."""
    with pytest.raises(ConfigError, match="must be a file of this machine, not a URL"):
        vocabulary.read_indices("https://example.org/segment_label_ids.csv", 12)
    with pytest.raises(ConfigError, match=r"nowhere\.csv: cannot be read"):
        vocabulary.read_indices(str(tmp_path / "nowhere.csv"), 12)

"""A place is a folder or the URL of one in an object store."""

import sys
from pathlib import Path

import pytest

from tuner.errors import ConfigError
from tuner.storage.place import is_url
from tuner.storage.stores import place


def test_a_place_in_an_object_store_has_the_methods_of_a_folder() -> None:
    store = place("memory://searches/", "--storage")
    assert is_url(store) and str(store / "tiny") == "memory://searches/tiny"
    assert not is_url(Path("searches"))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (
            "sftp://host/searches",
            "--storage sftp://host/searches: must be a folder, or a URL that begins with",
        ),
        ("s3://me:secret@bucket/searches", r"--storage: s3://\*\*\*@bucket/searches holds credentials"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused(named: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        place(named, "--storage")
    assert "secret" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r'--storage gs://bucket: pip install "video-tuner\[gcs\]" first'):
        place("gs://bucket", "--storage")

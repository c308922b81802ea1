"""Every place that a command takes: where it cannot be read or written, one sentence and exit code 2, before the work.

The options are read from the parsers, by their metavars: an option that this file does not know fails its first test.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import exit_code_of, refusal_of
from tests.support.finished import FinishedSearch
from tests.support.workplace import PROJECT

COMMANDS = (
    "tune",
    "tuner.train",
    "tuner.best",
    "tuner.predict",
    "tuner.evaluate",
    "tuner.embed",
    "tuner.steer",
    "data.cache",
    "data.inspect",
    "data.sample",
)
# Metavars of what is no place.
NO_PLACES = {
    *(
        "EXPERIMENT",
        "PATH=VALUE",
        "PATH",
        "ID",
        "ID|EXPERIMENT",
        "N",
        "K",
        "B",
        "P",
        "C",
        "T",
        "MIB",
        "RUN_ID",
        "COMMAND",
        "ARGUMENT",
    ),
    *("NAME=KEY", "NAME=WIDTH", "cpu|cuda", "auto|local|HOST:PORT"),
}
# The place that each option takes, by command and by the name of its value.
READ, WRITTEN, FOLDER_READ, FOLDER_WRITTEN = "a file that is read", "a file", "a folder that is read", "a folder"
PLACES = {
    ("tune", "file"): READ,
    ("tune", "storage"): FOLDER_WRITTEN,
    ("tune", "tracking_uri"): "an MLflow",
    ("tuner.train", "file"): READ,
    ("tuner.train", "storage"): "a storage that --trial alone reads",
    ("tuner.train", "tracking_uri"): "an MLflow that --trial alone reads",
    ("tuner.train", "save"): FOLDER_WRITTEN,
    ("tuner.best", "file"): "a file whose folder alone counts, as the default of --storage",
    ("tuner.best", "storage"): FOLDER_READ,
    ("tuner.best", "tracking_uri"): "an MLflow that is only named",
    ("tuner.best", "export"): FOLDER_WRITTEN,
    ("tuner.predict", "model"): FOLDER_READ,
    ("tuner.predict", "data"): READ,
    ("tuner.predict", "output"): WRITTEN,
    ("tuner.predict", "classes"): "a list of classes, of --segments",
    ("tuner.evaluate", "model"): FOLDER_READ,
    ("tuner.evaluate", "data"): READ,
    ("tuner.evaluate", "predictions"): READ,
    ("tuner.evaluate", "classes"): WRITTEN,
    ("tuner.embed", "model"): FOLDER_READ,
    ("tuner.embed", "data"): READ,
    ("tuner.embed", "output"): WRITTEN,
    ("tuner.steer", "storage"): FOLDER_READ,
    ("tuner.steer", "file"): "a file whose folder alone counts, as the default of --storage",
    ("data.cache", "data"): READ,
    ("data.cache", "directory"): FOLDER_WRITTEN,
    ("data.inspect", "places"): READ,
    ("data.sample", "directory"): FOLDER_WRITTEN,
}
# Places that are no options: variables, and settings of the yaml.
VARIABLES = {
    ("tune", "TUNER_STORAGE"): FOLDER_WRITTEN,
    ("tuner.best", "TUNER_STORAGE"): FOLDER_READ,
    ("tuner.train", "TUNER_CACHE"): FOLDER_WRITTEN,
    ("data.cache", "TUNER_CACHE"): FOLDER_WRITTEN,
}
SETTINGS = ("data.train", "data.validate", "data.vocabulary")
MOUNTED = {"read-only": "ro", "full": "size=4k,nr_inodes=1"}
TROUBLES = {
    READ: ("missing", "a folder", "a broken link"),
    WRITTEN: ("in a missing folder", "a folder", "below a file", *MOUNTED),
    FOLDER_READ: ("missing", "a file", "a broken link"),
    FOLDER_WRITTEN: ("a file", "below a file", "a broken link", *MOUNTED),
}


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of a command, when it is about to parse."""
    found: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *arguments: object) -> None:
        found.append(parser)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, stop)
        exit_code_of(module)
    return found[0]


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_with_a_value_is_known_as_a_place_or_as_none(module: str) -> None:
    taking = [action for action in parser_of(module)._actions if action.metavar is not None or action.type is Path]
    unknown = {
        action.dest for action in taking if str(action.metavar) not in NO_PLACES and (module, action.dest) not in PLACES
    }
    assert unknown == set(), "add them to PLACES, or their metavars to NO_PLACES"
    assert {dest for command, dest in PLACES if command == module} <= {action.dest for action in taking}


@pytest.fixture
def trouble(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a place that cannot be read or written, and returns its path."""
    mounted: list[Path] = []

    def make(kind: str) -> Path:
        place = tmp_path / "trouble" / "place.csv"
        if kind == "in a missing folder":
            return place
        place.parent.mkdir()
        if kind in MOUNTED:
            mount = ["mount", "-t", "tmpfs", "-o", MOUNTED[kind], "tmpfs", str(place.parent)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("mounting is refused here")
            mounted.append(place.parent)
        elif kind == "a file":
            place.write_text("no folder")
        elif kind == "a folder":
            place.mkdir()
        elif kind == "a broken link":
            place.symlink_to(tmp_path / "nothing")
        elif kind == "below a file":
            place.write_text("no folder")
            return place / "below.csv"
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def usual(
    own: FinishedSearch,
    finished_search: FinishedSearch,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, list[object]]:
    """Arguments with which each command would succeed, in the folder of a finished search."""
    monkeypatch.chdir(own.folder)
    for name in ("TUNER_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (own.folder / "shards").symlink_to(finished_search.folder / "shards")
    (own.folder / "vocabulary.csv").symlink_to(finished_search.folder / "vocabulary.csv")
    shards = own.folder / "shards" / "validate*.tfrecord"
    features = ["--features", "mean_rgb=24", "mean_audio=8", "--num-classes", "12"]
    return {
        "tune": ["tiny"],
        "tuner.train": ["tiny", "--device", "cpu"],
        "tuner.best": ["--export", tmp_path / "exported"],
        "tuner.predict": [exported, "--data", shards, "--output", tmp_path / "out.csv", "--device", "cpu"],
        "tuner.evaluate": [exported, "--data", shards, "--device", "cpu"],
        "tuner.embed": [exported, "--data", shards, "--output", tmp_path / "out.parquet", "--device", "cpu"],
        "tuner.steer": ["tiny", "pause"],
        "data.cache": ["--data", shards, *features, "--directory", tmp_path / "built"],
        "data.inspect": [shards],
        "data.sample": [tmp_path / "sample"],
    }


def with_place(module: str, dest: str, place: Path, usual: list[object]) -> list[object]:
    """The usual arguments, with a place in that of an option or of a positional argument."""
    action = next(action for action in parser_of(module)._actions if action.dest == dest)
    if not action.option_strings:
        return [place, *usual[1:]]
    option = action.option_strings[0]
    if option in usual:
        index = usual.index(option)
        return [*usual[: index + 1], place, *usual[index + 2 :]]
    return [*usual, option, place]


def cases(places: dict[tuple[str, str], str]) -> list[tuple[str, str, str]]:
    return [(module, name, kind) for (module, name), of in places.items() for kind in TROUBLES.get(of, ())]


def suffixed(module: str, place: Path) -> Path:
    """The place under a name that the command takes for its output."""
    if module != "tuner.embed" or not (place.is_dir() or not place.exists()):
        return place
    renamed = place.with_suffix(".parquet")
    return place.rename(renamed) if place.is_dir() else renamed


def names(place: Path, told: str) -> bool:
    """Whether a sentence names a place, or the folder that is the trouble."""
    return str(place) in told or str(place.parent) in told


@pytest.mark.parametrize(("module", "dest", "kind"), cases(PLACES))
def test_a_place_that_cannot_be_used_is_one_sentence(
    module: str,
    dest: str,
    kind: str,
    usual: dict[str, list[object]],
    trouble: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = suffixed(module, trouble(kind))
    before = sorted(tmp_path.glob("trouble/**/*"))
    told = refusal_of(capsys, module, *with_place(module, dest, place, usual[module]), prints_before=True)
    assert names(place, told), told
    assert sorted(tmp_path.glob("trouble/**/*")) == before, "something half-written is left"


@pytest.mark.parametrize(
    ("module", "dest", "kind"),
    [
        (module, dest, kind)
        for module, dest, kind in cases(PLACES)
        if PLACES[module, dest] in (WRITTEN, FOLDER_WRITTEN) and module not in ("tuner.best", "data.sample")
    ],
)
def test_what_is_written_is_checked_before_what_is_read(
    module: str,
    dest: str,
    kind: str,
    usual: dict[str, list[object]],
    trouble: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shards do not exist: a sentence about the output shows that it was checked before them."""
    place = suffixed(module, trouble(kind))
    nowhere = tmp_path / "nowhere*.tfrecord"
    arguments = [nowhere if "validate*" in str(each) else each for each in usual[module]]
    if module in ("tune", "tuner.train"):
        arguments += ["--set", f"data.train={nowhere}"]
    told = refusal_of(capsys, module, *with_place(module, dest, place, arguments), prints_before=True)
    assert names(place, told) and "nowhere" not in told, told


@pytest.mark.parametrize(("module", "name", "kind"), cases(VARIABLES))
def test_a_place_in_a_variable_is_told_the_same_way(
    module: str,
    name: str,
    kind: str,
    usual: dict[str, list[object]],
    trouble: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = trouble(kind)
    monkeypatch.setenv(name, str(place))
    arguments = list(usual[module])
    if "--directory" in arguments:
        arguments = arguments[: arguments.index("--directory")]
    if (module, name) == ("tuner.train", "TUNER_CACHE"):
        arguments += ["--set", "data.cache=null"]
    told = refusal_of(capsys, module, *arguments, prints_before=True)
    assert names(place, told), told


@pytest.mark.parametrize("path", SETTINGS)
@pytest.mark.parametrize("kind", TROUBLES[READ])
@pytest.mark.parametrize("module", ["tune", "tuner.train"])
def test_a_place_in_the_yaml_is_told_with_its_setting(
    module: str,
    path: str,
    kind: str,
    usual: dict[str, list[object]],
    trouble: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = trouble(kind)
    arguments = [*usual[module], "--set", f"{path}={place}", *(["--dry-run"] if module == "tune" else [])]
    told = refusal_of(capsys, module, *arguments, prints_before=True)
    assert names(place, told), told


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere; MOUNTED is for him")
def test_a_folder_without_permission_is_refused(
    usual: dict[str, list[object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    told = refusal_of(capsys, "data.sample", locked / "sample")
    assert told.startswith(f"{locked / 'sample'}: cannot be written: ")


def test_names_may_have_any_letter_where_the_locale_knows_ascii_alone(tmp_path: Path) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | ascii_alone
    words = ["--train", "3", "--validate", "2", "--test", "2"]
    command = [sys.executable, "-m", "data.sample", str(tmp_path / "Pokémon"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b" MB in " in done.stdout and b"Pok?mon" in done.stdout, "the screen shows another letter"
    assert sorted(path.name for path in (tmp_path / "Pokémon").glob("validate*"))[0] == "validate0000.tfrecord"


def test_predictions_in_an_unknown_format_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal_of(capsys, "tuner.predict", tmp_path, "--data", "x", "--output", tmp_path / "out.txt")
    assert told == f"--output must end in .csv, .csv.gz or .safetensors, but got {tmp_path / 'out.txt'}\n"

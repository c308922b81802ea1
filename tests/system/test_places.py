"""Output files that cannot be written are refused in one sentence, before any of the work whose result they hold."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import refusal_of

# The model and the shards do not exist: a sentence about the output shows that it was checked before them.
COMMANDS = {
    "predict": ("tuner.predict", "--output", "out.csv"),
    "embed": ("tuner.embed", "--output", "out.parquet"),
    "evaluate": ("tuner.evaluate", "--classes", "out.csv"),
}
MOUNTED = {"read-only": "ro", "full": "size=4k,nr_inodes=1"}


@pytest.fixture(params=["missing", "a file", "a folder", *MOUNTED])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which no output file can be written; of `a folder`: where folders have the names of the files."""
    folder = tmp_path / "place"
    if request.param == "missing":
        yield folder
        return
    if request.param == "a file":
        folder.touch()
        yield folder
        return
    folder.mkdir()
    if request.param == "a folder":
        for _, _, name in COMMANDS.values():
            (folder / name).mkdir(exist_ok=True)
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", MOUNTED[request.param], "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting is refused here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    command: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, option, name = COMMANDS[command]
    nowhere = tmp_path / "nowhere"
    told = refusal_of(capsys, module, nowhere, "--data", nowhere / "*.tfrecord", option, place / name)
    assert told.startswith(f"{place / name}: cannot be written: ")


def test_predictions_in_an_unknown_format_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal_of(capsys, "tuner.predict", tmp_path, "--data", "x", "--output", tmp_path / "out.txt")
    assert told == f"--output must end in .csv, .csv.gz or .safetensors, but got {tmp_path / 'out.txt'}\n"

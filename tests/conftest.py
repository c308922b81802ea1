"""What every test gets: a scrubbed environment, and the places that tests share."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SHARED_DATA = PROJECT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes what belongs to the person who runs it."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TUNER_STORAGE", "YT8M_DIR", "YT8M_SMALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def yt8m() -> Path:
    """The real YouTube-8M shards beside the project."""
    if not (SHARED_DATA / "yt8m").exists():
        pytest.skip("the real shards (../shared/data/yt8m) are not here")
    return SHARED_DATA / "yt8m"


EXPERIMENT = """\
    default: tiny
    experiments:
      tiny:
        data:
          sample: {directory: shards, train: 300, validate: 100, shards: 2}
          train: shards/train*.tfrecord
          validate: shards/validate*.tfrecord
          features: {mean_rgb: 32, mean_audio: 8}
          num_classes: 20
        model: {kind: fused_mlp, towers: {mean_rgb: 16, mean_audio: 8}, hidden: 16, dropout: {uniform: [0.1, 0.6]}}
        optimizer: {kind: adam, learning_rate: {loguniform: [1.0e-3, 1.0e-2]}}
        training: {batch_size: 64, epochs: 30, precision: fp32}
        search: {trials: 3, scheduler: {kind: none}}
        resources: {cpu: 1}
    """


@dataclass
class Workplace:
    """A folder with a tiny experiment, and `python tune.py` in it as a user would type it."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Short paths (Ray's sockets), nobody's home, one thread."""
        return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments: str, output: str = "output.txt") -> subprocess.Popen[str]:
        """Start tune.py; what it prints goes to `output`."""
        with (self.folder / output).open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(PROJECT / "tune.py"), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str, output: str = "output.txt", timeout: float = 240) -> tuple[int, str]:
        """Run tune.py to its end; returns its exit code and what it printed."""
        code = self.start(*arguments, output=output).wait(timeout)
        return code, self.printed(output)

    def python(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` in the folder."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def printed(self, output: str = "output.txt") -> str:
        """What a run printed so far."""
        return (self.folder / output).read_text()


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A folder with a tiny experiment in it; whatever was started there is ended."""
    (tmp_path / "experiments.yaml").write_text(textwrap.dedent(EXPERIMENT))
    place = Workplace(tmp_path)
    yield place
    for process in place.started:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `condition` holds."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)

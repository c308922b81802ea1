"""A folder with a tiny experiment, in which tests run the project's commands as a user would type them."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from weakref import finalize

PROJECT = Path(__file__).resolve().parents[2]

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
        training: {batch_size: 64, epochs: 12, precision: fp32}
        search: {trials: 3, scheduler: {kind: none}, max_concurrent: 1}
        resources: {cpu: 1}
    """


@dataclass
class Workplace:
    """A folder in which tests run `python tune.py` and other commands as a user would type them."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)  # added to the environment of the tests
    temporary: Path = field(init=False)  # for the temporary files of the commands

    def __post_init__(self) -> None:
        # Not below `folder`: Ray's sockets lie in it, and their paths may have 107 characters.
        self.temporary = Path(tempfile.mkdtemp(prefix="w-"))
        finalize(self, shutil.rmtree, self.temporary, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the commands: that of the tests, one thread, our modules, a temporary folder."""
        own = {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(PROJECT),
            "TMPDIR": str(self.temporary),
        }
        return os.environ | own | self.variables

    def start(self, *arguments: str, output: str = "output.txt") -> subprocess.Popen[str]:
        """Start tune.py, which prints to the file `output`."""
        with (self.folder / output).open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(PROJECT / "tune.py"), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a test can send Ctrl-C to the whole group, as a terminal does
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str, output: str = "output.txt", timeout: float = 600) -> tuple[int, str]:
        """Run tune.py and wait for its end; returns its exit code and its output."""
        code = self.start(*arguments, output=output).wait(timeout)
        return code, self.printed(output)

    def python(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` in the folder and wait for its end."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def wait_for_line(self, process: subprocess.Popen[str], text: str, output: str = "output.txt") -> None:
        """Wait until a run has printed `text`; fails where it ends before that."""
        wait_for(lambda: text in self.printed(output) or process.poll() is not None)
        assert text in self.printed(output), self.printed(output)

    def printed(self, output: str = "output.txt") -> str:
        """Return what a run has printed so far."""
        return (self.folder / output).read_text()


def wait_for(condition: Callable[[], object], seconds: float = 300, describe: Callable[[], object] = str) -> None:
    """Wait until `condition` holds; after `seconds` fail with what `describe` returns."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s: {describe()}"
        time.sleep(0.1)

"""A private Ray: nobody else gets into it, and it gives back the placement groups of dead actors.

All tests read what one program has found, because Ray takes long to start.
"""

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Workplace
from tuner.errors import SearchError
from tuner.workers import connection

PROGRAM = """
import json, os, signal, stat, time
import psutil, ray
from ray.util import placement_group, placement_group_table
from tuner.workers import connection, placement

PLACE = [{"CPU": 0.1}]

@ray.remote(num_cpus=0)
class Controller:
    def __init__(self):
        self.group = placement_group(PLACE)

    def mode(self):
        return os.environ.get("RAY_AUTH_MODE")

    def ready(self):
        self.group.wait(60)
        return self.group.id.hex()

def states():
    table = placement_group_table()
    return [table[id]["state"] for id in (*made, drivers.id.hex())]

signal.signal(signal.SIGTERM, signal.default_int_handler)
with connection.connect("local"):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    controllers = [Controller.remote() for _ in range(2)]
    mode = ray.get(controllers[0].mode.remote())
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    sockets = [(p.name(), *c.laddr) for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
    lines = [" ".join(p.cmdline()) for p in family]

    made = ray.get([controller.ready.remote() for controller in controllers])
    drivers = placement_group(PLACE)
    drivers.wait(60)
    groups = [states()]
    ray.kill(controllers[0])
    until = time.monotonic() + 60
    while states() == groups[0] and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2.5 * placement.CHECK_SECONDS)  # at least two more checks
    groups.append(states())
token = connection.TOKEN_FILE.expanduser()
print(json.dumps({
    "groups": groups,
    "sockets": sockets,
    "mode": mode,
    "signals": all(handler is signal.default_int_handler for handler in handlers),
    "permissions": oct(stat.S_IMODE(token.stat().st_mode)),
    "token is shown": any(token.read_text().strip() in line for line in lines),
}))
"""


@pytest.mark.parametrize("home", ["missing", "read-only", "none"])
def test_the_token_lies_in_the_scratch_folder_where_the_home_cannot_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    for name in ("RAY_AUTH_TOKEN", connection.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    if home == "none":
        monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    elif home == "missing":
        monkeypatch.setenv("HOME", str(tmp_path / "no" / "home"))
    else:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    tokens = []
    for name in ("first", "second"):  # Ray reads its token once in a process
        scratch = tmp_path / name
        scratch.mkdir()
        with connection._token_outside_of_home(scratch):
            file = Path(os.environ[connection.TOKEN_PATH])
            assert file.parent == scratch and stat.S_IMODE(file.stat().st_mode) == 0o600
            tokens.append(file.read_text())
    assert connection.TOKEN_PATH not in os.environ
    assert len(tokens[0]) == 64 and tokens[0] == tokens[1]


def test_a_home_that_can_hold_the_token_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", connection.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with connection._token_outside_of_home(tmp_path):
        assert connection.TOKEN_PATH not in os.environ
    assert list((tmp_path / ".ray").iterdir()) == []


def test_a_temporary_folder_with_a_long_path_is_replaced_by_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = tmp_path / ("x" * 74), Path(tempfile.mkdtemp(dir="/tmp"))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(connection, "SHORT_FOLDERS", (str(tmp_path / "missing"), str(short)))
    try:
        assert connection._short_parent() == short
        monkeypatch.setattr(connection, "SHORT_FOLDERS", (str(tmp_path / "missing"),))
        with pytest.raises(SearchError, match=r"too long for the sockets of Ray.*set TMPDIR to a folder"):
            connection._short_parent()
        monkeypatch.setattr(tempfile, "tempdir", str(short))
        assert connection._short_parent() == short
    finally:
        short.rmdir()


@pytest.mark.slow
def test_a_search_runs_with_a_long_temporary_folder_and_no_home(workplace: Workplace) -> None:
    long = workplace.folder / ("x" * 74)
    long.mkdir()
    workplace.variables |= {"TMPDIR": str(long), "HOME": str(workplace.folder / "no" / "home")}
    code, printed = workplace.run("--trials", "1")
    assert code == 0 and "best trial 000" in printed, printed
    assert not list(long.glob("tuner-*"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints; Ray makes its token in the folder, which is the program's home."""
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_AUTH_MODE", raising=False)
        environment.delenv("RAY_ADDRESS", raising=False)
        done = Workplace(folder, variables={"HOME": str(folder)}).python("-c", PROGRAM, timeout=300)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


@pytest.mark.slow
def test_it_asks_for_a_token_that_nobody_sees(found: dict[str, Any]) -> None:
    # Ray 2.60 listens on every address whatever address its node is given, except for its dashboard: so it needs the
    # token.
    dashboard = {address for name, address, _ in found["sockets"] if name.startswith("ray-dashboard")}
    assert dashboard <= {"127.0.0.1", "::1"}, found["sockets"]
    assert found["mode"] == "token" and found["permissions"] == "0o600" and not found["token is shown"]


@pytest.mark.slow
def test_signals_are_handled_as_before_it_started(found: dict[str, Any]) -> None:
    assert found["signals"]  # Ray would replace the handler of SIGTERM


@pytest.mark.slow
def test_the_group_of_a_dead_actor_is_removed_and_no_other(found: dict[str, Any]) -> None:
    before, after = found["groups"]
    assert before == ["CREATED", "CREATED", "CREATED"]
    assert after == ["REMOVED", "CREATED", "CREATED"]

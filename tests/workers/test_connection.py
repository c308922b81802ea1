"""Nobody else gets into the Ray that a search starts for itself."""

import json

import pytest

from tests.support.workplace import Workplace

PROGRAM = """
import json, os, signal, stat
import psutil, ray
from tuner.workers import connection

@ray.remote
class Actor:
    def ready(self):
        return os.environ.get("RAY_AUTH_MODE")

signal.signal(signal.SIGTERM, signal.default_int_handler)
with connection.connect("local"):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    actor = Actor.remote()
    mode = ray.get(actor.ready.remote())
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    sockets = [(p.name(), *c.laddr) for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
    lines = [" ".join(p.cmdline()) for p in family]
token = connection.TOKEN_FILE.expanduser()
print(json.dumps({
    "sockets": sockets,
    "mode": mode,
    "signals": all(handler is signal.default_int_handler for handler in handlers),
    "permissions": oct(stat.S_IMODE(token.stat().st_mode)),
    "token is shown": any(token.read_text().strip() in line for line in lines),
}))
"""


@pytest.mark.slow
def test_a_private_ray_asks_for_a_token_that_nobody_sees(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workplace.folder))  # its token is made there
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    done = workplace.python("-c", PROGRAM, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Ray 2.60 listens on every address whatever address its node is given, its dashboard apart: the token is the door.
    dashboard = {address for name, address, _ in found["sockets"] if name.startswith("ray-dashboard")}
    assert dashboard <= {"127.0.0.1", "::1"}, found["sockets"]
    assert found["signals"]  # Ctrl-C and SIGTERM mean what they meant before: Ray would take the latter
    assert found["mode"] == "token" and found["permissions"] == "0o600" and not found["token is shown"]

"""Hosts made of Linux namespaces on one machine, each with a real sshd: a cluster without a second machine.

Every host has its own network, mounts, host name and process ids, and therefore its own address, home, /tmp, /dev/shm
and /run. All hosts see the Python environment of the tests, read-only and at the same path, and one shared folder. The
machine itself is not changed: the switch between the hosts lies in the client's namespace, and everything ends with the
first process of each host.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.missing import not_installed
from tests.support.workplace import wait_for

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync")
NETWORK = "198.18.0"  # a part of the range for tests between networks (RFC 2544); only the hosts see it
OWN = Path("/mnt")  # in every host this folder is replaced by the host's own files and those that all share
HOME, SHARED, SETUP = OWN / "home", OWN / "shared", OWN / "setup"
KEY = SETUP / "key"
# The environment of the tests, and the Python that it was made from: every host sees them at the same paths.
ENVIRONMENT, BASE = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()

# The first process of a host. It mounts folders, starts sshd, and then reaps the processes whose parents have ended.
FIRST_PROCESS = """
set -eu
mount -t tmpfs tmpfs {own}
mkdir {own}/keep {home} {shared} {setup}
i=0; for path in {environment}; do
  i=$((i + 1)); mkdir {own}/keep/$i; mount --bind $path {own}/keep/$i; mount -o remount,bind,ro {own}/keep/$i
done
mount --bind {folder}/shared {shared}; mount --bind {folder}/setup {setup}
for path in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $path; done
i=0; for path in {environment}; do
  i=$((i + 1)); mkdir -p $path; mount --bind {own}/keep/$i $path
done
mount --bind {setup}/passwd /etc/passwd; mount --bind {setup}/hosts /etc/hosts
hostname {name}; ip link set lo up
mkdir -m 755 /run/sshd
/usr/sbin/sshd -f {setup}/sshd_config -E /run/sshd.log
touch /run/ready
while :; do sleep 1000 & wait || :; done
"""


def require() -> None:
    """Skip the test where hosts cannot be made on this machine; fail where CI is set and programs are missing."""
    if os.geteuid() != 0:
        pytest.skip("hosts made of namespaces need root")
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        not_installed(f"not installed: {', '.join(absent)} (Debian: openssh-server, openssh-client, rsync, iproute2)")
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", OWN],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"namespaces are not allowed: {tried.stderr.strip()}")


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host: tests run commands in it as on its console, and the other hosts reach it by ssh."""

    name: str
    address: str
    launcher: subprocess.Popen[bytes]

    @property
    def first_process(self) -> int:
        """Return the process id that the host's first process has on the machine."""
        pid = self.launcher.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def command(self, line: str) -> list[str]:
        """Return the command that runs a line of shell in the host's home, without the environment of the tests."""
        enter = ["nsenter", f"--target={self.first_process}", "--all", f"--wdns={HOME}"]
        clean = ["env", "-i", f"HOME={HOME}", "USER=root", f"PATH={ENVIRONMENT / 'bin'}:{os.environ['PATH']}"]
        return [*enter, *clean, "TERM=dumb", "PYTHONUNBUFFERED=1", "bash", "-c", line]

    def run(self, line: str, timeout: float = 300, check: bool = True) -> str:
        """Run a line of shell and wait for its end; returns its output and errors."""
        ran = subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or ran.returncode == 0, f"{self.name}: {line}: exit code {ran.returncode}\n{ran.stdout}"
        return ran.stdout

    def start(self, line: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a line of shell, which prints to the file `output`."""
        with output.open("wb") as file:
            return subprocess.Popen(self.command(line), stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def kill(self, *names: str) -> list[str]:
        """Kill (-9) every process of this host that has one of these names; returns the names of those it found."""
        listed = [line.split(maxsplit=1) for line in self.run("ps -A -o pid=,comm=").splitlines()]
        found = [(pid, name.strip()) for pid, name in listed if name.strip() in names]
        if found:
            self.run("kill -9 " + " ".join(pid for pid, _ in found), check=False)
        return [name for _, name in found]


class Hosts:
    """A client and some hosts on one network; `close` ends them and every process on them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-"))
        self.shared = self.folder / "shared"  # on the machine; SHARED on every host
        self._addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(("client", *names), start=1)}
        self._started: list[Host] = []
        try:
            self._write_setup()
            for name in self._addresses:
                self._start(name)
            self.client, *self.hosts = self._started
            self._connect()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        """Return the host with this name."""
        return next(host for host in self._started if host.name == name)

    def close(self) -> None:
        """End every host, in whatever state it is."""
        for host in self._started:
            host.launcher.kill()  # the host's first process ends with it, and with that one all processes and mounts
        for host in self._started:
            host.launcher.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_setup(self) -> None:
        """Write the keys, users and host names that all hosts read."""
        setup = self.folder / "setup"
        setup.mkdir(mode=0o755)
        self.shared.mkdir()
        for key in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", setup / key], check=True)
        users = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{HOME}:/bin/bash"
        (setup / "passwd").write_text("\n".join([root, *(user for user in users if not user.startswith("root:"))]))
        names = "".join(f"{address} {name}\n" for name, address in self._addresses.items())
        (setup / "hosts").write_text("127.0.0.1 localhost\n" + names)
        (setup / "sshd_config").write_text(
            f"HostKey {SETUP}/host_key\nAuthorizedKeysFile {SETUP}/key.pub\nStrictModes no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n"
        )

    def _start(self, name: str) -> None:
        program = FIRST_PROCESS.format(
            own=OWN,
            home=HOME,
            shared=SHARED,
            setup=SETUP,
            folder=self.folder,
            name=name,
            environment=shlex.join([str(ENVIRONMENT), str(BASE)]),
        )
        own = ["--mount", "--uts", "--pid", "--net", "--ipc", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        # If the tests themselves are killed, the hosts end with them.
        launcher = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *own, "bash", "-c", program], stdin=subprocess.DEVNULL
        )
        host = Host(name=name, address=self._addresses[name], launcher=launcher)
        self._started.append(host)
        wait_for(lambda: self._is_ready(host), 30)

    @staticmethod
    def _is_ready(host: Host) -> bool:
        assert host.launcher.poll() is None, f"{host.name}: its first process ended with {host.launcher.returncode}"
        try:
            return Path(f"/proc/{host.first_process}/root/run/ready").exists()
        except ValueError:
            return False  # the launcher has no child yet

    def _connect(self) -> None:
        """Make a bridge in the client, and connect every host to it."""
        self.client.run(f"ip link add switch type bridge && ip addr add {self.client.address}/24 dev switch")
        self.client.run("ip link set switch up")
        inside = [
            "nsenter",
            f"--target={self.client.first_process}",
            "--net",
        ]  # process ids stay the machine's
        for host in self.hosts:
            cable = ["ip", "link", "add", host.name, "type", "veth", "peer", "name", "eth0"]
            subprocess.run([*inside, *cable, "netns", str(host.first_process)], check=True)
            self.client.run(f"ip link set {host.name} master switch up")
            host.run(f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up")
        for host in self.hosts:
            wait_for(lambda host=host: "ready" in self.client.run(f"{self.ssh(host)} echo ready", check=False), 30)

    @staticmethod
    def ssh(host: Host) -> str:
        """Return the start of a line of shell: what follows it runs on the host."""
        return (
            f"ssh -i {KEY} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR {host.address}"
        )

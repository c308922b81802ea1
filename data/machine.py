"""The CPUs and the memory that this process may use: those of its container, which may be fewer than the machine has.

A container's limits are those of its control groups, each of which may limit the ones below it (cgroup v2, and v1 of
older hosts). Where there are none, as on macOS, they are the machine's own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def memory(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Returns the bytes of memory of the container or the machine, used or not.

    Args:
        root: where the control groups are mounted.
        membership: says which of them this process is in.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [int(text) for text in _settings(names, "memory", root, membership) if text.isdecimal()]
    return min([machine, *limits])


def cpus(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> float:
    """Returns the CPUs of the container or the machine: at most those that this process may be scheduled on.

    Args:
        root: where the control groups are mounted.
        membership: says which of them this process is in.
    """
    schedulable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [text.split() for text in _settings(("cpu.max",), "cpu", root, membership)]
    quotas = _settings(("cpu.cfs_quota_us",), "cpu", root, membership)
    periods = _settings(("cpu.cfs_period_us",), "cpu", root, membership)
    shares += [list(pair) for pair in zip(quotas, periods, strict=False)]
    limits = [int(share[0]) / int(share[1]) for share in shares if len(share) == 2 and all(map(str.isdecimal, share))]
    return min([float(schedulable), *(limit for limit in limits if limit > 0)])


def _settings(names: tuple[str, ...], controller: str, root: Path, membership: Path) -> Iterator[str]:
    """Yields the contents of these files of the process's control group and of all groups above it."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / controller if controllers else root
        # In a container, the group may be mounted as the root, whatever its path is on the host.
        group = mounted / path.strip("/")
        for folder in dict.fromkeys([group, *group.parents]):
            if folder.is_relative_to(mounted):
                yield from (
                    file.read_text(encoding="utf-8").strip() for file in map(folder.joinpath, names) if file.is_file()
                )

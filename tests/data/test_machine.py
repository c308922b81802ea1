"""The CPUs and the memory of a container."""

import os
from pathlib import Path

import pytest

from data import machine

GIB = 1 << 30


def container(folder: Path, membership: str, **files: str) -> dict[str, Path]:
    (folder / "membership").write_text(membership)
    for name, text in files.items():
        path = folder / "cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {"root": folder / "cgroup", "membership": folder / "membership"}


def test_without_a_limit_they_are_those_of_the_machine(tmp_path: Path) -> None:
    unlimited = container(tmp_path, "0::/\n", memory_max="max", cpu_max="max 100000")
    assert machine.memory(**unlimited) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.cpus(**unlimited) == len(os.sched_getaffinity(0))
    nowhere = {"root": tmp_path / "none", "membership": tmp_path / "none"}
    assert machine.memory(**nowhere) == machine.memory(**unlimited)
    assert machine.cpus(**nowhere) == machine.cpus(**unlimited)


def test_the_lowest_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    limits = {"a__memory_max": str(GIB), "a__b__memory_max": "max", "memory_max": str(2 * GIB)}
    nested = container(tmp_path, "0::/a/b\n", **limits, a__cpu_max="50000 100000", a__b__cpu_max="max 100000")
    assert machine.memory(**nested) == GIB
    assert machine.cpus(**nested) == 0.5


def test_a_container_that_sees_its_own_group_as_the_root_is_limited(tmp_path: Path) -> None:
    inside = container(tmp_path, "0::/kubepods/pod1\n", memory_max=str(GIB), cpu_max="25000 100000")
    assert machine.memory(**inside) == GIB
    assert machine.cpus(**inside) == pytest.approx(0.25)


def test_the_older_control_groups_are_read_too(tmp_path: Path) -> None:
    old = container(
        tmp_path,
        "4:memory:/\n2:cpu,cpuacct:/\n",
        **{
            "memory__memory.limit_in_bytes": str(GIB),
            "cpu__cpu.cfs_quota_us": "75000",
            "cpu__cpu.cfs_period_us": "100000",
        },
    )
    assert machine.memory(**old) == GIB
    assert machine.cpus(**old) == pytest.approx(0.75)

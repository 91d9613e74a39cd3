"""The memory that a process may have: the machine's, or less in a container or a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentdiff.app.doctor import memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``system(cgroup, files)``: a machine with 64 GiB, 32 of them available, and these control groups."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 16 * 2**20)

    def write(cgroup: str, files: dict[str, str]) -> None:
        contents = {f"groups/{name}": text for name, text in files.items()}
        contents |= {"proc/self/cgroup": cgroup, "proc/meminfo": f"MemAvailable: {32 * 2**20} kB\n"}
        for name, text in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


def version_2(folder: str, limit: str, used: int = 0, idle: int = 0) -> dict[str, str]:
    stat = f"anon 5\ninactive_file {idle}\n"
    return {f"{folder}memory.max": f"{limit}\n", f"{folder}memory.current": f"{used}\n", f"{folder}memory.stat": stat}


def test_without_limits_it_is_the_machine_s(system) -> None:
    system("0::/job\n", version_2("job/", "max"))
    assert (memory.total_memory(), memory.available_memory()) == (64 * GIB, 32 * GIB)


def test_the_least_of_the_own_group_and_those_around_it(system) -> None:
    system("0::/job/step\n", {**version_2("job/", f"{8 * GIB}", 5 * GIB, GIB), **version_2("job/step/", "max")})
    assert (memory.total_memory(), memory.available_memory()) == (8 * GIB, 4 * GIB)


def test_a_container_sees_its_own_group_as_the_root(system) -> None:
    system("0::/../other\n", version_2("", f"{2 * GIB}", 3 * GIB))
    assert memory.available_memory() == 0


def test_version_1(system) -> None:
    files = {
        "memory/job/memory.limit_in_bytes": f"{8 * GIB}",
        "memory/job/memory.usage_in_bytes": f"{2 * GIB}",
        "memory/job/memory.stat": f"cache 9\ntotal_inactive_file {GIB}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "0",
        "memory/memory.stat": "",
    }
    system("4:memory:/job\n1:cpu:/\n0::/\n", files)
    assert (memory.total_memory(), memory.available_memory()) == (8 * GIB, 7 * GIB)

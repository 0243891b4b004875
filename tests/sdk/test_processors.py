"""Threads follow what this process may use: affinity, physical cores, the container's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trrg_sdk import processors
from trrg_sdk.cli import main
from trrg_sdk.processors import Processors


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight processors, two to a core, of which six may be used; no limit."""
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    monkeypatch.setattr(processors, "_TOPOLOGY", str(tmp_path / "cpu{}"))
    monkeypatch.setattr(processors, "_CONTAINER", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    return tmp_path


def test_physical_cores_of_the_allowed_processors_count(machine: Path) -> None:
    found = processors.processors()
    assert found == Processors(logical=8, allowed=6, cores=3, limit=None)
    assert found.threads == 3


@pytest.mark.parametrize(
    ("text", "limit", "threads"), [("150000 100000", 1.5, 2), ("10000 100000", 0.1, 1), ("900000 100000", 9.0, 3)]
)
def test_the_limit_of_the_container_is_kept(machine: Path, text: str, limit: float, threads: int) -> None:
    (machine / "cpu.max").write_text(text)
    found = processors.processors()
    assert (found.limit, found.threads) == (limit, threads)


@pytest.mark.parametrize("text", ["max 100000", "", "1 2 3", "a b"])
def test_no_limit_or_none_that_can_be_read(machine: Path, text: str) -> None:
    (machine / "cpu.max").write_text(text)
    assert processors.processors().limit is None


def test_without_topology_the_allowed_processors_count(machine: Path) -> None:
    (machine / "cpu3").unlink()
    found = processors.processors()
    assert (found.cores, found.threads) == (None, 6)


def test_without_affinity_all_processors_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert processors.processors() == Processors(8, None, None, None)
    assert processors.processors().threads == 8


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What Linux says of two processors."""
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: avx2\n"
    )
    monkeypatch.setattr(processors, "_CPUINFO", path)
    processors.instructions.cache_clear()
    yield path
    processors.instructions.cache_clear()


def test_instructions_are_those_of_the_first_processor(cpuinfo: Path) -> None:
    assert processors.instructions() == {"fpu", "avx2", "avx512_vnni"}


def test_instructions_that_the_system_does_not_tell(cpuinfo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cpuinfo.unlink()
    assert processors.instructions() == frozenset()
    assert main(["doctor"]) == 0
    assert "arithmetic" in (text := capfd.readouterr().out)
    assert "not known on this system" in text


def test_doctor_says_what_was_found_and_chosen(machine: Path, cpuinfo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (machine / "cpu.max").write_text("150000 100000")
    assert main(["doctor"]) == 0
    rows = dict(line.split("  ", maxsplit=1) for line in capfd.readouterr().out.splitlines() if "  " in line)
    assert rows["processors"].strip() == "8"
    assert rows["arithmetic"].strip() == "avx2, avx512_vnni"
    assert rows["affinity"].strip() == "6 of them allowed"
    assert rows["physical cores"].strip() == "3 allowed"
    assert rows["container limit"].strip() == "1.5 processors"
    assert rows["threads"].strip().startswith("2 for a graph, 1 for a decoder narrower than 512")
    assert rows["threads reading ahead"].strip().startswith("2,")


def test_doctor_says_what_a_system_does_not_tell(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert main(["doctor"]) == 0
    text = capfd.readouterr().out
    assert "not known on this system" in text
    assert "8 for a graph" in text

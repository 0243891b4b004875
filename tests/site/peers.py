"""Real peers for tests: dcmtk's programs and Orthanc, found on this machine, or the test is skipped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LOCAL = "127.0.0.1"


def dcmtk(name: str) -> str:
    """dcmtk's program: pynetdicom installs scripts of the same names, which come first in a virtual environment."""
    for folder in os.get_exec_path():
        path = Path(folder) / name
        if path.is_file() and path.read_bytes()[:2] != b"#!":
            return str(path)
    pytest.skip(f"dcmtk's {name} is not installed (.ci/debian-packages)")


def run(program: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], *, seconds: float = 60) -> Any:
    """The first true value; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return value


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOCAL, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def started(command: Sequence[object], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the test."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Orthanc:
    """A PACS in a folder of the test."""

    aet: str
    port: int
    rest: int

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{LOCAL}:{self.rest}{path}", timeout=10) as answer:
            return json.load(answer)

    def studies(self) -> list[dict[str, Any]]:
        return [self.get(f"/studies/{name}") for name in self.get("/studies")]

    def instances(self) -> list[dict[str, Any]]:
        return [self.get(f"/instances/{name}/simplified-tags") for name in self.get("/instances")]


@contextlib.contextmanager
def orthanc(folder: Path, *, modalities: dict[str, Any]) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (.ci/debian-packages)")
    folder.mkdir(exist_ok=True)
    pacs = Orthanc("ORTHANC", free_port(), free_port())
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": pacs.rest,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": pacs.port,
        "DicomAet": pacs.aet,
        "DicomCheckCalledAet": True,
        "DicomModalities": modalities,
        "StableAge": 1,
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with started([program, folder / "orthanc.json"], folder / "orthanc.log"):
        until(lambda: listens(pacs.rest) and listens(pacs.port), seconds=60)
        yield pacs

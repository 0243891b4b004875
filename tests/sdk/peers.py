"""Programs of others that judge what we write, dicom3tools and dcmtk; a test says so where it has to skip them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def run_peer(program: str, *arguments: str, package: str) -> str:
    """What the program says, both streams together.

    Skips when it is not installed: ``.ci/debian-packages`` installs it.
    """
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    done = subprocess.run([path, *arguments], capture_output=True, stdin=subprocess.DEVNULL)
    return (done.stdout + done.stderr).decode("utf-8", errors="replace")


def dciodvfy_errors(content: bytes, folder: Path) -> list[str]:
    """Every line in which dciodvfy finds an error; it must have recognised the object."""
    path = folder / "checked.dcm"
    path.write_bytes(content)
    said = run_peer("dciodvfy", str(path), package="dicom3tools").splitlines()
    assert said, "dciodvfy said nothing"
    return [line for line in said if line.startswith("Error") or "Abort" in line]


def dsrdump(content: bytes, folder: Path) -> str:
    """The document as dcmtk understands it, with codes and whole texts."""
    path = folder / "dumped.dcm"
    path.write_bytes(content)
    return run_peer("dsrdump", "+Pl", "+Pc", "+U8", str(path), package="dcmtk")

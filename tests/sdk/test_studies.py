"""How headers of a folder are read: alone where the disk gives them at once, several at a time where it does not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.chest_dicom import chest_bytes
from trrg_sdk.site.studies import read_entries
from trrg_sdk.site.walk import Found, Tree

COUNT = 20


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    content = chest_bytes()
    for number in range(COUNT):
        (tmp_path / f"{number}.dcm").write_bytes(content)
    return Tree(tmp_path)


def readers(tree: Tree, monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> set[int]:
    """The threads that opened files, each of which takes so long."""
    threads = set()
    content = chest_bytes()

    def opened(self: Tree, found: Found) -> Any:
        threads.add(threading.get_ident())
        time.sleep(seconds)
        return BytesIO(content)

    monkeypatch.setattr(Tree, "open", opened)
    files = list(tree.walk())
    with ThreadPoolExecutor(4) as pool:
        entries = read_entries(tree, files, {}, pool, lambda: False)
    assert entries.keys() == {found.key for found in files}
    assert all(entry.code == "" for entry in entries.values())
    return threads


def test_a_disk_that_keeps_one_waiting_is_asked_for_several_files_at_once(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(readers(tree, monkeypatch, seconds=0.05)) > 2


def test_files_that_are_there_at_once_are_read_by_one_thread(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10**9))  # no time passes but that of the processor: other work of the machine does not count
    monkeypatch.setattr(time, "perf_counter", lambda: next(now) * 1e-9)
    assert readers(tree, monkeypatch, seconds=0) == {threading.get_ident()}


def test_entries_stand_beside_their_files(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "5.dcm").write_bytes(b"no DICOM")
    (tmp_path / "15.dcm").write_bytes(b"nor this")
    files = list(tree.walk())
    (tmp_path / "7.dcm").unlink()
    with ThreadPoolExecutor(4) as pool:
        entries = read_entries(tree, files, {}, pool, lambda: False)
    codes = {Path(found.path).name: entries[found.key].code for found in files if found.key in entries}
    assert {name for name, code in codes.items() if code == "not_dicom"} == {"5.dcm", "15.dcm"}
    assert len(codes) == COUNT - 1 and "7.dcm" not in codes

"""A disk that fills up, a folder that becomes read-only, and a process that dies: at every point of writing."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.sdk.kill_batch import compare, disturb
from tests.sdk.site_folder import TEXT, TINY, audited, contents, partials, run, states, studies
from trrg_sdk.backends import fake
from trrg_sdk.cli import main

COUNT = 2


class Died(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)
    studies(tmp_path / "in", COUNT)
    out = str(tmp_path / "out")
    return lambda: main(["batch", str(tmp_path / "in"), "--out", out, "--bundle", str(TINY), "--format", "text,json"])


class Faults:
    """Lets the ``at``-th write under a folder fail; every kind of write there is counts."""

    def __init__(self, folder: Path, error: Callable[[], BaseException], at: int) -> None:
        self.folder, self.error, self.at = folder, error, at
        self.seen = 0
        self._lock = threading.Lock()  # files are synced in several threads

    def hit(self, path: object) -> None:
        if os.fspath(path).startswith(str(self.folder)):  # type: ignore[call-overload]
            with self._lock:
                self.seen += 1
                now = self.seen == self.at
            if now:
                raise self.error()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("replace", "mkdir", "fsync"):
            patch.setattr(os, name, self._before(getattr(os, name)))
        real_open = os.open

        def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self.hit(path)
            return real_open(path, flags, *rest, **options)

        patch.setattr(os, "open", opened)
        patch.setattr("trrg_sdk.site.ledger.sqlite3.connect", self._connect(sqlite3.connect))

    def _before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **options: Any) -> Any:
            self.hit(os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first)
            return real(first, *rest, **options)

        return call

    def _connect(self, real: Callable[..., Any]) -> Callable[..., Any]:
        faults = self

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *rest: Any) -> Any:  # type: ignore[override]
                if statement.startswith(("BEGIN", "PRAGMA journal")):
                    faults.hit(faults.folder)
                return super().execute(statement, *rest)

            def executemany(self, statement: str, *rest: Any) -> Any:  # type: ignore[override]
                faults.hit(faults.folder)
                return super().executemany(statement, *rest)

        return lambda *arguments, **options: real(*arguments, factory=Connection, **options)


def faults_until_none(
    batch: Callable[[], int], tmp_path: Path, error: Callable[[], BaseException]
) -> Iterator[int | Died]:
    """Run a batch into an empty folder with a fault at the first write, the second, ... until none is hit."""
    for at in range(1, 400):
        out = tmp_path / "out"
        if out.exists():
            out.rename(tmp_path / f"out-{at}")
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(out, error, at)
            faults.install(patch)
            result: int | Died
            try:
                result = batch()
            except Died as died:
                result = died
        if faults.seen < at:
            assert at > 30, "hardly any write was seen"
            return
        yield result
    raise AssertionError("never came to an end")


def check_resumed(batch: Callable[[], int], out: Path) -> dict[str, bytes]:
    assert batch() == 0
    assert states(out) == {"done": COUNT} and set(audited(out).values()) == {1} and audited(out).total() == COUNT
    assert not partials(out) and (out / "index.html").stat().st_size and (out / "summary.csv").stat().st_size
    return contents(out)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_stops_clearly_and_the_next_run_goes_on(
    batch: Callable[[], int], tmp_path: Path, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    results = set()
    faults = faults_until_none(batch, tmp_path, lambda: OSError(code, os.strerror(code)))
    for result in faults if code == errno.ENOSPC else itertools.islice(faults, 12):  # the points are the same
        said = capfd.readouterr().err.splitlines()
        assert result == 2 and said[-1].startswith("trrg: --out: "), said
        assert not (tmp_path / "out").exists() or not partials(tmp_path / "out")
        results.add(tuple(sorted(check_resumed(batch, tmp_path / "out").items())))
        capfd.readouterr()
    assert len(results) == 1


def test_a_death_at_any_write_loses_and_doubles_nothing(batch: Callable[[], int], tmp_path: Path) -> None:
    results = set()
    for result in faults_until_none(batch, tmp_path, Died):
        assert isinstance(result, Died)
        results.add(tuple(sorted(check_resumed(batch, tmp_path / "out").items())))
    assert len(results) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_said_at_once(batch: Callable[[], int], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert batch() == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, of memory; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_really_fills_up(small_disk: Path, tmp_path: Path) -> None:
    studies(tmp_path / "in", 30)
    arguments = ("batch", tmp_path / "in", "--out", small_disk / "out", "--threads", "1")
    stopped = run(*arguments)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("trrg: --out: ") and "full" in stopped.stderr
    assert "Traceback" not in stopped.stderr and not partials(small_disk / "out")
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run(*arguments).returncode == 0
    assert set(audited(small_disk / "out").values()) == {1} and states(small_disk / "out") == {"done": 30}


def test_a_file_system_that_becomes_read_only(small_disk: Path, tmp_path: Path) -> None:
    studies(tmp_path / "in", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    stopped = run("batch", tmp_path / "in", "--out", small_disk / "out", "--threads", "1")
    assert stopped.returncode == 2
    assert stopped.stderr.startswith("trrg: --out: cannot write into this folder (it is read-only)")


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The system itself refuses the write, also to SQLite."""
    studies(tmp_path / "in", 12)
    arguments = ("batch", tmp_path / "in", "--out", tmp_path / "out", "--threads", "1")
    stopped = run(*arguments, preexec_fn=_small_files)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("trrg: --out: ") and "Traceback" not in stopped.stderr
    assert not partials(tmp_path / "out")
    assert run(*arguments).returncode == 0
    assert set(audited(tmp_path / "out").values()) == {1} and states(tmp_path / "out") == {"done": 12}


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.slow
def test_fifty_kills_at_random(tmp_path: Path) -> None:
    """``python -m tests.sdk.kill_batch`` does the same to any folder, as often as it is told."""
    count, kills, more = 150, 50, ("--threads", "1", "--format", "text,json")
    studies(tmp_path / "in", count)
    killed = disturb(tmp_path / "in", tmp_path, kills=kills, seed=6, more=more)
    assert sum(killed["landed"].values()) == kills and set(killed["landed"]) == {"start", "file", "between"}, killed
    for out in killed["outs"]:
        found = compare(tmp_path / "in", out, tmp_path / "calm", more=more)
        assert found["studies"] == count and found["same_states"] and found["audited_once"], (killed, found)
        assert not found["differing"] and not found["partials_at_the_end"], (killed, found)

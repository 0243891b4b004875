from __future__ import annotations

import io
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.site_folder import audited, command, environment, states, studies
from trrg_sdk.site.lock import Stop
from trrg_sdk.site.progress import EVERY_S, Lines, RichBar
from trrg_sdk.site.watch import AT_ONCE, Bell

pytest.importorskip("watchdog")


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """``trrg watch in --out out`` in a process of its own; the rescan is far away, so events must do."""
    (tmp_path / "in").mkdir()
    arguments = command("watch", tmp_path / "in", "--out", tmp_path / "out", "--settle", "0.5", "--rescan", "3600")
    process = subprocess.Popen(
        [*arguments, "--threads", "1"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if what():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened in two minutes")


def finished(out: Path) -> int:
    log = out / "audit.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def test_studies_are_reported_as_they_arrive(watching: subprocess.Popen[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    wait_for(lambda: (out / "ledger.sqlite").exists() and (out / "index.html").exists(), watching)
    studies(tmp_path / "in", 2)
    wait_for(lambda: finished(out) == 2, watching)
    slow = tmp_path / "in" / "slow"
    content = chest_bytes(study="2.25.99")
    with slow.open("wb") as stream:  # grows for longer than the settle time
        for start in range(0, len(content), len(content) // 6 + 1):
            stream.write(content[start : start + len(content) // 6 + 1])
            stream.flush()
            time.sleep(0.2)
    studies(tmp_path / "in", AT_ONCE + 3, first=100)
    wait_for(lambda: finished(out) == AT_ONCE + 6, watching)
    watching.send_signal(signal.SIGTERM)
    said, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert states(out) == {"done": AT_ONCE + 6} and set(audited(out).values()) == {1}
    assert "this time:" in said
    assert not list(out.rglob("*.partial"))


def test_the_bell_waits_for_an_event_a_stop_or_the_time() -> None:
    bell, stop = Bell(), Stop()
    bell.wait(stop, 3600)  # rung from the beginning
    bell.wait(stop, 0)
    bell.ring()
    bell.ring()
    bell.wait(stop, 3600)
    stop.ask()
    bell.wait(stop, 3600)


def test_the_second_signal_interrupts() -> None:
    before, stop = signal.getsignal(signal.SIGINT), Stop()
    with stop.on_signals():
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_lines_say_rate_counts_and_time_left() -> None:
    stream, clock = io.StringIO(), iter((0.0, 0.0, 1.0, EVERY_S, EVERY_S, EVERY_S + 2, EVERY_S + 2))
    lines = Lines(stream, clock=lambda: next(clock))
    lines.start(4)
    lines.advance("done")
    lines.advance("refused")
    lines.advance("done")
    lines.stop()
    assert stream.getvalue().splitlines() == [
        "studies to report: 4",
        "2 of 4 (1 done, 1 refused), 0.2 a second, 10 s left",
        "3 of 4 (2 done, 1 refused), 0.2 a second, 4 s left",
    ]


def test_nothing_to_do_is_no_line() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(0)
    lines.stop()
    assert stream.getvalue() == ""


def test_the_bar_shows_counts() -> None:
    pytest.importorskip("rich")
    stream = io.StringIO()
    bar = RichBar(stream)
    bar.start(0)
    bar.stop()
    bar.start(2)
    bar.advance("done")
    bar.advance("failed")
    bar.stop()
    assert "2/2" in stream.getvalue() and "1 done, 1 failed" in stream.getvalue()

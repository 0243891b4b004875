"""Large pages are asked for where they are given to who asks, for what is filled, and not for a single text."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sdk.chest_dicom import chest_bytes
from trrg_sdk import Bundle, Reporter, doctor
from trrg_sdk.backends import fake, large_pages
from trrg_sdk.backends.large_pages import LEAST_WEIGHTS, LargePages, use_large_pages
from trrg_sdk.engine import Engine

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TINY = Path(__file__).parent / "tiny_bundle"
SIZE = 64 << 20


def large_kb() -> int:
    return sum(map(int, re.findall(r"^AnonHugePages: +(\d+) kB$", Path("/proc/self/smaps").read_text(), re.MULTILINE)))


def system_gives_one() -> bool:
    before = large_kb()
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(bytes(SIZE))
        return large_kb() - before > SIZE >> 11


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone is asked")
def test_what_is_filled_lies_in_large_pages_afterwards_and_is_the_same() -> None:
    if "[madvise]" not in SETTING.read_text():
        pytest.skip("this system gives large pages always or never")
    if not system_gives_one():
        pytest.skip("the system has no large page to give")
    parts = [np.full(256 << 10, number % 251, np.uint8) for number in range(SIZE >> 18)]  # too small for numpy to ask
    held = b"".join(part.tobytes() for part in parts)
    before = large_kb()
    use_large_pages()
    assert large_kb() - before > SIZE >> 11
    assert held == b"".join(part.tobytes() for part in parts)


def maps(*fields: str) -> str:
    return "".join(f"{line}\n" for line in fields)


def entry(
    *, path: str = "", rights: str = "rw-p", inode: int = 0, size: int = 64, rss: int = 64, large: int = 0
) -> str:
    start = 0x7F0000000000
    return maps(
        f"{start:x}-{start + (size << 20):x} {rights} 00000000 00:00 {inode} {path}".rstrip() + " " * (path == ""),
        f"Size: {size << 10} kB",
        f"Rss:   {rss << 10} kB",
        f"AnonHugePages:    {large << 10} kB",
        "VmFlags: rd wr mr mw me ac",
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, True),
        ({"path": "[heap]"}, True),
        ({"path": "[stack]"}, False),
        ({"path": "/models/decoder.onnx.data", "inode": 7}, False),
        ({"rights": "r--p"}, False),
        ({"rights": "rw-s"}, False),
        ({"size": 2, "rss": 2}, False),
        ({"rss": 8}, False),  # like a stack
        ({"large": 60}, False),  # has them already
    ],
)
def test_which_memory_is_asked_for(given: dict[str, Any], wanted: bool) -> None:
    found = list(large_pages._candidates(entry(**given) + entry(size=1, rss=1)))
    assert found == ([(0x7F0000000000, 0x7F0000000000 + (64 << 20))] if wanted else [])


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_a_system_that_needs_no_asking_is_not_asked(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(large_pages, "_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(large_pages, "_candidates", lambda _: pytest.fail("asked"))
    use_large_pages()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[always] madvise never", "without asking"),
        ("always [madvise] never", "16 MB"),
        ("always madvise [never]", "a third longer"),
        ("", "not known"),
    ],
)
def test_the_doctor_says_whether_there_are_any(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "enabled").write_text(given)
    monkeypatch.setattr(large_pages, "_SETTING", tmp_path / "enabled")
    assert said in dict(doctor.examine())["large pages"]


def test_a_single_text_is_written_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(large_pages, "use_large_pages", lambda: asked.append(1))
    pages = LargePages(LEAST_WEIGHTS)
    pages.before(1)
    assert not asked
    pages.before(1)
    pages.before(8)
    assert len(asked) == 1
    together, small = LargePages(LEAST_WEIGHTS), LargePages(LEAST_WEIGHTS - 1)
    together.before(8)
    small.before(8)
    assert len(asked) == 2


def test_an_engine_asks_before_its_second_text(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(large_pages, "use_large_pages", lambda: asked.append(1))
    monkeypatch.setattr(large_pages, "LEAST_WEIGHTS", 1)
    bundle = Bundle.load(TINY)
    engine = Engine(bundle, fake.open_backend(script=[5, 6, bundle.manifest.tokenizer.eos_token_id]))
    prompt = np.zeros((4, bundle.token_embedding().shape[1]), np.float32)
    engine.write(prompt)
    assert not asked
    engine.write(prompt)
    assert asked


def test_texts_that_are_written_together_are_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(large_pages, "use_large_pages", lambda: asked.append(1))
    monkeypatch.setattr(large_pages, "LEAST_WEIGHTS", 1)
    reporter = Reporter(TINY, device="cpu")
    assert all(outcome.report for outcome in reporter.report_many([chest_bytes()] * 2))
    assert asked == [1]
    asked.clear()
    Reporter(TINY, device="cpu").uncertainty(chest_bytes(), samples=2)
    assert asked == [1]

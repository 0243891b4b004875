from __future__ import annotations

import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sdk.handmade_reports import full_report
from tests.sdk.site_folder import run, studies
from trrg_sdk.report import GateReason, Report
from trrg_sdk.site import card, index_page, summary_table
from trrg_sdk.site.ledger import Row

EVIL = '<script>alert("x")</script>&\x1b[31m'


class Checker(HTMLParser):
    """Every tag is closed in order, nothing runs and nothing is fetched."""

    VOID = {"meta", "link", "img", "rect", "line"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: bytes) -> Checker:
    checker = Checker()
    checker.feed(page.decode())
    checker.close()
    assert not checker.open and "script" not in checker.seen
    assert all(re.fullmatch(r"data:,|pictures/[0-9a-f]{16}\.jpg|index(-\d+)?\.html", link) for link in checker.links)
    return checker


def row(state: str = "done", **values: object) -> Row:
    fixed = {"content": b"", "quick": b"", "manifest": "m", "formats": "text", "code": "", "message": "", "facts": {}}
    return Row(**{**fixed, "state": state, "finished": "2026-01-02T03:04:05+00:00", **values})  # type: ignore[arg-type]


def name(number: int) -> str:
    return f"{number:016x}"


def test_what_comes_from_outside_is_escaped() -> None:
    report = Report.from_dict(_evil(full_report().to_dict()))
    content = card.report_card(name(1), row(), report) + card.refusal_card(
        name(2), row("refused", code="odd", message=EVIL), [GateReason("odd", EVIL, EVIL)] * 2
    )
    checker = check(content)
    assert "p" in checker.seen and b"\x1b" not in card.report_card(name(1), row(), report).split(b"<p ")[1]
    assert content.count(b"<b>odd</b>") == 1  # the same reason twice is one line


def _evil(value: dict[str, object]) -> dict[str, object]:
    sentences = value["sentences"]
    assert isinstance(sentences, list)
    sentences[0]["text"] = EVIL
    return {**value, "text": EVIL, "notes": [EVIL]}


def test_verdicts_clues_and_reasons_are_shown() -> None:
    report = full_report()
    shown = card.report_card(name(1), row(), report).decode()
    for sentence in report.sentences:
        assert f'<p class="{sentence.verdict}"' in shown
    assert shown.count('class="clue') - shown.count('class="clues') == len(report.clues)
    refused = card.refusal_card(name(2), row("refused", code="inverted", message="Why. Do."), ())
    assert b"inverted" in refused and b"Why. Do." in refused


def test_thousands_of_studies_become_pages(tmp_path: Path) -> None:
    rows = {name(number): row() for number in range(2 * index_page.PAGE + 1)}
    for key in rows:
        (tmp_path / f"{key}.html").write_bytes(card.refusal_card(key, row("refused", code="c"), ()))
    pages = index_page.pages(rows, tmp_path)
    assert list(pages) == ["index.html", "index-2.html", "index-3.html"]
    assert [check(page).seen.count("article") for page in pages.values()] == [index_page.PAGE, index_page.PAGE, 1]
    assert pages["index.html"].index(name(500).encode()) < pages["index.html"].index(name(499).encode())
    check(index_page.pages({}, tmp_path)["index.html"])


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((2000, 1000), (667, 334)),
        ((512, 512), (256, 256)),
        ((3000, 2500), (375, 313)),
        ((200, 300), (200, 300)),
        ((5000, 100), (1000, 20)),
        ((1, 1), (1, 1)),
    ],
)
def test_a_thumbnail_is_small_and_upright(shape: tuple[int, int], shown: tuple[int, int]) -> None:
    pixels = np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    picture = np.asarray(Image.open(io.BytesIO(card.thumbnail(pixels))))
    assert picture.shape == shown
    if shown != (1, 1):
        assert picture[0].mean() < 5 and picture[-1].mean() > 250
        assert picture.mean() == pytest.approx(127.5, abs=2)


def test_the_summary_has_one_line_a_study() -> None:
    rows = {"a": row(facts={"supported": 2.0}), "b": row("refused", code="c", message='Say "no", now.')}
    lines = summary_table.render(rows).decode().splitlines()
    assert lines[0].split(",")[-1] == "supported"
    assert lines[1].split(",")[-1] == "2" and lines[2].startswith('b,refused,c,"Say ""no"", now."')


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_finds_no_error(tmp_path: Path) -> None:
    studies(tmp_path / "in", 2)
    assert run("batch", tmp_path / "in", "--out", tmp_path / "out", "--threads", "1").returncode == 0
    assert not _console(tmp_path / "out" / "index.html")
    broken = tmp_path / "broken.html"
    broken.write_bytes((tmp_path / "out" / "index.html").read_bytes().replace(b"</body>", b"<script>1</script></body>"))
    assert _console(broken), "the policy forbids scripts, and the console is really read"


def _console(page: Path) -> list[str]:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    shot = f"--screenshot={page.with_suffix('.png')}"
    done = subprocess.run([*command, shot, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert page.with_suffix(".png").stat().st_size
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_thumbnail_keeps_black_white_and_all_between() -> None:
    ramp = np.linspace(0, 1, 1200, dtype=np.float32)
    for pixels in (np.tile(ramp, (900, 1)), np.tile(ramp, (900, 1))[:, ::2]):
        small = np.asarray(Image.open(io.BytesIO(card.thumbnail(pixels))), dtype=float)
        assert min(small.shape) in range(250, 601)
        assert np.abs(small.mean(axis=0) - np.linspace(0, 255, small.shape[1])).max() < 3
    for grey in (0.0, 1.0):
        flat = np.asarray(Image.open(io.BytesIO(card.thumbnail(np.full((400, 400), grey, np.float32)))))
        assert np.abs(flat.astype(int) - 255 * grey).max() <= 1

"""Folders of studies for the tests of the site, and commands over them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.sdk.chest_dicom import chest_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "tiny_bundle"
TEXT = "FINDINGS: There is a pleural effusion. IMPRESSION: Pleural effusion."


def put(path: Path, content: bytes, *, age_s: float = 3600) -> Path:
    """Write a file that has been at rest for a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    old = path.stat().st_mtime - age_s
    os.utime(path, (old, old))
    return path


def studies(folder: Path, count: int, *, first: int = 1) -> list[Path]:
    """Make ``count`` studies of one image each."""
    numbers = range(first, first + count)
    return [put(folder / f"s{n}" / "image", chest_bytes(uid=f"2.25.9{n:04}", study=f"2.25.8{n:04}")) for n in numbers]


def command(*arguments: object) -> list[str]:
    """The command line of ``trrg`` in another process."""
    return [sys.executable, "-m", "trrg_sdk", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, **options)


def contents(out: Path) -> dict[str, bytes]:
    """Everything a reader sees, without what differs from run to run.

    That are times, the order of what was finished, and the last digits of log-probabilities: they depend on which texts
    were written together.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith((".lock", "ledger.sqlite", "audit", "index", "summary")):
            found[str(path.relative_to(out))] = _timeless(path.read_bytes())
    return found


def _timeless(content: bytes) -> bytes:
    content = re.sub(rb"<time>[^<]*</time>|\d+ ms\n", b"", content)
    return re.sub(rb'"timings_ms": \{[^}]*\}|"logprob": [-+.e\d]+', b"", content)


def audited(out: Path) -> Counter[str]:
    """Study → lines in the audit log; each line is whole, and numbered without a gap."""
    lines = [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    return Counter(line["study"] for line in lines)


def states(out: Path) -> Counter[str]:
    """State → studies in the ledger."""
    database = sqlite3.connect(f"file:{out / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return Counter(dict(database.execute("SELECT state, count(*) FROM studies GROUP BY state")))
    finally:
        database.close()


def partials(out: Path) -> Sequence[Path]:
    return list(out.rglob("*.partial"))

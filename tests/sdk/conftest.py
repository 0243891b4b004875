"""`trrg batch` with a fake backend, for the tests of what it does with folders and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.sdk.site_folder import TEXT, TINY
from trrg_sdk.backends import fake
from trrg_sdk.cli import main

Batch = Callable[..., int]


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Batch:
    """``trrg batch in --out out`` with the tiny bundle and the fake backend; it says how often the model wrote."""
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    opened = fake.open_backend(script=script)
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: opened)
    fixed = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--bundle", str(TINY), "--format", "json"]
    return lambda *more: main(["batch", *fixed, *map(str, more)])

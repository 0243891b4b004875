"""Files that are still arriving when `trrg batch` looks: it waits until nothing changes any more."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.sdk.chest_dicom import chest_bytes
from tests.sdk.conftest import Batch
from tests.sdk.site_folder import audited, put, states, studies


def test_a_file_that_is_still_being_copied_waits(
    batch: Batch, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trrg_sdk.site.job.ROUNDS", 1)
    studies(tmp_path / "in", 1)
    put(tmp_path / "in" / "new", chest_bytes(study="2.25.6"), age_s=0)
    assert batch("--settle", "30") == 0
    assert "studies still arriving, left for the next time: 1" in capfd.readouterr().out
    assert audited(tmp_path / "out").total() == 1
    assert batch("--settle", "0") == 0
    assert audited(tmp_path / "out").total() == 2


def test_a_young_file_that_is_cut_off_is_no_failure_yet(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trrg_sdk.site.job.ROUNDS", 1)
    whole = chest_bytes()
    put(tmp_path / "in" / "x", whole[:50_000], age_s=20)
    assert batch("--settle", "10") == 0
    assert states(tmp_path / "out") == {}
    put(tmp_path / "in" / "x", whole, age_s=19)
    assert batch("--settle", "10") == 0
    assert states(tmp_path / "out") == {"done": 1}


def test_what_settles_meanwhile_is_reported_by_the_same_batch(batch: Batch, tmp_path: Path) -> None:
    put(tmp_path / "in" / "x", chest_bytes(), age_s=0)
    assert batch("--settle", "0.3") == 0
    assert states(tmp_path / "out") == {"done": 1}


def test_a_clock_that_runs_ahead_does_not_hide_a_file(batch: Batch, tmp_path: Path) -> None:
    path = put(tmp_path / "in" / "x", chest_bytes())
    os.utime(path, (time.time() + 9e5,) * 2)
    assert batch("--settle", "0.3") == 0
    assert states(tmp_path / "out") == {"done": 1}

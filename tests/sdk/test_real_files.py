"""Every real DICOM file at hand ends in a report or in a refusal that a technician understands."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from trrg_sdk import InputError, Reporter
from trrg_sdk.backends import fake

TINY = Path(__file__).parent / "tiny_bundle"
CHESTS = (
    "pydicom-data__RG1_J2KI.dcm",
    "torchxrayvision__1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm",
)


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Reporter:
    script = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode("No edema.", add_special_tokens=False).ids
    monkeypatch.setattr("trrg_sdk.reporter.open_backend", lambda **_: fake.open_backend(script=script))
    return Reporter(TINY)


def test_chest_radiographs_are_reported_and_nothing_else(reporter: Reporter, shared_data: Path) -> None:
    paths = sorted(path for path in (shared_data / "dicom").iterdir() if path.suffix != ".csv" and path.is_file())
    assert len(paths) > 50
    reported = set()
    for path, outcome in zip(paths, reporter.report_many(paths), strict=True):  # any other error fails the test
        if outcome.report is not None:
            reported.add(path.name)
            continue
        assert isinstance(outcome.error, InputError)
        assert len(str(outcome.error).split()) >= 6, f"{path.name}: {outcome.error}"
        assert "Traceback" not in str(outcome.error)
        assert outcome.error.code.isidentifier()
    assert set(CHESTS) <= reported
    assert len(reported) <= 8, f"the gate lets too much pass: {sorted(reported)}"
    assert "torchxrayvision__Fake_MONOHR1.dcm" not in reported

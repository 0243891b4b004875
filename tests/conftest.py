"""For every test: where the shared data lies, and a garbage collector that leaves the libraries alone."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real radiographs beside the repository; skips where a machine has none."""
    folder = Path(os.environ.get("TRRG_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "dicom" / "index.csv").is_file():
        pytest.skip("no shared data: set TRRG_SHARED_DATA to the folder that holds dicom/ and images/")
    return folder


def pytest_collection_finish() -> None:
    """Put aside what the collector would look through again and again: PyTorch and its like, half a million objects."""
    gc.collect()
    gc.freeze()

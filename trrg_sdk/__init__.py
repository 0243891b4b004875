"""TRRG: from a chest radiograph to a draft report in which every sentence says what supports it.

    from trrg_sdk import Reporter

    report = Reporter().report("study.dcm")
    print(report.text)

Names are imported when they are first used, so that ``import trrg_sdk`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trrg_sdk.version import __version__ as __version__

if TYPE_CHECKING:
    from trrg_sdk.bundle import Bundle
    from trrg_sdk.clues import Clue
    from trrg_sdk.errors import (
        BundleError,
        DeviceError,
        DicomError,
        InputError,
        RefusedError,
        TrrgError,
        UsageError,
    )
    from trrg_sdk.report import Report
    from trrg_sdk.reporter import Reporter

_HOMES = {
    "Reporter": "reporter",
    "Outcome": "many",
    "Report": "report",
    "Clue": "clues",
    "Bundle": "bundle",
    "TrrgError": "errors",
    "UsageError": "errors",
    "InputError": "errors",
    "DicomError": "errors",
    "RefusedError": "errors",
    "BundleError": "errors",
    "DeviceError": "errors",
}

__all__ = [
    "Bundle",
    "BundleError",
    "Clue",
    "DeviceError",
    "DicomError",
    "InputError",
    "Outcome",
    "RefusedError",
    "Report",
    "Reporter",
    "TrrgError",
    "UsageError",
]


def __getattr__(name: str) -> Any:
    """Import one of the public names (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'trrg_sdk' has no attribute {name!r}")
    value = getattr(import_module(f"trrg_sdk.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    """List the public names too, before they are imported."""
    return sorted({*globals(), *__all__})

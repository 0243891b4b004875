"""bf16 in tests on OpenVINO, also where the processor has none: what is written does not depend on it."""

from __future__ import annotations

import openvino
import pytest

from trrg_sdk.backends import openvino as backend

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has no bf16, what OpenVINO does instead stands in for it, at many times the time."""
    if not HAS_BF16:
        monkeypatch.setattr(backend, "unfit_reason", lambda _: None)
        monkeypatch.setattr(backend, "_check_precision", lambda *_: None)


def computed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has no bf16, fp32 stands in for it: for what is asked around the numbers."""
    if not HAS_BF16:
        monkeypatch.setattr(backend, "BF16", ())

"""ONNX Runtime: the target of every bundle, whose own graphs are made for it."""

from __future__ import annotations

import onnxruntime

from trrg_export.parity import LIMITS
from trrg_export.targets.base import ProvenSite
from trrg_sdk.backends import onnxruntime as backend
from trrg_sdk.manifest import TargetSpec

NAME = "ort"
TARGET = "ort-cpu"
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ()


def unavailable_reason(_precision: str) -> str | None:
    """Say why graphs cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason()


def add(_: ProvenSite) -> TargetSpec:
    """Name the runtime in which the bundle's own graphs were compared with PyTorch."""
    return TargetSpec(backend.NAME, onnxruntime.__version__, graphs={}, engines=())

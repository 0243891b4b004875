"""ONNX Runtime: the target of every bundle, whose own graphs are made for it."""

from __future__ import annotations

import importlib.metadata

from trrg_export.memory import released
from trrg_export.parity import LIMITS, ParityError
from trrg_export.targets.base import Site
from trrg_sdk.backends import onnxruntime as backend
from trrg_sdk.errors import BundleError, DeviceError
from trrg_sdk.manifest import GRAPH_NAMES, TargetSpec

NAME = "ort"
TARGET = "ort-cpu"
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ()


def unavailable_reason() -> str | None:
    """Say why graphs cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason()


def add(site: Site) -> TargetSpec:
    """Open every graph as the workstation will, and name the runtime that did.

    Raises:
        ParityError: A graph does not open.
    """
    opened = backend.open_backend(device="cpu", threads=1)
    found = []
    for name in GRAPH_NAMES:
        path = site.folder / "graphs" / f"{name}.onnx"
        try:
            with released():
                opened.graph(path)
        except (BundleError, DeviceError) as error:
            found.append(f"{path.name} does not open in ONNX Runtime: {error}")
    if found:
        raise ParityError(found)
    return TargetSpec(backend.NAME, importlib.metadata.version("onnxruntime"), graphs={}, engines=())

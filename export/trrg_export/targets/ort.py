"""ONNX Runtime on a CPU: the target of every bundle."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from trrg_sdk.backends import onnxruntime as backend
from trrg_sdk.errors import BundleError, DeviceError
from trrg_sdk.manifest import TargetSpec

NAME = "ort"
TARGET = "ort-cpu"


def unavailable_reason() -> str | None:
    """Say why graphs cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason()


def spec() -> TargetSpec:
    """Name the runtime and the version that the bundle was tried on."""
    return TargetSpec(runtime=backend.NAME, version=importlib.metadata.version("onnxruntime"))


def problems(graphs: Sequence[Path]) -> list[str]:
    """Open every graph as the workstation will.

    Args:
        graphs: ``.onnx`` files.

    Returns:
        One line for each graph that does not open; empty when all do.
    """
    opened = backend.open_backend(device="cpu", threads=1)
    found = []
    for path in graphs:
        try:
            opened.graph(path)
        except (BundleError, DeviceError) as error:
            found.append(f"{path.name} does not open in ONNX Runtime: {error}")
    return found

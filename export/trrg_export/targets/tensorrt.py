"""TensorRT: engines for the kind of GPU that this machine has, the only one that it builds for."""

from __future__ import annotations

from trrg_export.engine_builder import LIBRARIES
from trrg_export.targets.base import ProvenSite
from trrg_export.targets.tensorrt_graphs import FORMS, add_engines
from trrg_sdk.manifest import TargetSpec

NAME = "tensorrt"
TARGET = "tensorrt"
PRECISIONS = tuple(FORMS)
PACKAGES: tuple[str, ...] = (LIBRARIES[NAME].package,)


def unavailable_reason(_precision: str) -> str | None:
    """Say why no engine can be built here, or return ``None``."""
    return LIBRARIES[NAME].unavailable_reason()


def add(site: ProvenSite) -> TargetSpec:
    """Write clean graphs, compare them with PyTorch, and build an engine of each.

    Raises:
        UsageError: The language model is of another family.
        ParityError: A graph does not do what PyTorch does.
        DeviceError: TensorRT refuses a graph.
    """
    return add_engines(site, LIBRARIES[NAME])

"""What a graph that comes from PyTorch takes and gives, as the manifest will say it."""

from __future__ import annotations

from dataclasses import dataclass

from trrg_sdk.manifest import TensorSpec


@dataclass(frozen=True)
class GraphPlan:
    """One graph to export.

    Attributes:
        name: As the manifest calls it.
        inputs: What the manifest will say; free axes by name.
        outputs: Names of the outputs in order.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

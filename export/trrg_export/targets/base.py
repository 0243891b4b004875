"""What every target module works on, and what it has.

The names of a target module are ``NAME`` (of the option ``--target``), ``TARGET`` (of the manifest), ``PRECISIONS``
(of bundles that can have it), ``PACKAGES`` (distributions that make it, beside those of every export),
``unavailable_reason(precision: str) -> str | None`` (of bundles of that precision, on this machine) and
``add(site: ProvenSite) -> TargetSpec``: it writes what the target needs beside the bundle's own graphs, tries it as
far as this machine can, and raises :class:`~trrg_export.parity.ParityError` where it does not do what PyTorch does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trrg_export.graph_plan import GraphPlan
from trrg_export.parity import ParityLimits
from trrg_export.reference import Feeds, Reference
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import DecoderSpec
from trrg_train.models.stored import StoredCheckpoint


@dataclass(frozen=True)
class Site:
    """A bundle under construction.

    Attributes:
        folder: Holds the bundle's own graphs under ``graphs/`` and its arrays; a target writes below ``graphs/NAME/``
            and ``engines/NAME/``.
        checkpoint: Of stage 2, without its weights.
        traces: Folder of the graphs that come from PyTorch, see :mod:`trrg_export.trace`.
        planned: What these take and give.
        decoder: Sizes of the language model's cache.
        reference: What PyTorch gives for the parity studies.
        feeds: Graph → inputs of single studies, for calibration and comparison.
        precision: Asked for.
        compute_capabilities: Of the GPUs that engines are built for; empty takes the library's own.
    """

    folder: Path
    checkpoint: StoredCheckpoint
    traces: Path
    planned: Sequence[GraphPlan]
    decoder: DecoderSpec
    reference: Reference
    feeds: Mapping[str, Feeds]
    precision: str
    compute_capabilities: tuple[str, ...]


@dataclass(frozen=True)
class ProvenSite(Site):
    """A site whose own graphs were compared with PyTorch on ONNX Runtime: what targets are given.

    Attributes:
        bundle: The folder with the manifest so far.
        limits: Of the precision that was asked for.
        tables: Parity tables for the manifest; a target that compares graphs itself adds its own.
    """

    bundle: Bundle
    limits: ParityLimits
    tables: dict[str, Mapping[str, Any]] = field(default_factory=dict)

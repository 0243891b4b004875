"""OpenVINO: the bundle's own graphs, tried on it in fp32 or bf16; the decoder stays on ONNX Runtime.

``int8-bf16`` and ``int8-vnni`` are for a large vision encoder. Beside an int8 bundle's own graphs there is a vision
graph whose products are in int8 with all eight bits of their weights, which takes VNNI; a processor with bf16 has that
too. All else is in bf16 or in fp32, and as many of the products as it takes until no report label flips.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
from collections.abc import Mapping

import onnx

from trrg_export.memory import released
from trrg_export.onnx_file import save
from trrg_export.parity import LIMITS, Exported, ParityError, ParityReport, compare
from trrg_export.precision.lowered import LoweredGraph, drift_table
from trrg_export.precision.static import DRIFT_LIMIT, VNNI, tightened
from trrg_export.targets.base import ProvenSite
from trrg_export.trace import read_trace
from trrg_sdk.backends import openvino as backend
from trrg_sdk.errors import BundleError
from trrg_sdk.manifest import GraphSpec, TargetSpec

NAME = "openvino"
TARGET = backend.TARGET
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ("openvino",)
DRIFT_LIMITS = tuple(round(DRIFT_LIMIT * share, 4) for share in (1, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125))
"""Of the vision graph in int8, tried in this order until every report label of the parity studies is PyTorch's. Where
two tokens' logits nearly tie any rounding can flip one, so no limit on the drift alone makes sure of that."""
_VISION = "vision"
_LOG = logging.getLogger(__name__)


def unavailable_reason(precision: str) -> str | None:
    """Say why graphs of a precision cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason() or backend.unfit_reason(precision)


def add(site: ProvenSite) -> TargetSpec:
    """Compare the whole chain on OpenVINO with PyTorch, in the precision that the workstation will compute in.

    bf16 is no other file: OpenVINO computes the fp32 graphs in bf16. That it was proven so is what the target says.
    int8-bf16 and int8-vnni are one other file, the vision graph.

    Raises:
        ParityError: It does something else than PyTorch.
    """
    if site.precision in (backend.INT8_BF16, backend.INT8_VNNI):
        return _with_int8_vision(site)
    graphs = site.bundle.manifest.graphs
    computed = site.planned if site.precision == "bf16" else ()
    spec = _spec({plan.name: dataclasses.replace(graphs[plan.name], precision="bf16") for plan in computed})
    return _kept(site, spec, _compared(site, spec), {})


def _with_int8_vision(site: ProvenSite) -> TargetSpec:
    """Write the vision graph in int8 with eight-bit weights; less of it is in int8 until no report label flips."""
    path = site.folder / "graphs" / NAME / f"{_VISION}.onnx"
    path.parent.mkdir()
    file = path.relative_to(site.folder).as_posix()
    own = dataclasses.replace(site.bundle.manifest.graphs[_VISION], file=file, precision=site.precision)
    spec, label = _spec({_VISION: own}), f"{NAME} {_VISION}"
    limits = DRIFT_LIMITS if site.limits.value is None else (site.limits.value,)
    outside = site.traces / _VISION
    graph, feeds = read_trace(outside), site.feeds[_VISION]
    for found in tightened(graph, feeds, label=label, limits=limits, form=VNNI, outside=outside):
        with released():
            save(found.model, path)
            lowered = dataclasses.replace(found, model=onnx.ModelProto())
            del found
        with released():
            report = _compared(site, spec)
        agreement, drift = report.table.get("label_agreement"), max(lowered.drift.values(), default=0.0)
        _LOG.info("%s: report labels agree in %s where an output drifts by %.2g", label, agreement, drift)
        if agreement in (1.0, None):  # None: it does not run
            break
    return _kept(site, spec, report, {_VISION: lowered})


def _spec(graphs: Mapping[str, GraphSpec]) -> TargetSpec:
    """The target with what runs in another form than the bundle's own."""
    return TargetSpec(
        runtime=backend.NAME, version=importlib.metadata.version("openvino"), graphs=dict(graphs), engines=()
    )


def _compared(site: ProvenSite, spec: TargetSpec) -> ParityReport:
    draft = dataclasses.replace(site.bundle.manifest, targets={TARGET: spec})
    opened = backend.open_backend(device=NAME)
    exported = Exported(dataclasses.replace(site.bundle, manifest=draft), site.precision, opened)
    try:
        return compare(exported, site.planned, site.reference, limits=site.limits)
    except BundleError as error:
        raise ParityError([f"on {TARGET}: {error}"]) from error


def _kept(site: ProvenSite, spec: TargetSpec, report: ParityReport, lowered: Mapping[str, LoweredGraph]) -> TargetSpec:
    """Note what was measured, unless a limit was passed."""
    if report.failures:
        raise ParityError([f"on {TARGET}: {failure}" for failure in report.failures])
    site.tables[f"{site.precision} on {TARGET}"] = {**report.table, **drift_table(lowered)}
    return spec

"""OpenVINO: the bundle's own graphs, tried on it in fp32 or bf16; the decoder stays on ONNX Runtime.

``int8-bf16`` is for a large vision encoder. Beside an int8 bundle's own graphs it has a vision graph whose products are
in int8 and all else in bf16. A processor with bf16 has VNNI too, so the weights use all of their eight bits.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata

import onnx

from trrg_export.memory import released
from trrg_export.parity import LIMITS, Exported, ParityError, compare
from trrg_export.precision.lowered import LoweredGraph, drift_table
from trrg_export.precision.static import VNNI, to_static
from trrg_export.targets.base import ProvenSite
from trrg_export.to_onnx import export_graph, save
from trrg_sdk.backends import openvino as backend
from trrg_sdk.errors import BundleError
from trrg_sdk.manifest import GraphSpec, TargetSpec

NAME = "openvino"
TARGET = backend.TARGET
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ("openvino",)
_VISION = "vision"


def unavailable_reason() -> str | None:
    """Say why graphs cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason()


def add(site: ProvenSite) -> TargetSpec:
    """Compare the whole chain on OpenVINO with PyTorch, in the precision that the workstation will compute in.

    bf16 is no other file: OpenVINO computes the fp32 graphs in bf16. That it was proven so is what the target says.
    int8-bf16 is one other file, the vision graph.

    Raises:
        ParityError: It does something else than PyTorch.
        DeviceError: bf16 was asked for and this processor has none, so nothing can be proven.
    """
    graphs, lowered = _graphs(site)
    version = importlib.metadata.version("openvino")
    spec = TargetSpec(runtime=backend.NAME, version=version, graphs=graphs, engines=())
    draft = dataclasses.replace(site.bundle.manifest, targets={TARGET: spec})
    opened = backend.open_backend(device=NAME)
    exported = Exported(dataclasses.replace(site.bundle, manifest=draft), site.precision, opened)
    try:
        report = compare(exported, site.planned, site.reference, limits=site.limits)
    except BundleError as error:
        raise ParityError([f"on {TARGET}: {error}"]) from error
    if report.failures:
        raise ParityError([f"on {TARGET}: {failure}" for failure in report.failures])
    site.tables[f"{site.precision} on {TARGET}"] = {**report.table, **drift_table(lowered)}
    return spec


def _graphs(site: ProvenSite) -> tuple[dict[str, GraphSpec], dict[str, LoweredGraph]]:
    """What runs in another form than the bundle's own; and what was measured of those that are files of their own."""
    graphs = site.bundle.manifest.graphs
    if site.precision == backend.INT8_BF16:
        file, lowered = _write_vision(site)
        own = dataclasses.replace(graphs[_VISION], file=file, precision=backend.INT8_BF16)
        return {_VISION: own}, {_VISION: lowered}
    computed = site.planned if site.precision == "bf16" else ()
    return {plan.name: dataclasses.replace(graphs[plan.name], precision="bf16") for plan in computed}, {}


def _write_vision(site: ProvenSite) -> tuple[str, LoweredGraph]:
    """Write the vision graph in int8 with eight-bit weights; its file, and what was measured."""
    plan = next(plan for plan in site.planned if plan.name == _VISION)
    with released():
        graph = export_graph(plan)
    label = f"{NAME} {plan.name}"
    found = to_static(graph, site.feeds[plan.name], label=label, limit=site.limits.value, form=VNNI)
    path = site.folder / "graphs" / NAME / f"{plan.name}.onnx"
    path.parent.mkdir()
    save(found.model, path)
    return path.relative_to(site.folder).as_posix(), dataclasses.replace(found, model=onnx.ModelProto())

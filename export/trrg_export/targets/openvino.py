"""OpenVINO: the bundle's own graphs, tried on it in fp32 or bf16; the decoder stays on ONNX Runtime."""

from __future__ import annotations

import dataclasses
import importlib.metadata

from trrg_export.parity import LIMITS, Exported, ParityError, compare
from trrg_export.targets.base import ProvenSite
from trrg_sdk.backends import openvino as backend
from trrg_sdk.errors import BundleError
from trrg_sdk.manifest import TargetSpec

NAME = "openvino"
TARGET = backend.TARGET
PRECISIONS = tuple(LIMITS)
PACKAGES: tuple[str, ...] = ("openvino",)


def unavailable_reason() -> str | None:
    """Say why graphs cannot be tried on this runtime here, or return ``None`` when they can."""
    return backend.unavailable_reason()


def add(site: ProvenSite) -> TargetSpec:
    """Compare the whole chain on OpenVINO with PyTorch, in the precision that the workstation will compute in.

    bf16 is no other file: OpenVINO computes the fp32 graphs in bf16. That it was proven so is what the target says.

    Raises:
        ParityError: It does something else than PyTorch.
        DeviceError: bf16 was asked for and this processor has none, so nothing can be proven.
    """
    spec = _spec(site)
    draft = dataclasses.replace(site.bundle.manifest, targets={TARGET: spec})
    opened = backend.open_backend(device=NAME)
    exported = Exported(dataclasses.replace(site.bundle, manifest=draft), site.precision, opened)
    try:
        report = compare(exported, site.planned, site.reference, limits=site.limits)
    except BundleError as error:
        raise ParityError([f"on {TARGET}: {error}"]) from error
    if report.failures:
        raise ParityError([f"on {TARGET}: {failure}" for failure in report.failures])
    site.tables[f"{site.precision} on {TARGET}"] = report.table
    return spec


def _spec(site: ProvenSite) -> TargetSpec:
    graphs = site.bundle.manifest.graphs
    other = [plan.name for plan in site.planned] if site.precision in backend.BF16 else []
    return TargetSpec(
        runtime=backend.NAME,
        version=importlib.metadata.version("openvino"),
        graphs={name: dataclasses.replace(graphs[name], precision=site.precision) for name in other},
        engines=(),
    )

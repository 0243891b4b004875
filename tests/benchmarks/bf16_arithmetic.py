"""What bf16 does to labels, computed by PyTorch and, where the processor has it, by OpenVINO in the vision encoder.

The checkpoint's parity studies go through the gate of ``trrg-export --bf16``, with PyTorch's bf16 in the three graphs
in place of OpenVINO's. It is the same arithmetic (products of bf16 numbers, summed in fp32) but not the same kernels:
where OpenVINO rounds in between is its own affair.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from trrg_export.build import ExportOptions, export_bundle
from trrg_export.parity import LIMITS, Exported, compare
from trrg_export.precision.static import VNNI, to_static
from trrg_export.reference import Reference, run_pytorch
from trrg_export.targets.openvino import DRIFT_LIMITS
from trrg_export.to_onnx import GraphPlan, checkpoint_plans, export_graph, save
from trrg_sdk.backends import onnxruntime
from trrg_sdk.backends import openvino as backend
from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest, TargetSpec, TensorSpec
from trrg_train.models.checkpoint import load_checkpoint

ROUNDED, PRODUCTS = "every tensor in bf16", "products in bf16, norms and softmax in fp32 (autocast)"


class TorchGraph:
    """A graph of the bundle, computed by PyTorch in bf16."""

    def __init__(self, plan: GraphPlan, spec: GraphSpec, *, rounded: bool) -> None:
        """Take the graph's place; ``rounded`` keeps every tensor in bf16."""
        self.inputs: tuple[TensorSpec, ...] = spec.inputs
        self.outputs: tuple[TensorSpec, ...] = spec.outputs
        self._names = [tensor.name for tensor in plan.inputs]
        self._rounded = rounded
        self._module: nn.Module = copy.deepcopy(plan.module()).bfloat16() if rounded else plan.module()

    @torch.no_grad()
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; inputs and outputs are the graph's."""
        tensors = [torch.from_numpy(inputs[name]) for name in self._names]
        if self._rounded:
            tensors = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in tensors]
        with torch.autocast("cpu", torch.bfloat16, enabled=not self._rounded):
            values: Any = self._module(*tensors)
        values = (values,) if isinstance(values, torch.Tensor) else values
        return {spec.name: value.float().numpy() for spec, value in zip(self.outputs, values, strict=True)}


class TorchBackend:
    """The three graphs in PyTorch's bf16, the decoder on ONNX Runtime as it is beside OpenVINO."""

    def __init__(self, planned: tuple[GraphPlan, ...], *, rounded: bool) -> None:
        """Compute the planned graphs."""
        self._inner = onnxruntime.open_backend(device="cpu", threads=torch.get_num_threads())
        self._plans = {f"{plan.name}.onnx": plan for plan in planned}
        self._rounded = rounded
        self.name, self.device, self.target = self._inner.name, self._inner.device, self._inner.target

    def file(self, name: str, manifest: Manifest) -> str:
        """Say which file of a bundle it opens for a graph."""
        return self._inner.file(name, manifest)

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> TorchGraph:
        """Give PyTorch's form of a graph of the bundle."""
        assert spec is not None
        return TorchGraph(self._plans[path.name], spec, rounded=self._rounded)

    def decoder(self, path: Path, spec: DecoderSpec) -> OrtDecoder:
        """Open the decoder, which stays in fp32."""
        return self._inner.decoder(path, spec)


def outcomes(checkpoint: Path) -> dict[str, Mapping[str, Any]]:
    """The gate's table of each kind of bf16; nothing is refused.

    Args:
        checkpoint: Of stage 2.
    """
    loaded = load_checkpoint(checkpoint)
    planned = checkpoint_plans(loaded, loaded.trrg)
    reference = run_pytorch(loaded, loaded.parity_pixels())
    tables: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        export_bundle(checkpoint, out, ExportOptions(studies=1))
        for name in (ROUNDED, PRODUCTS):
            backend = TorchBackend(planned, rounded=name == ROUNDED)
            exported = Exported(Bundle.load(out), "bf16", backend)
            report = compare(exported, planned, reference, limits=LIMITS["bf16"])
            tables[name] = {**report.table, "failures": report.failures}
        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            tables |= encoder_outcomes(Bundle.load(out), planned, reference)
    return tables


def encoder_outcomes(
    bundle: Bundle, planned: tuple[GraphPlan, ...], reference: Reference
) -> dict[str, Mapping[str, Any]]:
    """The gate's table of each form of the vision encoder on OpenVINO; all else is in fp32.

    Args:
        bundle: In fp32; its folder gets another file.
        planned: Its graphs in PyTorch.
        reference: What they give.
    """
    own = bundle.manifest.graphs["vision"]
    forms = {"bf16": ("bf16", own.file)}
    graph, feeds = export_graph(planned[0]), reference.feeds()["vision"]
    for limit in DRIFT_LIMITS:
        file = f"vision.{limit}.onnx"
        found = to_static(graph, feeds, label="vision", limit=limit, form=VNNI)
        save(found.model, bundle.folder / file)
        forms[f"int8-bf16, drift at most {limit}: {len(found.kept)} products in bf16"] = (backend.INT8_BF16, file)
    tables: dict[str, Mapping[str, Any]] = {}
    for name, (precision, file) in forms.items():
        vision = dataclasses.replace(own, file=file, precision=precision)
        target = TargetSpec(backend.NAME, openvino.__version__, {"vision": vision}, ())
        manifest = dataclasses.replace(bundle.manifest, targets={backend.TARGET: target})
        exported = Exported(dataclasses.replace(bundle, manifest=manifest), precision, backend.open_backend())
        report = compare(exported, planned, reference, limits=LIMITS[precision])
        tables[f"vision encoder in {name}, OpenVINO"] = {**report.table, "failures": report.failures}
    return tables

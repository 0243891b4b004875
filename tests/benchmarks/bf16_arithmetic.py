"""What bf16 and int8 do to labels: by PyTorch in bf16, and by OpenVINO in what this processor computes.

The checkpoint's parity studies go through the gate of ``trrg-export --bf16``, with PyTorch's bf16 in the three graphs
in place of OpenVINO's. It is the same arithmetic (products of bf16 numbers, summed in fp32) but not the same kernels:
where OpenVINO rounds in between is its own affair. Then the vision encoder alone goes through OpenVINO, as the export
for it makes it at each of its drift limits, and all else is in fp32.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import openvino
import torch
from numpy.typing import NDArray
from torch import nn

from trrg_export.build import ExportOptions, export_bundle
from trrg_export.onnx_file import save
from trrg_export.parity import LIMITS, Exported, compare
from trrg_export.precision.static import VNNI, tightened
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_export.targets.openvino import DRIFT_LIMITS
from trrg_export.to_onnx import ModulePlan, checkpoint_plans, export_graph
from trrg_sdk.backends import onnxruntime
from trrg_sdk.backends import openvino as backend
from trrg_sdk.backends.ort_decoder import OrtDecoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest, TargetSpec, TensorSpec
from trrg_train.models.checkpoint import load_checkpoint

ROUNDED, PRODUCTS = "every tensor in bf16", "products in bf16, norms and softmax in fp32 (autocast)"


class TorchGraph:
    """A graph of the bundle, computed by PyTorch in bf16."""

    def __init__(self, plan: ModulePlan, spec: GraphSpec, *, rounded: bool) -> None:
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

    def __init__(self, planned: tuple[ModulePlan, ...], *, rounded: bool) -> None:
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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a form did.

    Attributes:
        table: The gate's.
        failures: Limits of the gate that it passes.
        precision: Of the vision graph on OpenVINO; empty for PyTorch.
        floating: How many of its products are not in int8.
        products: How many it has.
    """

    table: Mapping[str, Any]
    failures: Sequence[str]
    precision: str = ""
    floating: int = 0
    products: int = 0


def outcomes(checkpoint: Path) -> dict[str, Outcome]:
    """What each form did; nothing is refused.

    Args:
        checkpoint: Of stage 2.
    """
    loaded = load_checkpoint(checkpoint)
    planned = checkpoint_plans(loaded, loaded.trrg)
    reference = run_pytorch(loaded, loaded.parity_pixels())
    found: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        export_bundle(checkpoint, out, ExportOptions(studies=1))
        for name in (ROUNDED, PRODUCTS):
            backend = TorchBackend(planned, rounded=name == ROUNDED)
            exported = Exported(Bundle.load(out), "bf16", backend)
            report = compare(exported, planned, reference, limits=LIMITS["bf16"])
            found[name] = Outcome(report.table, report.failures)
        return found | encoder_outcomes(Bundle.load(out), planned, reference)


def encoder_outcomes(bundle: Bundle, planned: tuple[ModulePlan, ...], reference: Reference) -> dict[str, Outcome]:
    """What each form of the vision encoder did on OpenVINO.

    Args:
        bundle: In fp32; its folder gets other files.
        planned: Its graphs in PyTorch.
        reference: What they give.
    """
    own = bundle.manifest.graphs["vision"]
    able = [name for name in ("bf16", backend.INT8_BF16, backend.INT8_VNNI) if backend.unfit_reason(name) is None]
    found = {}
    if "bf16" in able:
        found["vision encoder in bf16, OpenVINO"] = _outcome(bundle, own.file, "bf16", planned, reference)
    graph, feeds = export_graph(planned[0]), reference.feeds()["vision"]
    products = len(weighted_products(graph))
    for form in tightened(graph, feeds, label="vision", limits=DRIFT_LIMITS, form=VNNI):
        file, drift = f"vision.{len(form.kept)}.onnx", max(form.drift.values())
        save(form.model, bundle.folder / file)
        for precision in able:
            if precision != "bf16":
                made = _outcome(bundle, file, precision, planned, reference)
                name = (
                    f"vision encoder in {precision}, {len(form.kept)} products in floats, drift {drift:.3f}, OpenVINO"
                )
                found[name] = dataclasses.replace(made, floating=len(form.kept), products=products)
    return found


def weighted_products(model: onnx.ModelProto) -> list[str]:
    """Name the convolutions and products with weights, in the graph's order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in weights]


def _outcome(
    bundle: Bundle, file: str, precision: str, planned: tuple[ModulePlan, ...], reference: Reference
) -> Outcome:
    vision = dataclasses.replace(bundle.manifest.graphs["vision"], file=file, precision=precision)
    target = TargetSpec(backend.NAME, openvino.__version__, {"vision": vision}, ())
    manifest = dataclasses.replace(bundle.manifest, targets={backend.TARGET: target})
    exported = Exported(dataclasses.replace(bundle, manifest=manifest), precision, backend.open_backend())
    report = compare(exported, planned, reference, limits=LIMITS[precision])
    return Outcome(report.table, report.failures, precision)

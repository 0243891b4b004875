"""Graphs that TensorRT reads: standard operators, the precision in their types, a decoder with an explicit past.

They are made apart from the bundle's own, which hold ONNX Runtime's operators, and compared with PyTorch on ONNX
Runtime: whatever TensorRT makes of them later, the graphs are right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from trrg_export.engine_builder import BuildLibrary, axis_ranges, build_engines
from trrg_export.graph_plan import GraphPlan
from trrg_export.memory import released
from trrg_export.onnx_file import clean, save, tensor_specs
from trrg_export.parity import LIMITS
from trrg_export.precision.half import to_half
from trrg_export.precision.static import TENSORRT, to_static
from trrg_export.targets.base import ProvenSite
from trrg_export.targets.proof import prove
from trrg_export.trace import read_trace, whole_trace
from trrg_export.with_pytorch import with_pytorch
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import GraphSpec, TargetSpec

FORMS = {"fp32": ("fp32", "fp32"), "fp16": ("fp16", "fp16"), "int8": ("int8", "fp16"), "int4": ("fp16", "int4")}
"""Of the bundle → of the three traced graphs and of the decoder."""
_BLOCKS = (32, 16)  # weights that share a scale: TensorRT wants whole blocks, so the first that fits all widths
_OPSET_INT4 = 21  # the first with 4-bit integers

_LOG = logging.getLogger(__name__)


def add_engines(site: ProvenSite, library: BuildLibrary) -> TargetSpec:
    """Write a library's graphs and engines into a bundle.

    Args:
        site: The bundle under construction.
        library: TensorRT or TensorRT-RTX.

    Returns:
        What the manifest says about it.

    Raises:
        UsageError: The language model is of another family.
        ParityError: A graph does not do what PyTorch does.
        DeviceError: The library refuses a graph.
    """
    graphs = write_graphs(site, library.name)
    with released():
        prove(site, library.name, graphs)
    engines = build_engines(
        library,
        graphs,
        axis_ranges(site.bundle.manifest),
        source=site.folder,
        out=site.folder,
        capabilities=site.compute_capabilities,
    )
    return TargetSpec(library.name, library.version, graphs=graphs, engines=engines)


def write_graphs(site: ProvenSite, name: str) -> dict[str, GraphSpec]:
    """Write the four graphs to ``graphs/NAME/``.

    Args:
        site: The bundle under construction.
        name: Of the target.

    Returns:
        What the manifest says about each.

    Raises:
        UsageError: See :func:`add_engines`.
    """
    traced, decoding = FORMS[site.precision]
    folder = Path("graphs", name)
    (site.folder / folder).mkdir(parents=True)
    found = {}
    for plan in site.planned:
        _LOG.info("%s: exporting %s", name, plan.name)
        file = folder / f"{plan.name}.onnx"
        with released():
            _write_traced(plan, site, traced, f"{name} {plan.name}", site.folder / file)
        found[plan.name] = GraphSpec(file.as_posix(), traced, *tensor_specs(site.folder / file))
    _LOG.info("%s: exporting decoder", name)
    file = folder / "decoder.onnx"
    outside = explicit_decoder(site, half=decoding != "fp32")
    with released():
        if decoding == "int4":
            save(quantize_4bit(whole_trace(outside)), site.folder / file)
        else:
            save(read_trace(outside), site.folder / file, outside)
    found["decoder"] = GraphSpec(file.as_posix(), decoding, *tensor_specs(site.folder / file))
    return found


def _write_traced(plan: GraphPlan, site: ProvenSite, precision: str, label: str, path: Path) -> None:
    """Write one of the three graphs, its weights read a few at a time."""
    outside, feeds, limit = site.traces / plan.name, site.feeds[plan.name], site.limits.value
    graph = read_trace(outside)
    if precision == "fp32":
        save(graph, path, outside)
    elif precision == "fp16":
        limit = limit or LIMITS["fp16"].value
        save(to_half(graph, feeds, label=label, limit=limit, outside=outside).model, path)
    else:
        save(to_static(graph, feeds, label=label, limit=limit, form=TENSORRT, outside=outside).model, path)


def explicit_decoder(site: ProvenSite, *, half: bool) -> Path:
    """Let PyTorch trace the decoder, once; see :func:`trrg_export.decoder_explicit.trace_explicit_decoder`.

    Args:
        site: The bundle under construction.
        half: In float16.

    Returns:
        A folder beside the other traces, which :func:`trrg_export.trace.read_trace` reads.
    """
    folder = site.traces / ("decoder-fp16" if half else "decoder-fp32")
    if not folder.exists():
        folder.mkdir()
        with_pytorch("trrg_export.decoder_explicit", "write_explicit_decoder", site.checkpoint.folder, folder, half)
    return folder


def quantize_4bit(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store the weights of matrix products in 4 bits, a scale for each block, rounded to nearest.

    The last product, which gives the logits, keeps its weights: it is the one whose error nothing follows to even out.

    Args:
        model: A decoder; changed in place.

    Returns:
        The same model with ``DequantizeLinear`` before each product.

    Raises:
        UsageError: A width of the model is no multiple of any block.
    """
    block = _block(model.graph)
    with _hushed("onnxruntime.quantization.matmul_nbits_quantizer"):
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        products = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        quantizer = MatMulNBitsQuantizer(
            model,
            block_size=block,
            is_symmetric=True,  # TensorRT knows no zero points
            quant_format=QuantFormat.QDQ,
            nodes_to_exclude=products[-1:],
        )
        quantizer.process()
    quantized: onnx.ModelProto = clean(quantizer.model.model)
    quantized.opset_import[0].version = _OPSET_INT4
    return quantized


def _block(graph: onnx.GraphProto) -> int:
    """Find the block that divides the inputs of every product with weights."""
    weights = {tensor.name: tensor.dims for tensor in graph.initializer if len(tensor.dims) == 2}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    widths = sorted({weights[node.input[1]][0] for node in products})
    for block in _BLOCKS:
        if not any(width % block for width in widths):
            return block
    raise UsageError(f"4-bit weights for TensorRT need widths in multiples of {_BLOCKS[-1]}, the model has {widths}")


@contextmanager
def _hushed(name: str) -> Iterator[None]:
    """Keep a library's notes about its own way of working out of the log."""
    logger: Any = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

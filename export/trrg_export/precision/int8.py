"""Eight-bit weights that any runtime reads and that no kernel has to know.

A weight W becomes int8 Q and a float32 scale for each output channel, and the graph computes ``W = Cast(Q) * scale``
first. ONNX Runtime folds that into a plain float32 weight when it opens the file, so nothing is slower than in fp32
and activations lose nothing; the file is a quarter of the size.

This is how layers keep their weights that compute in fp32 in an int8 bundle, and the embedding tables; the others do
their arithmetic in int8, see :mod:`trrg_export.precision.static`. ``DequantizeLinear`` in place of ``Cast`` and ``Mul``
is not folded by default: on a vision encoder of the mini size it took 10.9 ms where fp32 and this form took 8.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trrg_export.hollow import is_hollow

STORED = ".int8"
"""What the name of a weight in eight bits ends with, here and in a decoder."""
_SMALLEST = 2048  # elements; below that a file gains nothing
_LEVELS = 127


def quantize_weights(
    model: onnx.ModelProto, contents: Mapping[str, onnx.TensorProto] = MappingProxyType({})
) -> onnx.ModelProto:
    """Store the weights of convolutions, matrix products and embedding tables in int8.

    Args:
        model: fp32; changed in place.
        contents: Of its hollow weights, by name.

    Returns:
        The same model.
    """
    axes = _weight_axes(model.graph)
    first: list[onnx.NodeProto] = []
    kept = []
    for tensor in model.graph.initializer:
        filled = contents[tensor.name] if is_hollow(tensor) else tensor
        if tensor.name not in axes or int(np.prod(tensor.dims)) < _SMALLEST:
            kept.append(filled)
            continue
        quantized, scale = quantize(numpy_helper.to_array(filled), axis=axes[tensor.name])
        kept += [
            numpy_helper.from_array(quantized, f"{tensor.name}{STORED}"),
            numpy_helper.from_array(scale, f"{tensor.name}.scale"),
        ]
        first += _dequantize(tensor.name)
    nodes = [*first, *model.graph.node]
    for field, values in (("initializer", kept), ("node", nodes)):
        replace_all(getattr(model.graph, field), values)
    return model


def quantize(weight: NDArray[np.float32], *, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize symmetrically, one scale for each index along an axis.

    Args:
        weight: float32, any rank.
        axis: The output channels.

    Returns:
        int8 of the same shape, and float32 scales that broadcast against it; ``int8 * scale`` is the weight to half a
        step.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    peak = np.abs(weight).max(axis=others, keepdims=True)
    scale = np.where(peak == 0, 1.0, peak / _LEVELS).astype(np.float32)
    return np.clip(np.rint(weight / scale), -_LEVELS, _LEVELS).astype(np.int8), scale


def _weight_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """Find float32 weights and their output-channel axis; one that is used in two ways stays as it is."""
    weights = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) >= 2}
    found: dict[str, int] = {}
    contested = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in weights:
                axis = _output_axis(node, index)
                if axis is None or found.setdefault(name, axis) != axis:
                    contested.add(name)
    return {name: axis for name, axis in found.items() if name not in contested}


def _output_axis(node: onnx.NodeProto, index: int) -> int | None:
    if (node.op_type, index) == ("MatMul", 1):
        return -1
    if (node.op_type, index) == ("Gemm", 1):
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if transposed else -1
    if (node.op_type, index) in (("Conv", 1), ("Gather", 0)):
        return 0
    return None


def _dequantize(name: str) -> list[onnx.NodeProto]:
    cast = helper.make_node(
        "Cast", [f"{name}{STORED}"], [f"{name}.float"], name=f"{name}.cast", to=onnx.TensorProto.FLOAT
    )
    scaled = helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], name=f"{name}.dequantize")
    return [cast, scaled]


def replace_all(field: Any, values: Sequence[Any]) -> None:
    """Give a repeated field of a protocol buffer other values.

    Args:
        field: Changed in place.
        values: May hold some of the field's own.
    """
    copies = list(values)
    del field[:]
    field.extend(copies)

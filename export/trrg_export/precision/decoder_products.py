"""The decoder's matrix products, quantized one at a time: the other weights are in their file meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper

from trrg_export.hollow import loaded
from trrg_export.precision.int8 import replace_all

CONTRIB = "com.microsoft"
Replacement = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
"""The nodes that take the place of one, and their weights."""
Quantizer = Callable[[onnx.NodeProto, onnx.TensorProto], Replacement]
"""Of a matrix product and its weight (inputs, outputs)."""


def products_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The matrix products of a decoder with a weight, in order.

    Args:
        model: fp32.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]


def replace_products(model: onnx.ModelProto, folder: Path, quantize: Quantizer) -> onnx.ModelProto:
    """Put something else in the place of every matrix product.

    Args:
        model: The fp32 decoder without its external data; changed in place.
        folder: Of the external data.
        quantize: Makes what takes a product's place.

    Returns:
        The same model with all weights inside.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced = {node.name: quantize(node, loaded(weights.pop(node.input[1]), folder)) for node in products_of(model)}
    nodes = [part for node in model.graph.node for part in replaced.get(node.name, ([node], []))[0]]
    tensors = [loaded(tensor, folder) for tensor in weights.values()]
    tensors += [tensor for _, made in replaced.values() for tensor in made]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, tensors)):
        replace_all(field, values)
    if CONTRIB not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model

"""What the graphs of a bundle cost: parameters and operators as the files hold them, FLOPs from the shapes of one run.

ONNX's shape inference stops at the first length that a graph computes and knows no ``com.microsoft`` operator, so each
graph runs once in ONNX Runtime, on zeros, weights too, and without graph optimizations; its profile says what every
node saw.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trrg_export.hollow import is_hollow, with_weights_outside
from trrg_export.memory import few_runs, released
from trrg_export.onnx_file import read_hollow, tensor_specs
from trrg_export.precision.int8 import STORED
from trrg_sdk.manifest import TensorSpec
from trrg_sdk.summary import Component, Summary

Shapes = Sequence[Sequence[int]]

COUNTED = (
    "FLOPs count a multiplication and an addition as two, in convolutions, matrix products and attention (every "
    "position with every other, masked or not); element-wise operators, norms, softmax and look-ups are left out. "
    "Parameters are the weights in the graphs, each once whatever its precision; scales, zero points and tables of "
    "rotary positions are none, and the token embedding is a file of its own."
)
_WEIGHTS = frozenset(
    getattr(TensorProto, kind)
    for kind in "FLOAT FLOAT16 BFLOAT16 DOUBLE INT8 UINT8 INT4 UINT4 FLOAT8E4M3FN FLOAT8E5M2".split()
)
_MULTIPLIES = re.compile(r"Conv|MatMul|Gemm|Attention|Einsum")
_NO_WEIGHTS = {
    "DequantizeLinear": (1, 2),
    "QuantizeLinear": (1, 2),
    "MatMulNBits": (2, 3, 4),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "GroupQueryAttention": (7, 8),
}
"""Operator → its inputs that describe other inputs."""


def summarize(files: Mapping[str, Path], sizes: Mapping[str, int]) -> Summary:
    """Count what graphs hold and do.

    Args:
        files: Component → a ``.onnx`` file that ONNX Runtime's CPU can run.
        sizes: Free axis of the graphs' inputs → its length in the run that is counted.

    Returns:
        The components in the order of ``files``.
    """
    parts = {}
    for name, path in files.items():
        with released():
            parts[name] = _component(path, sizes)
    used = {operator.rsplit(".", 1)[-1] for part in parts.values() for operator in part.operators}
    unknown = sorted(operator for operator in used - _RULES.keys() if _MULTIPLIES.search(operator))
    return Summary(COUNTED + (f" Not counted: {', '.join(unknown)}." if unknown else ""), parts)


def _component(path: Path, sizes: Mapping[str, int]) -> Component:
    inputs, _ = tensor_specs(path)
    free = [axis for spec in inputs for axis in spec.axes if isinstance(axis, str)]
    model = read_hollow(path)
    graph = model.graph
    operators = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node)
    return Component(
        parameters=parameters(graph),
        bytes=sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.is_file()),
        flops=flops(model, inputs, sizes),
        sizes={axis: sizes[axis] for axis in dict.fromkeys(free)},
        operators=dict(sorted(operators.items())),
    )


def parameters(graph: onnx.GraphProto) -> int:
    """Count weights.

    Args:
        graph: Its external data need not be there.

    Returns:
        Elements of the initializers of floating-point and 8-bit types, those of ``MatMulNBits`` unpacked, and 32-bit
        integers that stand for floats, as biases do. Scalars and what only describes other weights do not count.
    """
    packed = {node.input[1]: _unpacked(node) for node in graph.node if node.op_type == "MatMulNBits"}
    described = {
        node.input[index]
        for node in graph.node
        for index in _NO_WEIGHTS.get(node.op_type, ())
        if index < len(node.input)
    }
    quantized = {t.name.removesuffix(STORED) for t in graph.initializer if t.name.endswith(STORED)}
    described |= {f"{name}.scale" for name in quantized}  # precision.int8 multiplies instead of DequantizeLinear
    biases = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return sum(
        packed.get(tensor.name, math.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.dims and (tensor.data_type in _WEIGHTS or tensor.name in biases) and tensor.name not in described
    )


def flops(model: onnx.ModelProto, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    """Run a graph once and count.

    Args:
        model: Hollow weights are zeros, which take no memory as long as nobody writes them.
        inputs: What it takes.
        sizes: Free axis → length.

    Returns:
        Floating-point operations, as :data:`COUNTED` has it.
    """
    weights = {
        tensor.name: np.zeros(tensor.dims, helper.tensor_dtype_to_np_dtype(tensor.data_type))
        for tensor in model.graph.initializer
        if is_hollow(tensor)
    }
    feeds = {spec.name: _filled(spec, sizes) for spec in inputs}
    events = _profile(with_weights_outside(model), {**feeds, **weights})
    seen = [event["args"] for event in events if event.get("cat") == "Node" and "output_type_shape" in event["args"]]
    return sum(
        _RULES[node["op_name"]](_shapes(node["input_type_shape"]), _shapes(node["output_type_shape"]))
        for node in seen
        if node["op_name"] in _RULES
    )


def _unpacked(node: onnx.NodeProto) -> int:
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return int(sizes["K"]) * int(sizes["N"])


def _filled(spec: TensorSpec, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """Zeros, and ones for what must not be zero: token ids and masks."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.axes]
    return np.full(shape, int(np.issubdtype(spec.dtype, np.integer)), dtype=spec.dtype)


def _profile(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[dict[str, Any]]:
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="trrg-summary-") as scratch:
        options = few_runs()
        options.add_session_config_entry("session.disable_prepacking", "1")  # the profile leaves out what was packed
        if any(name.endswith(STORED) for name in feeds):  # by priority all of them would wait in fp32
            options.execution_order = onnxruntime.ExecutionOrder.DEFAULT
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch, "profile"))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(feeds))
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return events


def _shapes(listed: Sequence[Mapping[str, Sequence[int]]]) -> Shapes:
    return [shape for entry in listed for shape in entry.values()]


def _convolution(inputs: Shapes, outputs: Shapes) -> int:
    weight = inputs[1]  # (out channels, in channels of a group, *kernel)
    return 2 * math.prod(outputs[0]) * math.prod(weight[1:])


def _product(inputs: Shapes, outputs: Shapes) -> int:
    return 2 * math.prod(outputs[0]) * inputs[0][-1]


def _by_size(inputs: Shapes, outputs: Shapes) -> int:
    """A product whose factors may be transposed: the shared axis from the sizes."""
    return 2 * math.prod(outputs[0]) * (math.prod(inputs[0]) // math.prod(outputs[0][:-1]))


def _attention(inputs: Shapes, outputs: Shapes) -> int:
    """Queries times keys and weights times values; the keys' length stands before the last axis in every layout.

    ONNX Runtime's fused ``Attention`` makes queries, keys and values itself, with a matrix as second input.
    """
    fused = len(inputs[1]) == 2
    keys = outputs[1] if len(outputs) > 1 else inputs[0] if fused else inputs[1]
    made = 2 * math.prod(inputs[0][:-1]) * math.prod(inputs[1]) if fused else 0
    return made + 4 * math.prod(outputs[0]) * keys[-2]


_RULES: Mapping[str, Callable[[Shapes, Shapes], int]] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "MatMul": _product,
    "MatMulNBits": _product,
    "MatMulIntegerToFloat": _product,
    "FusedMatMul": _by_size,
    "Gemm": _by_size,
    "Attention": _attention,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
}

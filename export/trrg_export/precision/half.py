"""Sixteen-bit floating point, except for the layers that measurements say cannot stand it.

onnxruntime's converter changes the types; which nodes it must leave alone is found by running the graph on calibration
feeds, and once more with zeros in their place (an empty image is where small constants matter):

1. A node that reads, writes or holds a number above half of fp16's largest stays in fp32, or that would inside, like
   the squares of a norm. So does one whose numbers are all so small that fp16 has no full digits for them.
2. While an output drifts further than the limit, the nodes where the error grows most stay in fp32 too, and what feeds
   them when that does not help (:mod:`trrg_export.precision.lowered` has the loop).

The drift is that of a GPU that rounds every tensor to fp16, see :func:`trrg_export.precision.layers.rounded`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from trrg_export.hollow import Contents, check, is_hollow, without_weights
from trrg_export.onnx_file import INLINE_LIMIT, clean, weight_bytes
from trrg_export.parity import ParityError
from trrg_export.precision.layers import Weights, contents, errors, magnitude, peaks, tensor_types
from trrg_export.precision.lowered import (
    FP32_SHARE,
    Hopeless,
    LoweredGraph,
    Lowering,
    named,
    settle,
)
from trrg_export.precision.sections import Feed
from trrg_sdk.errors import UsageError

_LARGEST = 65504.0  # of fp16
SAFE = _LARGEST / 2
"""The largest magnitude that may be measured in fp16: a study that nobody measured may reach further."""
_ROUNDING = 2.0**-11  # half a unit in the last place
_SMALLEST = 2.0**-14  # 6.1e-5: below this fp16 loses digits, and below 6e-8 everything

_LOG = logging.getLogger(__name__)


def to_half(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, label: str, limit: float | None, outside: Path | None = None
) -> LoweredGraph:
    """Turn a graph into fp16.

    Args:
        model: fp32, of standard operators; left as it is.
        feeds: Inputs of one run each, to measure with.
        label: The graph's name, for messages.
        limit: How far an output may drift, see :class:`LoweredGraph`; None asks only that every number stays one.
        outside: Folder of external data of the model, which is read a few weights at a time.

    Returns:
        A checked graph, the same for the same input.

    Raises:
        ParityError: The limit is passed however many layers stay in fp32; it names the worst one.
        UsageError: The graph is too large for one protobuf message.
    """
    if (size := weight_bytes(model, outside=True)) > INLINE_LIMIT:
        raise UsageError(f"{label}: fp16 is made of graphs below 2 GiB, got {size} bytes of weights; use another one")
    source, weights = named(without_weights(model)), Contents(model, outside)
    bound = math.inf if limit is None else limit
    lowering = Lowering(
        "fp16",
        convert=lambda kept: _convert(source, kept),
        judge=lambda half, kept: _compare(source, half, feeds, weights, kept),
        bound=bound,
        as_bad=0.5,
        reason="the relative error grows {:.2g}-fold in it",
    )
    found = settle(source, _unrepresentable(source, feeds, weights), lowering)
    if isinstance(found, Hopeless):
        raise ParityError([_hopeless(label, found, bound)])
    for line in found.lines():
        _LOG.info("%s: %s", label, line)
    for tensor in found.model.graph.initializer:
        if is_hollow(tensor):
            tensor.CopyFrom(contents(tensor, weights))
    return found


def with_zeros(feeds: Sequence[Feed]) -> list[Feed]:
    """Add the first feed with zeros in place of its floating-point inputs.

    Args:
        feeds: At least one.

    Returns:
        The same feeds and, when an input is floating, one more.
    """
    zero = {name: np.zeros_like(a) if a.dtype == np.float32 else a for name, a in feeds[0].items()}
    return [*feeds, zero] if any(a.dtype == np.float32 for a in zero.values()) else list(feeds)


def _unrepresentable(model: onnx.ModelProto, feeds: Sequence[Feed], weights: Weights) -> dict[str, str]:
    """Node → why its numbers do not fit into fp16."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    found = peaks(model, with_zeros(feeds), weights)
    stored = {
        name: magnitude(numpy_helper.to_array(tensor))
        for name, tensor in weights.items()
        if tensor.data_type == TensorProto.FLOAT
    }
    sizes = {**found.tensors, **stored}
    reasons = {}
    for node in model.graph.node:
        lines = [_misfit(name, sizes.get(name, 0.0)) for name in (*node.input, *node.output)]
        inside = found.inside.get(node.name, 0.0)
        lines.append(_misfit("a number inside", inside) if inside > _SMALLEST else "")
        if node.op_type in DEFAULT_OP_BLOCK_LIST and sizes.keys() & {*node.input, *node.output}:
            lines.append(f"onnxruntime's converter leaves {node.op_type} in fp32")
        if reason := next(filter(None, lines), ""):
            reasons[node.name] = reason
    return reasons


def _misfit(name: str, peak: float) -> str:
    if peak > SAFE:
        return f"{name} reaches {peak:.3g}, fp16 ends at {_LARGEST:g}"
    if 0.0 < peak < _SMALLEST:
        return f"{name} reaches only {peak:.3g}, fp16 has full digits from {_SMALLEST:.2g}"
    return ""


def _convert(model: onnx.ModelProto, kept: Mapping[str, str]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    typed = shape_inference.infer_shapes(model)
    hollow = {tensor.name: list(tensor.dims) for tensor in typed.graph.initializer if is_hollow(tensor)}
    for tensor in typed.graph.initializer:  # the converter wants contents: one number stands for all
        if tensor.name in hollow:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), tensor.name))
    half: onnx.ModelProto = convert_float_to_float16(
        typed, keep_io_types=True, node_block_list=sorted(kept), disable_shape_infer=True
    )
    for tensor in half.graph.initializer:
        if tensor.name in hollow:
            tensor.CopyFrom(TensorProto(name=tensor.name, dims=hollow[tensor.name], data_type=tensor.data_type))
    _drop_round_trips(half)
    OnnxModel.graph_topological_sort(half.graph)
    clean(half)
    check(half)
    return half


def _drop_round_trips(half: onnx.ModelProto) -> None:
    """Let a layer in fp32 read what another one in fp32 wrote.

    The converter puts fp16 between them, where the number would overflow after all.
    """
    graph = half.graph
    types = tensor_types(half)
    narrowing = {node.output[0]: node.input[0] for node in graph.node if _casts_to(node, TensorProto.FLOAT16)}
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    for node in graph.node:
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in narrowing:
            node.input[0] = narrowing[node.input[0]]
            if types.get(node.input[0]) == TensorProto.FLOAT and node.output[0] not in outputs:
                renamed[node.output[0]] = node.input[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    _write_outputs_directly(graph, types)
    _drop_unread_casts(graph)


def _write_outputs_directly(graph: onnx.GraphProto, types: Mapping[str, int]) -> None:
    """Give what a layer in fp32 writes for the graph's output the output's name."""
    outputs = {output.name for output in graph.output}
    inputs = {tensor.name for tensor in (*graph.input, *graph.initializer)}
    same = {
        node.input[0]: node.output[0]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT)
        and node.output[0] in outputs
        and types.get(node.input[0]) == TensorProto.FLOAT
        and node.input[0] not in inputs
    }
    kept = [node for node in graph.node if not (node.op_type == "Cast" and same.get(node.input[0]) == node.output[0])]
    for node in kept:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = same.get(name, name)
    _set_nodes(graph, kept)


def _drop_unread_casts(graph: onnx.GraphProto) -> None:
    while True:
        read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
        alive = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in read]
        if len(alive) == len(graph.node):
            return
        _set_nodes(graph, alive)


def _set_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)


def _compare(
    model: onnx.ModelProto,
    half: onnx.ModelProto,
    feeds: Sequence[Feed],
    weights: Weights,
    kept: Mapping[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Drift of each output, and how much the error grows in each node that computes in fp16.

    Zeros only tell whether every number stays one: where all is 0, a difference says nothing.
    """
    found = errors(model, half, feeds, weights)
    zeros = errors(model, half, with_zeros(feeds)[len(feeds) :], weights)
    growth, lost = _growth(model, found.tensors, kept), _growth(model, zeros.tensors, kept)
    return found.outputs | _infinite(zeros.outputs), growth | _infinite(lost)


def _infinite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isinf(value)}


def _growth(model: onnx.ModelProto, error: Mapping[str, float], kept: Mapping[str, str]) -> dict[str, float]:
    """Node → how many times larger the relative error is after it than what it got and one rounding explain.

    A difference would blame every layer that only passes a large error on. A layer in fp32 hands the blame to those
    that feed it with errors.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    growth: dict[str, float] = {}
    for node in model.graph.node:
        before = max((error.get(name, 0.0) for name in node.input), default=0.0)
        after = max((error.get(name, 0.0) for name in node.output), default=0.0)
        if after <= before:  # also where both are infinite
            continue
        for culprit in [node] if node.name not in kept else _feeding(node, makers, kept):
            if any(error.get(name) for name in culprit.output):
                growth[culprit.name] = max(growth.get(culprit.name, 0.0), after / (before + _ROUNDING))
    return growth


def _feeding(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], kept: Mapping[str, str]
) -> list[onnx.NodeProto]:
    """The nearest nodes in fp16 that a node's inputs come from."""
    found: list[onnx.NodeProto] = []
    waiting, seen = [node], {node.name}
    while waiting:
        for name in waiting.pop().input:
            maker = makers.get(name)
            if maker is None or maker.name in seen:
                continue
            seen.add(maker.name)
            (waiting if maker.name in kept else found).append(maker)
    return found


def _hopeless(label: str, found: Hopeless, bound: float) -> str:
    return (
        f"{label}.{found.output}: in fp16 it drifts by {found.drift:.3g} from fp32, the limit is {bound:g}, and more "
        f"than {FP32_SHARE:.0%} of the weights would have to stay in fp32; the error grows most in the layer "
        f"{found.worst or '(none)'}. Export this model in fp32 or int8"
    )

"""Sixteen-bit floating point, except for the layers that measurements say cannot stand it.

onnxruntime's converter changes the types; which nodes it must leave alone is found by running the graph on calibration
feeds, and once more with zeros in their place (an empty image is where small constants matter):

1. A node that reads, writes or holds a number above half of fp16's largest stays in fp32, or that would inside, like
   the squares of a norm. So does one whose numbers are all so small that fp16 has no full digits for them.
2. While an output drifts further than the limit, the nodes where the error grows most stay in fp32 too, and what feeds
   them when that does not help, until the limit holds, or so many weights are fp32 that it is no fp16 graph any more.

The drift is that of a GPU that rounds every tensor to fp16, see :func:`trrg_export.precision.layers.rounded`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trrg_export.parity import ParityError
from trrg_export.precision.layers import Feed, errors, magnitude, peaks, tensor_types
from trrg_export.to_onnx import clean
from trrg_sdk.errors import UsageError

_LARGEST = 65504.0  # of fp16
SAFE = _LARGEST / 2
"""The largest magnitude that may be measured in fp16: a study that nobody measured may reach further."""
_ROUNDING = 2.0**-11  # half a unit in the last place
_SMALLEST = 2.0**-14  # 6.1e-5: below this fp16 loses digits, and below 6e-8 everything
_AS_BAD = 0.5  # of the largest growth of the error: such nodes go to fp32 in the same round
_FP32_SHARE = 0.5  # of the weights: with more of them kept because of drift, fp32 is the honest name
_PROTOBUF = 2**31 - 1  # bytes; the converter holds the graph in one message

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptLayer:
    """A node that computes in fp32.

    Attributes:
        name: Of the node.
        op_type: Its operator.
        reason: With the number that was measured.
    """

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, eq=False)
class HalfGraph:
    """An fp16 graph with fp32 inputs and outputs.

    Attributes:
        model: The graph.
        kept: What computes in fp32, in the graph's order.
        drift: Output → largest difference from fp32, divided by the largest number where that is above 1.
        worst: The fp16 node where the error grows most, with its operator; empty when there is none.
    """

    model: onnx.ModelProto
    kept: tuple[KeptLayer, ...]
    drift: Mapping[str, float]
    worst: str

    def lines(self) -> list[str]:
        """One line for each layer in fp32."""
        return [f"{layer.name} ({layer.op_type}) stays in fp32: {layer.reason}" for layer in self.kept]


def to_half(model: onnx.ModelProto, feeds: Sequence[Feed], *, label: str, limit: float | None) -> HalfGraph:
    """Turn a graph into fp16.

    Args:
        model: fp32, of standard operators; left as it is.
        feeds: Inputs of one run each, to measure with.
        label: The graph's name, for messages.
        limit: How far an output may drift, see :class:`HalfGraph`; None asks only that every number stays one.

    Returns:
        A checked graph, the same for the same input.

    Raises:
        ParityError: The limit is passed however many layers stay in fp32; it names the worst one.
        UsageError: The graph is too large for one protobuf message.
    """
    if model.ByteSize() > _PROTOBUF:
        raise UsageError(f"{label}: fp16 is made of graphs below 2 GiB, got {model.ByteSize()} bytes; use another one")
    source = _named(model)
    half = _settled(source, feeds, label, math.inf if limit is None else limit)
    for line in half.lines():
        _LOG.info("%s: %s", label, line)
    return half


def _settled(source: onnx.ModelProto, feeds: Sequence[Feed], label: str, bound: float) -> HalfGraph:
    """Keep more layers in fp32 until the drift holds the bound."""
    kept = _unrepresentable(source, feeds)
    widened, blamed = set[str](), ""
    while True:
        half = _convert(source, kept)
        drift, growth = _compare(source, half, feeds, kept)
        worst = max(growth, key=lambda name: growth[name], default="")
        blamed = blamed or worst
        if _holds(drift, bound):
            return HalfGraph(half, _layers(source, kept), drift, _shown(source, worst))
        added = [name for name in growth if growth[name] >= _AS_BAD * growth[worst]]
        widened.update(added)
        if not added or _share(source, widened) > _FP32_SHARE:
            raise ParityError([_hopeless(label, drift, bound, _shown(source, blamed))])
        kept |= {name: f"the relative error grows {growth[name]:.2g}-fold in it" for name in added}


def with_zeros(feeds: Sequence[Feed]) -> list[Feed]:
    """Add the first feed with zeros in place of its floating-point inputs.

    Args:
        feeds: At least one.

    Returns:
        The same feeds and, when an input is floating, one more.
    """
    zero = {name: np.zeros_like(a) if a.dtype == np.float32 else a for name, a in feeds[0].items()}
    return [*feeds, zero] if any(a.dtype == np.float32 for a in zero.values()) else list(feeds)


def half_table(halves: Mapping[str, HalfGraph]) -> dict[str, Any]:
    """Say for the manifest what was measured.

    Args:
        halves: Graph → what :func:`to_half` made of it.

    Returns:
        The drift of each output and the layers in fp32, of each graph; empty when there is none.
    """
    if not halves:
        return {}
    drift = {name: {k: float(f"{v:.3g}") for k, v in half.drift.items()} for name, half in halves.items()}
    return {"fp16_drift": drift, "fp32_layers": {name: half.lines() for name, half in halves.items()}}


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own: the converter knows nodes by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_at_{index}"
        seen.add(node.name)
    return copy


def _unrepresentable(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, str]:
    """Node → why its numbers do not fit into fp16."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    found = peaks(model, with_zeros(feeds))
    weights = {
        tensor.name: magnitude(numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    sizes = {**found.tensors, **weights}
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

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True, node_block_list=sorted(kept))
    _drop_round_trips(half)
    OnnxModel.graph_topological_sort(half.graph)
    clean(half)
    onnx.checker.check_model(half, full_check=True)
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
    model: onnx.ModelProto, half: onnx.ModelProto, feeds: Sequence[Feed], kept: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Drift of each output, and how much the error grows in each node that computes in fp16.

    Zeros only tell whether every number stays one: where all is 0, a difference says nothing.
    """
    found, zeros = errors(model, half, feeds), errors(model, half, with_zeros(feeds)[len(feeds) :])
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


def _holds(drift: Mapping[str, float], bound: float) -> bool:
    return all(math.isfinite(value) and value <= bound for value in drift.values())


def _layers(model: onnx.ModelProto, kept: Mapping[str, str]) -> tuple[KeptLayer, ...]:
    return tuple(KeptLayer(n.name, n.op_type, kept[n.name]) for n in model.graph.node if n.name in kept)


def _shown(model: onnx.ModelProto, name: str) -> str:
    return next((f"{node.name} ({node.op_type})" for node in model.graph.node if node.name == name), "")


def _share(model: onnx.ModelProto, names: set[str]) -> float:
    """How much of the weights the named nodes hold."""
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    held = {name for node in model.graph.node if node.name in names for name in node.input if name in sizes}
    return sum(sizes[name] for name in held) / max(1, sum(sizes.values()))


def _hopeless(label: str, drift: Mapping[str, float], bound: float, worst: str) -> str:
    output = max(drift, key=lambda name: drift[name])
    return (
        f"{label}.{output}: in fp16 it drifts by {drift[output]:.3g} from fp32, the limit is {bound:g}, and more than "
        f"{_FP32_SHARE:.0%} of the weights would have to stay in fp32; the error grows most in the layer "
        f"{worst or '(none)'}. Export this model in fp32 or int8"
    )

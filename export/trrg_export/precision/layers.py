"""What flows through the layers of a graph: how large numbers get, and where a second graph begins to differ.

Used to decide which layers may compute in less than fp32. ONNX Runtime's CPU cannot show that of fp16 by itself: it has
few such kernels, runs neighbours that lack one in fp32 without rounding between them, and so gives finite numbers for a
graph that overflows on a GPU. :func:`rounded` makes it visible: the same graph in fp32 with every fp16 tensor rounded
to fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference

from trrg_export.hollow import is_hollow
from trrg_export.precision.sections import Array, Feed, Sections, cut, cut_alike, in_groups
from trrg_sdk.backends.ort_session import open_session

Weights = Mapping[str, TensorProto]
_ROUNDED = "~unrounded"
_HALF = "~half"
KEPT_OUTPUT = "_cast_to_fp16"
"""What the converter appends to the name of a tensor that a layer kept in fp32 writes."""


class Peaks(NamedTuple):
    """Largest finite magnitudes.

    Attributes:
        tensors: Of each float tensor that is an input or flows between layers.
        inside: Of each node that stands for several operations, the largest number among them.
    """

    tensors: dict[str, float]
    inside: dict[str, float]


class Errors(NamedTuple):
    """How far a graph in fp16 is from its fp32 original.

    Attributes:
        outputs: Output → largest difference, divided by the largest number where that is above 1; infinite when a
            number is lost.
        tensors: Tensor → largest difference divided by the largest number, over all feeds.
    """

    outputs: dict[str, float]
    tensors: dict[str, float]


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the element type of every tensor, weights included.

    Args:
        model: Any graph of standard operators.

    Returns:
        Name → a ``TensorProto`` data type.
    """
    graph = shape_inference.infer_shapes(model).graph
    infos = (*graph.value_info, *graph.input, *graph.output)
    types = {info.name: info.type.tensor_type.elem_type for info in infos}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def peaks(model: onnx.ModelProto, feeds: Sequence[Feed], weights: Weights) -> Peaks:
    """Run a graph and note how large its numbers get.

    Args:
        model: fp32; every node has a name. Its large weights may be hollow.
        feeds: Inputs of one run each.
        weights: All initializers by name, with their contents.

    Returns:
        The largest over all runs.
    """
    parts = cut(model)
    sections = Sections(model, parts, weights.__getitem__)
    found = Peaks({}, {})
    for states in in_groups(feeds):
        for index, part in enumerate(parts):
            inside = [_Inside(node, model, weights) for node in part if _has_body(node)]
            before = [_floats(state) for state in states]
            for known, values in zip(before, sections.run(index, states), strict=True):
                for name, value in values.items():
                    _raise_to(found.tensors, name, magnitude(value))
                for node in inside:
                    if (largest := node.largest({**known, **values})) is not None:
                        _raise_to(found.inside, node.name, largest)
    return found


def errors(model: onnx.ModelProto, half: onnx.ModelProto, feeds: Sequence[Feed], weights: Weights) -> Errors:
    """Compare a graph in fp16 with its original, as a GPU without wider registers would run it.

    Args:
        model: fp32. Its large weights may be hollow, and so may those of ``half``.
        half: What the converter made of it.
        feeds: Inputs of one run each.
        weights: All initializers of ``model`` by name, with their contents.

    Returns:
        The largest over all runs.
    """
    outputs = [output.name for output in model.graph.output]
    found = Errors(dict.fromkeys(outputs, 0.0), {})
    parts = cut(model)
    original = Sections(model, parts, weights.__getitem__)
    changed, twins = _rounded_sections(half, parts, weights)
    for lefts, rights in zip(in_groups(feeds), in_groups(feeds), strict=True):
        waiting: list[dict[str, tuple[str, Array]]] = [{} for _ in lefts]
        for index in range(len(parts)):
            both = zip(waiting, original.run(index, lefts), changed.run(index, rights), strict=True)
            for pending, wanted, got in both:
                pending.update({twins(name): (name, value) for name, value in wanted.items() if twins(name)})
                for twin in pending.keys() & got.keys():
                    name, value = pending.pop(twin)
                    _note(found, name, value, got[twin])
    return found


def _note(found: Errors, name: str, value: Array, other: Array) -> None:
    peak = magnitude(value)
    gap = _gap(value, other)
    _raise_to(found.tensors, name, gap / peak if peak else gap)
    if name in found.outputs:
        _raise_to(found.outputs, name, relative_gap(value, other))


def _rounded_sections(
    half: onnx.ModelProto, parts: Sequence[Sequence[onnx.NodeProto]], weights: Weights
) -> tuple[Sections, Callable[[str], str]]:
    """What :func:`rounded` makes, in sections, and the name there of a tensor of the original, or an empty one."""
    types = tensor_types(half)
    stored = {tensor.name: tensor for tensor in half.graph.initializer}
    alike = [[step for node in part for step in _rounding(node, types)] for part in cut_alike(half, parts)]
    written = {name for part in alike for node in part for name in node.output}
    inner = {name for name in written if name.endswith((_ROUNDED, _HALF))}

    def weight(name: str) -> TensorProto:
        tensor = contents(stored[name], weights)
        _widen(tensor)
        return tensor

    def twin(name: str) -> str:
        return next((each for each in (f"{name}{KEPT_OUTPUT}", name) if each in written), "")

    return Sections(half, alike, weight, inner), twin


def rounded(half: onnx.ModelProto) -> onnx.ModelProto:
    """Write an fp16 graph in fp32, with every tensor that is fp16 in it rounded to fp16 where it is made.

    Args:
        half: Its inputs and outputs may be fp32.

    Returns:
        A new model with the same names, which computes in fp32 everywhere.
    """
    types = tensor_types(half)
    result = onnx.ModelProto()
    result.CopyFrom(half)
    del result.graph.node[:], result.graph.value_info[:]
    for tensor in result.graph.initializer:
        _widen(tensor)
    for node in half.graph.node:
        result.graph.node.extend(_rounding(node, types))
    return result


def magnitude(value: Array) -> float:
    """Return the largest finite magnitude, 0 for an empty tensor.

    Args:
        value: Floating, any shape.
    """
    finite = np.abs(value[np.isfinite(value)])
    return float(finite.max()) if finite.size else 0.0


def relative_gap(wanted: Array, got: Array) -> float:
    """Say how far an output is off.

    Args:
        wanted: Floating, any shape.
        got: The same shape.

    Returns:
        The largest difference where the original is finite, divided by its largest number where that is above 1;
        infinite where a number was lost.
    """
    return _gap(wanted, got) / max(1.0, magnitude(wanted))


def contents(tensor: TensorProto, weights: Weights) -> TensorProto:
    """Copy a weight of a graph in fp16; where it is hollow, what the converter makes of the original.

    Args:
        tensor: fp32 or fp16.
        weights: The originals by name.

    Returns:
        The weight with its contents.
    """
    from onnxruntime.transformers.float16 import convert_tensor_float_to_float16

    copy = TensorProto()
    copy.CopyFrom(weights[tensor.name] if is_hollow(tensor) else tensor)
    return convert_tensor_float_to_float16(copy) if tensor.data_type == TensorProto.FLOAT16 else copy


def _floats(state: Feed) -> dict[str, Array]:
    return {name: value for name, value in state.items() if value.dtype == np.float32}


class _Inside:
    """The operations that a node stands for, in a session that is opened when it runs first."""

    def __init__(self, node: onnx.NodeProto, model: onnx.ModelProto, weights: Weights) -> None:
        self.name = node.name
        self._node, self._model, self._weights = node, model, weights
        self._session: Any = None

    def largest(self, known: Feed) -> float | None:
        """The largest number among what they write; None where an input is no float tensor, so nobody watches it."""
        stored = {
            name: numpy_helper.to_array(self._weights[name]) for name in self._node.input if name in self._weights
        }
        inputs = {name: {**stored, **known}[name] for name in self._node.input if name in stored or name in known}
        if len(inputs) < sum(map(bool, self._node.input)):
            return None
        if self._session is None:
            body = _body(self._node, inputs, self._model)
            types = tensor_types(body)
            written = [n for node in body.graph.node for n in node.output if types.get(n) == TensorProto.FLOAT]
            declared = {output.name for output in body.graph.output}
            body.graph.output.extend(
                helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in written if n not in declared
            )
            self._written = written
            self._session = open_session(body.SerializeToString(), body.graph.name, "cpu", 0)
        values = self._session.run(self._written, inputs) if self._written else []
        return max(map(magnitude, values), default=0.0)


def _has_body(node: onnx.NodeProto) -> bool:
    """True where the standard defines the operator by simpler ones, as it does for norms."""
    if node.domain or not onnx.defs.has(node.op_type):
        return False
    schema: Any = onnx.defs.get_schema(node.op_type)  # onnx's stubs do not know the two properties
    return bool(schema.has_function or schema.has_context_dependent_function)


def _body(node: onnx.NodeProto, inputs: Feed, model: onnx.ModelProto) -> onnx.ModelProto:
    """The operations that a node stands for, as a graph of their own."""
    free = {name: [None] * value.ndim for name, value in inputs.items()}
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), free[name])
        for name, value in inputs.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], node.name, declared, outputs)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    typed = shape_inference.infer_shapes(alone, check_type=True, strict_mode=True)
    return inliner.inline_selected_functions(typed, [(node.domain, node.op_type)], inline_schema_functions=True)


def _rounding(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.HasField("t"):
            _widen(attribute.t)
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    made = [index for index, name in enumerate(node.output) if types.get(name) == TensorProto.FLOAT16]
    for index in made:
        copy.output[index] += _ROUNDED
    yield copy
    for index in made:
        name = node.output[index]
        yield helper.make_node("Cast", [name + _ROUNDED], [name + _HALF], to=TensorProto.FLOAT16, name=f"{name}~1")
        yield helper.make_node("Cast", [name + _HALF], [name], to=TensorProto.FLOAT, name=f"{name}~2")


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _gap(wanted: Array, got: Array) -> float:
    """The largest difference where the original is finite; infinite where a number was lost."""
    finite = np.isfinite(wanted)
    if not np.isfinite(got[finite]).all():
        return float("inf")
    return magnitude(got[finite] - wanted[finite])


def _raise_to(largest: dict[str, float], name: str, value: float) -> None:
    largest[name] = max(largest.get(name, 0.0), value)

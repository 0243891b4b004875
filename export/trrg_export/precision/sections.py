"""Runs a graph a few nodes at a time: neither all its weights nor all that flows through it are in memory at once.

To look at every number of a Swin-B at 224 x 224 pixels, or of a BERT-base that reads 28 prompts, in one run takes
gigabytes; only the largest of them is asked for. A section is some nodes in the graph's order. Its session is opened,
run on a few feeds and closed; what later sections read stays until the last of them has run. Large weights are inputs
of a section: ONNX Runtime reads them where they lie, and would hold initializers as message, as tensor and as packed
tensor. Nothing is planned or kept for a next run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trrg_export.hollow import is_large
from trrg_export.memory import few_runs

Array = NDArray[Any]
Feed = Mapping[str, Array]
NODES = 8
"""In a section: at most as many tensors are there at once, and a few that wait."""
_FEEDS = 4  # that go through the sections together: what waits between two is there for each


class Sections:
    """A graph in sections, which gives the float tensors that its nodes write."""

    def __init__(
        self,
        model: onnx.ModelProto,
        parts: Sequence[Sequence[onnx.NodeProto]],
        weight: Callable[[str], TensorProto],
        inner: Collection[str] = (),
    ) -> None:
        """Take a graph apart.

        Args:
            model: Only its inputs, outputs, operator sets and names of initializers count.
            parts: All nodes, in an order in which they can run.
            weight: Gives an initializer by name, with its contents.
            inner: Tensors that nobody asks for, read in the section alone that writes them.
        """
        self._model, self._parts, self._weight, self._inner = model, parts, weight, inner
        self._stored = {tensor.name for tensor in model.graph.initializer}
        self._last = {name: i for i, part in enumerate(parts) for node in part for name in reads(node)}

    def run(self, index: int, states: Sequence[dict[str, Array]]) -> Iterator[dict[str, Array]]:
        """Run one section on several feeds; the sections before it have run on them.

        Args:
            index: Of the section.
            states: Inputs of the graph at first; changed to what later sections read.

        Yields:
            The float tensors that its nodes write, for each state.
        """
        part = self._parts[index]
        if not part:
            yield from ({} for _ in states)
            return
        session, weights = self._open(part, states[0])
        names = [output.name for output in session.get_outputs()]
        wanted = {spec.name for spec in session.get_inputs()} - weights.keys()
        for state in states:
            values = dict(zip(names, session.run(names, {**weights, **{n: state[n] for n in wanted}}), strict=True))
            state.update(values)
            yield {name: value for name, value in values.items() if value.dtype == np.float32}
            del values
            for name in [name for name in state if self._last.get(name, -1) <= index]:
                del state[name]

    def _open(self, part: Sequence[onnx.NodeProto], state: Feed) -> tuple[Any, dict[str, Array]]:
        """A session, and those of its inputs that are weights."""
        read = dict.fromkeys(name for node in part for name in reads(node))
        tensors = [self._weight(name) for name in read if name in self._stored]
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors if is_large(tensor)}
        given = {**{name: state[name] for name in read if name in state and name not in self._stored}, **weights}
        graph = helper.make_graph(
            part,
            self._model.graph.name or "section",
            [_declared(name, value) for name, value in given.items()],
            [
                helper.make_empty_tensor_value_info(name)
                for node in part
                for name in node.output
                if name and name not in self._inner
            ],
            [tensor for tensor in tensors if tensor.name not in weights],
        )
        model = helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )
        return _session(model), weights


def _declared(name: str, value: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)


def _session(model: onnx.ModelProto) -> Any:
    """Open a graph as it is, for a few runs."""
    import onnxruntime

    return onnxruntime.InferenceSession(model.SerializeToString(), few_runs(), providers=["CPUExecutionProvider"])


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Name what a node reads, the graphs inside it included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from reads(inner)


def cut(model: onnx.ModelProto) -> list[list[onnx.NodeProto]]:
    """Cut a graph into sections of ``NODES`` nodes."""
    nodes = list(model.graph.node)
    return [nodes[start : start + NODES] for start in range(0, len(nodes), NODES)]


def cut_alike(changed: onnx.ModelProto, original: Sequence[Sequence[onnx.NodeProto]]) -> list[list[onnx.NodeProto]]:
    """Cut what a converter made of a graph where the original was cut.

    Args:
        changed: In an order in which it can run; nodes keep their names, new ones belong to what they read.
        original: The sections of the graph that it was made of.

    Returns:
        As many sections.
    """
    home = {node.name: index for index, part in enumerate(original) for node in part}
    parts: list[list[onnx.NodeProto]] = [[] for _ in original]
    made: dict[str, int] = {}
    for node in changed.graph.node:
        index = max([home.get(node.name, 0), *(made.get(name, 0) for name in reads(node))])
        made |= dict.fromkeys(node.output, index)
        parts[index].append(node)
    return parts


def in_groups(feeds: Sequence[Feed]) -> Iterator[list[dict[str, Array]]]:
    """Copies of the feeds (not of their arrays), those together that go through the sections together."""
    for start in range(0, len(feeds), _FEEDS):
        yield [dict(feed) for feed in feeds[start : start + _FEEDS]]
